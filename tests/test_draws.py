import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsnet.data.draws import NUMBERS, below, between, draw


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.integers(1, 20), st.integers(0, 20))
def test_what_is_drawn_for_a_position_does_not_depend_on_the_cut(seed, start, count, cut):
    cut = min(cut, count)
    parts = [draw(seed, start, start + cut), draw(seed, start + cut, start + count)]
    assert (np.concatenate(parts) == draw(seed, start, start + count)).all()


def test_positions_streams_and_seeds_have_nothing_to_do_with_each_other():
    sequences = [draw(0, 0, 1000), draw(0, 1000, 2000), draw(1, 0, 1000), draw(0, 0, 1000, stream=1)]
    assert len(np.unique(np.concatenate(sequences))) > 31_990  # 32,000 of 2³²: a collision is rare
    for sequence in sequences:
        assert sequence.shape == (1000, NUMBERS)
        assert sequence.mean() / 2**32 == pytest.approx(0.5, abs=0.02)


def test_the_sequence_is_fixed_for_all_time():
    assert draw(7, 3, 4)[0, :3].tolist() == [882531396, 1898599439, 3719369444]


def test_below_reaches_every_number_equally_often():
    numbers = below(draw(0, 0, 10_000)[:, 0], 9)
    counts = np.bincount(numbers, minlength=9)
    assert len(counts) == 9
    assert ((counts - 10_000 / 9) ** 2 / (10_000 / 9)).sum() < 26  # χ², 8 degrees of freedom, p = 0.001
    limits = np.array([1, 5, 2**31])
    assert (below(np.full(3, 2**32 - 1, np.uint32), limits) == limits - 1).all()


def test_between_stays_between():
    assert between(np.array([0, 2**32 - 1], np.uint32), -2.0, 6.0) == pytest.approx([-2, 6])
    assert (between(np.array([0, 2**32 - 1], np.uint32), 0.0, 1.0) % 1 > 0).all()
