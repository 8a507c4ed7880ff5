"""How errors are counted, of single images and of pairs, with and without averaging; and what chance leaves open."""

import numpy as np
import pytest
import torch
from scipy import stats

import capsnet
from capsnet.data import PairSet
from capsnet.data.augment import shift
from capsnet.evaluation import Evaluation, independent_pairs, missed_things, probabilities, wilson_interval


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(64))


def small(in_shape=(1, 28, 28)):
    torch.manual_seed(0)
    return capsnet.CapsNet(in_shape, 10, conv_channels=8, primary_types=2, decoder=False)


def test_a_pair_is_right_when_both_digits_are_and_each_digit_counts_for_itself():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.1, 0.9, 0.8], [0.2, 0.9, 0.3]])
    labels = torch.tensor([[1, 0], [0, 1], [1, 2], [0, 1]])
    # both right; 1 missed; both right; 0 missed
    expected = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0]]).bool()
    assert missed_things(scores, labels).equal(expected)
    assert missed_things(scores, labels[:, 0]).equal(torch.tensor([[True], [False], [False], [True]]))


def test_pairs_are_counted_as_by_hand(digits):
    model, pairs = small((1, 36, 36)), PairSet(digits, 1100)  # more than two batches
    outcome = capsnet.evaluate(model, pairs)
    batch = pairs.batch(0, 1100)
    scores = probabilities(model, batch.images)
    wrong = things = 0
    for row, labels, predicted in zip(scores, batch.labels, outcome.predictions, strict=True):
        best = {int(k) for k in row.argsort(descending=True)[:2]}
        assert set(predicted.tolist()) == best
        missed = len({int(k) for k in labels} - best)
        wrong += missed > 0
        things += missed
    assert (outcome.images, outcome.errors) == (1100, wrong)
    assert (outcome.things, outcome.thing_errors) == (2200, things)
    assert outcome.error == pytest.approx(100 * wrong / 1100)
    assert outcome.thing_error == pytest.approx(100 * things / 2200)


def test_single_images_have_one_thing_each(digits):
    model = small()
    outcome = capsnet.evaluate(model, digits)
    wrong = int((probabilities(model, digits.images).argmax(dim=1) != digits.labels).sum())
    assert (outcome.errors, outcome.thing_errors, outcome.things) == (wrong, wrong, 64)
    assert outcome.predictions.shape == (64,)


def test_answers_are_averaged_over_shifts(digits):
    model = small()
    expected = torch.zeros(64, 10)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = shift(digits.images, torch.tensor([[down, right]]).repeat(64, 1), 1)
            expected += probabilities(model, moved) / 9
    torch.testing.assert_close(probabilities(model, digits.images, shifts=1), expected)
    averaged = capsnet.evaluate(model, digits, shifts=1)
    assert averaged.predictions.equal(expected.argmax(dim=1))
    assert not torch.equal(expected, probabilities(model, digits.images))


def test_a_model_for_other_images_is_refused(digits):
    with pytest.raises(capsnet.InputError, match="takes images of"):
        capsnet.evaluate(small(), PairSet(digits, 5))


@pytest.mark.parametrize(("errors", "images"), [(0, 10), (1, 10), (5, 10), (10, 10), (25, 10_000), (10_000, 10_000)])
@pytest.mark.parametrize("confidence", [0.95, 0.5, 0.999])
def test_the_interval_is_wilsons(errors, images, confidence):
    published = stats.binomtest(errors, images).proportion_ci(confidence, method="wilson")
    assert wilson_interval(errors, images, confidence) == pytest.approx((published.low, published.high), abs=1e-12)


def test_the_interval_of_the_papers_error():
    outcome = Evaluation(10_000, 25, 10_000, 25, seconds=1.0, predictions=torch.zeros(1, dtype=torch.long))
    assert outcome.interval == pytest.approx((0.169, 0.369), abs=0.001)
    assert outcome.interval[0] < outcome.error < outcome.interval[1]
    assert wilson_interval(0, 400)[0] == 0
    assert wilson_interval(400, 400)[1] == 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    errors = stats.binom(200, 0.03)
    covered = sum(errors.pmf(k) for k in range(201) if wilson_interval(k, 200)[0] <= 0.03 <= wilson_interval(k, 200)[1])
    assert covered == pytest.approx(0.95, abs=0.03)


def test_the_variance_of_pairs_is_the_sum_over_all_that_share_a_digit():
    numbers = np.random.default_rng(0)
    first = numbers.permutation(30).repeat(4)
    members = np.stack([first, (first + numbers.integers(1, 30, size=120)) % 30], axis=1)
    wrong = numbers.random(120) < np.where(members.min(axis=1) < 6, 0.8, 0.1)  # some digits are hard to read
    residuals, sets = wrong - wrong.mean(), [set(pair) for pair in members.tolist()]
    products = (residuals[p] * residuals[q] for p in range(120) for q in range(120) if sets[p] & sets[q])
    share = wrong.mean()
    assert len(np.unique(np.sort(members), axis=0)) < 120  # some pairs are there twice
    independent = independent_pairs(wrong, members, 30)
    assert independent == pytest.approx(share * (1 - share) * 120**2 / sum(products))
    assert independent < 60
    assert independent_pairs(np.zeros(120, bool), members, 30) == 15


def test_many_pairs_of_few_digits_say_less(digits):
    """The interval holds what more digits would give, which that of so many independent images does not."""
    model, pairs = small((1, 36, 36)), PairSet(digits, 1100)
    outcome = capsnet.evaluate(model, pairs)
    assert outcome.independent is not None
    assert outcome.independent < 1100
    low, high = outcome.interval
    assert low < outcome.error < high
    assert high - low > 1.2 * (100 * np.diff(wilson_interval(outcome.errors, 1100)))


@pytest.mark.parametrize(("errors", "images"), [(-1, 10), (11, 10), (0, 0)])
def test_what_is_no_share_is_refused(errors, images):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(errors, images)
