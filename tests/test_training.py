"""Training on tiny networks and sets: what is learnt, recorded and kept."""

import csv
import signal

import pytest
import torch
from learning import QUICK, fit, pairs_of, patched, small, small_for_pairs, weights

import capsnet
from capsnet import callbacks, runs
from capsnet.batches import Batch, Batches
from capsnet.callbacks import warmed_up_average
from capsnet.data import PairSet


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(64))


@pytest.mark.parametrize("ema_decay", [0.0, 0.999])  # such a decay must not hold a short run back
def test_64_images_are_learnt_to_zero_error(digits, ema_decay):
    model = small(conv_channels=32, primary_types=8)
    recipe = capsnet.Recipe(epochs=40, batch_size=16, max_shift=0, learning_rate=3e-3, ema_decay=ema_decay)
    rows = fit(model, digits, recipe)
    errors = capsnet.evaluate(model, digits).errors
    assert errors == 0
    assert rows[-1]["loss_mean"] < rows[0]["loss_mean"] / 5
    assert rows[-1]["reconstruction_loss"] < rows[0]["reconstruction_loss"]


def test_the_cnn_learns_too():
    two = capsnet.open_dataset("mnist", "test")
    two = two.select(torch.nonzero(two.labels < 2)[:32, 0])
    small_images = capsnet.ImageSet(two.images[:, :, 4:24:2, 4:24:2].contiguous(), two.labels, two.class_names)
    torch.manual_seed(0)
    model = capsnet.BaselineCNN((1, 10, 10), 10)
    fit(model, small_images, capsnet.Recipe(epochs=6, batch_size=16, max_shift=0))
    errors = capsnet.evaluate(model, small_images).errors
    assert errors == 0


def test_a_run_leaves_everything_behind(digits, tmp_path):
    model = small()
    rows = fit(model, digits, out=tmp_path / "run", held_out=digits.select(slice(20)), tensorboard=True)
    recorded = list(csv.DictReader((tmp_path / "run" / runs.METRICS).open()))
    assert [int(row["epoch"]) for row in recorded] == [1, 2, 3]
    assert [float(row["held_out_error"]) for row in recorded] == [row["held_out_error"] for row in rows]
    assert float(recorded[-1]["learning_rate"]) == pytest.approx(3e-4)
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    loaded = capsnet.load(tmp_path / "run")
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor)
    assert not list((tmp_path / "run").glob("*.partial"))


def test_the_held_out_error_is_that_of_the_weights_at_hand(digits):
    model, held_out = small(), digits.select(slice(20, 50))
    rows = fit(model, digits.select(slice(20)), held_out=held_out)
    assert rows[-1]["held_out_error"] == pytest.approx(capsnet.evaluate(model, held_out).error)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(digits, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(small(), digits, capsnet.Recipe(**QUICK, seed=seed), out=tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_a_folder_with_other_things_in_it_is_left_alone(digits, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(capsnet.InputError, match="is not empty"):
        fit(small(), digits, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_cannot_train_in_one_folder(digits, tmp_path):
    fit(small(), digits, out=tmp_path / "run")
    (tmp_path / "run" / runs.WEIGHTS).unlink()
    with runs.locked(tmp_path / "run"), pytest.raises(capsnet.InputError, match="another process is training"):
        fit(small(), digits, out=tmp_path / "run", resume=True)


def test_signal_handlers_are_given_back(digits):
    before = signal.getsignal(signal.SIGINT)
    with patched(Batches, "train_batch", lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        fit(small(), digits)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_stops_at_the_first_epoch_that_is_good_enough(digits):
    rows = fit(small(), digits, capsnet.Recipe(**{**QUICK, "epochs": 8}), held_out=digits)
    errors = [row["held_out_error"] for row in rows]
    wanted = (max(errors) + min(errors)) / 2
    first = next(number for number, error in enumerate(errors) if error <= wanted)
    recipe = capsnet.Recipe(**{**QUICK, "epochs": 8}, stop_at_error=wanted)
    stopped = fit(small(), digits, recipe, held_out=digits)
    assert [row["held_out_error"] for row in stopped] == errors[: first + 1]
    assert 0 < first < 7
    with pytest.raises(capsnet.InputError, match="hold training images out"):
        fit(small(), digits, recipe)


def test_the_moving_average_warms_up():
    for updates, kept in ((0, 0.1), (90, 0.91), (10**6, 0.999)):  # a tenth of the past at first
        averages = [torch.tensor([2.0]), torch.full((2, 3), 2.0).t()]
        warmed_up_average(0.999)(averages, [torch.ones(1), torch.ones(3, 2)], torch.tensor(updates))
        for average in averages:
            torch.testing.assert_close(average, torch.full_like(average, 1 + kept))


def test_ema_gives_other_weights_than_none(digits, tmp_path):
    fit(small(), digits, out=tmp_path / "plain")
    fit(small(), digits, capsnet.Recipe(**QUICK, ema_decay=0.9), out=tmp_path / "averaged")
    assert weights(tmp_path / "plain") != weights(tmp_path / "averaged")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "CHECK_EVERY", 1)
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    batch = Batches.train_batch

    def poisoned(self, epoch, step):
        images, labels, _ = batch(self, epoch, step)
        return Batch(images * 1e30 if (epoch, step) == (1, 1) else images, labels)

    told = r"no longer finite.*epoch 2.*kept in"
    with patched(Batches, "train_batch", poisoned), pytest.raises(capsnet.InputError, match=told):
        fit(small(), digits, out=tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / runs.CHECKPOINT, weights_only=True)
    assert checkpoint["global_step"] == 5
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    fit(small(), digits, out=tmp_path / "run", resume=True)
    fit(small(), digits, out=tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(digits, tmp_path):
    with pytest.raises(capsnet.InputError, match="no longer finite"):
        fit(small(), digits, capsnet.Recipe(**QUICK, learning_rate=1e38), out=tmp_path / "run")
    assert not (tmp_path / "run" / runs.WEIGHTS).exists()


def test_model_and_data_must_fit(digits):
    with pytest.raises(capsnet.InputError, match=r"takes images of .*\(1, 20, 20\)"):
        fit(capsnet.CapsNet((1, 20, 20), 10, conv_channels=8), digits)
    with pytest.raises(capsnet.InputError, match="has 7 classes, but this set has 10"):
        fit(capsnet.CapsNet((1, 28, 28), 7, conv_channels=8), digits)


def test_nothing_is_written_for_a_call_that_cannot_be(digits, tmp_path, monkeypatch):
    with pytest.raises(capsnet.InputError, match="unknown device"):
        capsnet.fit(small(), digits, out=tmp_path / "run", device="bogus")
    with pytest.raises(capsnet.InputError, match="need a run folder"):
        fit(small(), digits, tensorboard=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(capsnet.InputError, match="TensorBoard is not installed"):
        fit(small(), digits, out=tmp_path / "run", tensorboard=True)
    with pytest.raises(capsnet.InputError, match="float32 model"):
        fit(small().double(), digits, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_follows_the_rate(digits):
    recipe = capsnet.Recipe(**QUICK, warmup=0.2, decay="cosine", learning_rate=0.002)
    rows = fit(small(), digits, recipe)
    assert [row["learning_rate"] for row in rows] == pytest.approx([recipe.rate(step, 4) for step in (3, 7, 11)])


def test_weight_decay_takes_a_share_of_the_rate_from_weights_and_none_from_biases(digits):
    def after_one_step(weight_decay):
        recipe = capsnet.Recipe(epochs=1, batch_size=64, weight_decay=weight_decay)
        model = small()
        fit(model, digits, recipe)
        return dict(model.named_parameters())

    start, plain, decayed = dict(small().named_parameters()), after_one_step(0.0), after_one_step(2.0)
    for name, parameter in start.items():
        expected = plain[name] - (0.001 * 2.0 * parameter if parameter.ndim > 1 else 0)
        torch.testing.assert_close(decayed[name], expected, rtol=0, atol=1e-6)


def test_pairs_are_learnt_recorded_and_separated(digits):
    two = digits.select(torch.nonzero(digits.labels < 3)[:6, 0])
    pairs = PairSet(two, 96, max_shift=0)
    recipe = capsnet.Recipe(epochs=24, batch_size=16, learning_rate=5e-3)
    model = small(conv_channels=32, primary_types=4)
    rows = fit(model, pairs, recipe, held_out=pairs)
    outcome = capsnet.evaluate(model, pairs)
    assert outcome.error < 10  # of three classes, two: a guess is right once in three
    assert rows[-1]["held_out_error"] == pytest.approx(outcome.error)
    assert rows[-1]["reconstruction_loss"] < rows[0]["reconstruction_loss"] / 2
    # Each digit, decoded alone, looks more like itself than like the other.
    batch = pairs.batch(0, 96)
    out = model(batch.images.float() / 255)
    decoded = model.reconstruct(out.capsules, batch.labels)
    own, other = ((decoded - d.float() / 255).square().sum((2, 3, 4)) for d in (batch.digits, batch.digits.flip(1)))
    assert (own < other).float().mean() > 0.9


def test_a_cnn_learns_pairs_too(digits):
    two = digits.select(torch.nonzero(digits.labels < 3)[:6, 0])
    crops = capsnet.ImageSet(two.images[:, :, 4:24, 4:24].contiguous(), two.labels, two.class_names)
    torch.manual_seed(0)
    model = capsnet.PoolingCNN((1, 20, 20), 10, padding=False)
    pairs = PairSet(crops, 64, max_shift=0)
    rows = fit(model, pairs, capsnet.Recipe(epochs=4, batch_size=16))
    assert rows[-1]["train_error"] < 20


def test_pairs_are_not_cropped(digits, tmp_path):
    with pytest.raises(capsnet.InputError, match="pairs are not cropped"):
        fit(small_for_pairs(), pairs_of(digits), capsnet.Recipe(crop=20), out=tmp_path / "run")
    with pytest.raises(capsnet.InputError, match="cannot cut 40×40"):
        fit(small(), digits, capsnet.Recipe(crop=40), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
