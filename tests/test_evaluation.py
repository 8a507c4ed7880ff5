import pytest
import torch
from scipy import stats

import capsnet
from capsnet.evaluation import Evaluation, wilson_interval


@pytest.mark.parametrize(("errors", "images"), [(0, 10), (1, 10), (5, 10), (10, 10), (25, 10_000), (10_000, 10_000)])
@pytest.mark.parametrize("confidence", [0.95, 0.5, 0.999])
def test_the_interval_is_wilsons(errors, images, confidence):
    published = stats.binomtest(errors, images).proportion_ci(confidence, method="wilson")
    assert wilson_interval(errors, images, confidence) == pytest.approx((published.low, published.high), abs=1e-12)


def test_the_interval_of_the_papers_error():
    outcome = Evaluation(images=10_000, errors=25, seconds=1.0, predictions=torch.zeros(1))
    assert outcome.interval == pytest.approx((0.169, 0.369), abs=0.001)
    assert outcome.interval[0] < outcome.error < outcome.interval[1]
    assert wilson_interval(0, 400)[0] == 0
    assert wilson_interval(400, 400)[1] == 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    errors = stats.binom(200, 0.03)
    covered = sum(errors.pmf(k) for k in range(201) if wilson_interval(k, 200)[0] <= 0.03 <= wilson_interval(k, 200)[1])
    assert covered == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("errors", "images"), [(-1, 10), (11, 10), (0, 0)])
def test_what_is_no_share_is_refused(errors, images):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(errors, images)


def test_an_evaluation_counts_the_wrong_ones():
    torch.manual_seed(0)
    digits = capsnet.open_dataset("mnist", "test").select(slice(60))
    outcome = capsnet.evaluate(capsnet.CapsNet((1, 28, 28), 10, conv_channels=8, primary_types=2), digits)
    wrong = sum(int(p) != int(label) for p, label in zip(outcome.predictions, digits.labels, strict=True))
    assert (outcome.images, outcome.errors) == (60, wrong)
    assert outcome.error == pytest.approx(100 * wrong / 60)
