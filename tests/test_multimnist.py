import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capsnet
from capsnet.data import ImageSet, PairSet


@pytest.fixture(scope="module")
def pairs():
    return capsnet.open_dataset("multimnist", "test")


def test_sizes(pairs):
    train = capsnet.open_dataset("multimnist")
    assert (len(train), len(pairs)) == (60_000, 100_000)
    assert len(train.digits) == 60_000
    assert len(pairs.digits) == 10_000  # train on train, test on test
    assert pairs.image_shape == (1, 36, 36)
    assert pairs.class_names == tuple("0123456789")
    batch = pairs.batch(0, 3)
    assert batch.images.shape == (3, 1, 36, 36)
    assert batch.digits.shape == (3, 2, 1, 36, 36)
    assert batch.labels.shape == (3, 2)


def test_a_pair_is_two_digits_of_its_labels_shifted_added_and_clipped(pairs):
    originals = {
        (int(label), image.numpy().tobytes())
        for image, label in zip(pairs.digits.images, pairs.digits.labels, strict=True)
    }
    batch = pairs.batch(1000, 1040)
    added = batch.digits[:, 0].int() + batch.digits[:, 1].int()
    assert batch.images.int().equal(added.clamp(max=255))
    assert (added > 255).any()
    shifts = set()
    for digits, labels in zip(batch.digits, batch.labels.tolist(), strict=True):
        assert labels[0] != labels[1]
        for digit, label in zip(digits[:, 0].numpy(), labels, strict=True):
            places = [
                (top, left)
                for top in range(9)
                for left in range(9)
                if digit[top : top + 28, left : left + 28].sum() == digit.sum()  # no ink outside
                and (label, digit[top : top + 28, left : left + 28].tobytes()) in originals
            ]
            assert len(places) == 1
            shifts.add(places[0])
    assert len(shifts) > 40  # of 81; 80 drawn


@given(st.integers(0, 99_000), st.integers(1, 40), st.integers(1, 39))
@settings(max_examples=20, deadline=None)
def test_the_sequence_does_not_depend_on_how_it_is_cut(pairs, start, count, cut):
    cut = min(cut, count)
    whole = pairs.batch(start, start + count)
    parts = [pairs.batch(start, start + cut)]
    parts += [pairs.batch(start + cut, start + count)] if cut < count else []
    for field in dataclasses.fields(whole):
        assert torch.cat([getattr(part, field.name) for part in parts]).equal(getattr(whole, field.name))


def test_each_digit_is_first_once_in_a_round_and_no_order_comes_again(pairs):
    tiny = PairSet(numbered(30), 3 * 30)
    firsts = tiny.batch(0, 90).digits[:, 0].amax(dim=(1, 2, 3)).view(3, 30)
    assert (firsts.sort().values == torch.arange(1, 31)).all()
    assert len({tuple(turn) for turn in firsts.tolist()}) == 3


def numbered(count):
    """Images of one grey each, by which they are known again; three classes of 1/2, 1/3 and 1/6."""
    images = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    labels = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(count // 6)
    return ImageSet(images, labels, ("a", "b", "c"))


def test_the_second_is_any_digit_of_another_class_equally_often():
    digits = numbered(30)
    batch = PairSet(digits, 30_000).batch(0, 30_000)
    seen = (batch.digits.amax(dim=(2, 3, 4)).long() - 1).numpy()  # positions of the two
    assert (digits.labels.numpy()[seen] == batch.labels.numpy()).all()
    for first in range(30):
        others = np.flatnonzero(digits.labels.numpy() != digits.labels.numpy()[first])
        counts = np.bincount(seen[seen[:, 0] == first, 1], minlength=30)
        assert counts.sum() == 1000
        assert counts[others].min() > 1000 / len(others) / 2
        assert counts[others].sum() == 1000


def test_shifts_are_uniform_and_the_boxes_overlap_as_they_must():
    digits = ImageSet(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b", "c"))
    batch = PairSet(digits, 20_000).batch(0, 20_000)
    corners = [(batch.digits.amax(dim=(2, axis)) > 0).int().argmax(dim=2) for axis in (4, 3)]  # top, left
    for corner in corners:
        counts = torch.bincount(corner.flatten(), minlength=9)
        assert len(counts) == 9
        assert (counts / 40_000 * 9 - 1).abs().max() < 0.05
    down, right = ((corner[:, 0] - corner[:, 1]).abs() for corner in corners)
    # Two independent shifts of -4 to 4 differ by 80/27 on average. The paper's "80 %" is that of the 28×28 frames.
    for side in (20, 28):
        overlap = (side - down) * (side - right) / side**2
        assert overlap.mean().item() == pytest.approx((1 - 80 / 27 / side) ** 2, abs=0.003)


def test_the_test_set_is_the_same_for_all_time(pairs):
    batch = pairs.batch(0, 100)
    digest = hashlib.sha256(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest()
    assert digest == "c2a7596233e4bd0c734856fa116a3ca4d224e58bb462fc0f312e67500dc09102"


def test_the_full_set_begins_with_the_default_one(pairs):
    full = dataclasses.replace(pairs, count=10_000_000)
    assert full.batch(99_990, 100_010).images[:10].equal(pairs.batch(99_990, 100_010).images)
    assert len(full.batch(9_999_999, 10_000_500).images) == 1
    with pytest.raises(ValueError, match="no pairs"):
        pairs.batch(100_000, 100_010)


def test_another_seed_gives_other_pairs_of_the_same_digits(pairs):
    other = pairs.reseeded(1)
    assert other.digits is pairs.digits
    assert not other.batch(0, 10).images.equal(pairs.batch(0, 10).images)
    assert other.reseeded(0).batch(0, 10).images.equal(pairs.batch(0, 10).images)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_every_device_makes_the_same_pairs(pairs, device):
    moved = pairs.to(device).batch(5, 300)
    here = pairs.batch(5, 300)
    for field in dataclasses.fields(here):
        assert getattr(moved, field.name).device.type == device
        assert getattr(moved, field.name).cpu().equal(getattr(here, field.name))


def test_colour_and_any_size():
    images = torch.randint(256, (6, 3, 10, 12), dtype=torch.uint8)
    pairs = PairSet(ImageSet(images, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c")), 50, max_shift=2)
    assert pairs.image_shape == (3, 14, 16)
    assert pairs.batch(0, 7).images.shape == (7, 3, 14, 16)
    pairs.require((3, 14, 16), 3)
    with pytest.raises(capsnet.InputError, match=r"takes images of .*\(1, 28, 28\)"):
        pairs.require((1, 28, 28), 3)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"seed": 2**64}, {"max_shift": -1}])
def test_sets_that_cannot_be_are_refused(pairs, wrong):
    with pytest.raises(capsnet.InputError):
        dataclasses.replace(pairs, **wrong)


def test_one_class_cannot_be_paired():
    ones = numbered(30).select(torch.tensor([5, 11]))
    with pytest.raises(capsnet.InputError, match="of one"):
        PairSet(ones, 10)
