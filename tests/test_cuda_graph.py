"""The step that a GPU replays, on the CPU: what is captured there is here computed anew each time."""

from dataclasses import replace

import pytest
import torch
from learning import patched, small

import capsnet
from capsnet import cuda_graph, training
from capsnet.batches import Batches
from capsnet.data import PairSet
from capsnet.models import BaselineCNN


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(200))


@pytest.fixture
def replaying(monkeypatch):
    """As on a GPU, but that nothing is captured; counts the steps that were replayed."""
    replays = []

    def captured(work):
        return lambda: replays.append(1) or work()

    monkeypatch.setattr(training, "worth_at_once", lambda device, steps: 4)
    monkeypatch.setattr(training, "can_capture", lambda device: True)
    monkeypatch.setattr(cuda_graph, "_on_side_stream", lambda work: work())
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    return replays


RECIPE = capsnet.Recipe(epochs=2, batch_size=32, decay="cosine", warmup=0.2, weight_decay=0.01, ema_decay=0.9)


def trained(build, data, recipe=RECIPE, **options):
    torch.manual_seed(0)
    model = build()
    rows = capsnet.fit(model, data, recipe, progress=False, device="cpu", **options)
    return model, [{name: value for name, value in row.items() if "second" not in name} for row in rows]


MODELS = {
    "capsnet": small,
    "normalised": lambda: small(batch_norm=True, temperature=10.0),
    "dropout": lambda: BaselineCNN((1, 28, 28), 10, width=0.05),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_replayed_run_is_the_ordinary_one(build, digits, replaying, monkeypatch):
    replayed, rows = trained(build, digits)
    assert len(replays := replaying) == 2 * (200 // 32)  # the last batch of an epoch is smaller
    with monkeypatch.context() as patch:
        patch.setattr(training, "worth_at_once", lambda device, steps: 1)
        plain, expected = trained(build, digits)
    assert len(replays) == 12
    assert_alike(rows, expected)
    for name, weight in plain.state_dict().items():
        assert (weight - replayed.state_dict()[name]).abs().max() <= 1e-5 * weight.abs().max(), name


def assert_alike(rows, expected):
    """But for rounding: on the device the rate is in float32."""
    for row, right in zip(rows, expected, strict=True):
        assert row == pytest.approx(right, rel=1e-5)


def train_until_killed(digits, folder):
    """In the middle of the second epoch."""
    raw_batch = Batches.raw_batch

    def stops(self, epoch, step):
        if epoch == 1 and step == 3:
            raise RuntimeError("pulled the plug")
        return raw_batch(self, epoch, step)

    with patched(Batches, "raw_batch", stops), pytest.raises(RuntimeError, match="plug"):
        trained(small, digits, out=folder)


def test_a_replayed_run_is_resumed_as_an_ordinary_one_is(digits, replaying, tmp_path):
    undisturbed, _ = trained(small, digits, out=tmp_path / "undisturbed")
    train_until_killed(digits, tmp_path / "killed")
    resumed, _ = trained(small, digits, out=tmp_path / "killed", resume=True)
    for name, weight in undisturbed.state_dict().items():
        assert weight.equal(resumed.state_dict()[name]), name


def test_a_run_that_began_on_a_gpu_goes_on_without_one(digits, replaying, tmp_path, monkeypatch):
    undisturbed, _ = trained(small, digits, out=tmp_path / "undisturbed")
    train_until_killed(digits, tmp_path / "killed")
    monkeypatch.setattr(training, "can_capture", lambda device: False)
    monkeypatch.setattr(training, "worth_at_once", lambda device, steps: 1)
    resumed, rows = trained(small, digits, out=tmp_path / "killed", resume=True)
    assert len(replaying) == 12 + 9  # none after it was killed
    assert [row["step"] for row in rows] == [7, 14]
    for name, weight in undisturbed.state_dict().items():
        assert (weight - resumed.state_dict()[name]).abs().max() <= 1e-5 * weight.abs().max(), name


def test_pairs_are_replayed_with_what_each_digit_looks_like(digits, replaying, monkeypatch):
    pairs = PairSet(digits, 96, max_shift=4)
    recipe = replace(RECIPE, max_shift=0)
    _, rows = trained(lambda: small(in_shape=(1, 36, 36)), pairs, recipe)
    assert len(replaying) == 6
    monkeypatch.setattr(training, "worth_at_once", lambda device, steps: 1)
    _, expected = trained(lambda: small(in_shape=(1, 36, 36)), pairs, recipe)
    assert_alike(rows, expected)


def test_the_average_follows_a_stem_that_counts(digits, replaying, monkeypatch):
    """Batch normalisation in a user's stem counts its batches; a count is taken over, not averaged."""

    def build():
        return small(stem=torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3)))

    replayed, rows = trained(build, digits)
    monkeypatch.setattr(training, "worth_at_once", lambda device, steps: 1)
    plain, expected = trained(build, digits)
    assert_alike(rows, expected)
    for model in (plain, replayed):
        assert int(model.state_dict()["stem.1.num_batches_tracked"]) == 14
