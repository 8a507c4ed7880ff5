"""Training on tiny networks and sets: what is learnt, recorded, kept and resumed."""

import contextlib
import csv
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from process import run_python

import capsnet
from capsnet import callbacks, runs
from capsnet.batches import Batch, Batches
from capsnet.callbacks import warmed_up_average
from capsnet.data import PairSet

QUICK = {"epochs": 3, "batch_size": 16, "max_shift": 1}


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(64))


def small(seed=0, in_shape=(1, 28, 28), **sizes):
    torch.manual_seed(seed)
    sizes = {"conv_channels": 16, "primary_types": 4, "decoder_hidden": (32, 64), **sizes}
    return capsnet.CapsNet(in_shape, 10, **sizes)


def fit(model, digits, recipe=None, **options):
    return capsnet.fit(model, digits, recipe or capsnet.Recipe(**QUICK), device="cpu", progress=False, **options)


def weights(path):
    return (path / runs.WEIGHTS).read_bytes()


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


def patched(owner, name, value):
    patch = pytest.MonkeyPatch()
    patch.setattr(owner, name, value)
    return contextlib.closing(SimpleNamespace(close=patch.undo))


def test_a_checkpoint_of_another_run_is_refused(digits, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        fit(small(), digits, capsnet.Recipe(**QUICK, seed=seed), out=tmp_path / name)
        (tmp_path / name / runs.WEIGHTS).unlink()
    (tmp_path / "a" / runs.CHECKPOINT).write_bytes((tmp_path / "b" / runs.CHECKPOINT).read_bytes())
    with pytest.raises(capsnet.InputError, match="checkpoint of another run"):
        fit(small(), digits, out=tmp_path / "a", resume=True)
    with pytest.raises(capsnet.InputError, match="another model, recipe or training set"):
        fit(small(), digits.select(slice(32)), out=tmp_path / "a", resume=True)
    with pytest.raises(capsnet.InputError, match="another model, recipe or training set"):
        fit(small(iterations=1), digits, out=tmp_path / "a", resume=True)


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


class PullThePlug(BaseException):
    """As sudden as a test can be inside its own process; `test_cli.py` uses kill -9."""


RECIPES = {
    "plain": {},
    "average": {"ema_decay": 0.9},
    "everything": {
        **{"decay": "cosine", "warmup": 0.3, "weight_decay": 0.1, "ema_decay": 0.9},
        **{"rotation": 10.0, "scale": 0.1, "shear": 0.1, "crop": 24},
    },
}


def cut_short(data, recipe, folder, stop_at, held_out=None, shape=(1, 28, 28)):
    """Train until a certain step, counted from the start of the run, and pull the plug."""
    batch = Batches.train_batch

    def stop(self, epoch, step):
        if epoch * len(self.train_dataloader()) + step == stop_at:
            raise PullThePlug
        return batch(self, epoch, step)

    with patched(Batches, "train_batch", stop), pytest.raises(PullThePlug):
        fit(small(in_shape=shape), data, recipe, out=folder, held_out=held_out)
    assert not (folder / runs.WEIGHTS).exists()


@pytest.mark.parametrize("stop_at", [1, 4, 6, 8, 11])
@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(digits, tmp_path, monkeypatch, stop_at, options):
    # 64 images in batches of 16: steps 4 and 8 end an epoch.
    recipe = capsnet.Recipe(**QUICK, **options)
    shape = (1, 24, 24) if recipe.crop else (1, 28, 28)
    held_out = digits.select(slice(10))
    undisturbed = fit(small(in_shape=shape), digits, recipe, out=tmp_path / "whole", held_out=held_out)

    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)  # after every step
    cut_short(digits, recipe, tmp_path / "cut", stop_at, held_out, shape)
    # Another model object with other weights: all of it must come from the checkpoint.
    again = small(seed=9, in_shape=shape)
    resumed = fit(again, digits, recipe, out=tmp_path / "cut", held_out=held_out, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    timeless = [{k: v for k, v in row.items() if "second" not in k} for row in resumed]
    assert timeless == [{k: v for k, v in row.items() if "second" not in k} for row in undisturbed]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at_error", [0.0, 99.9])
def test_a_run_killed_after_its_last_checkpoint_is_finished_as_it_would_have_been(
    digits, tmp_path, monkeypatch, ema_decay, stop_at_error
):
    recipe = capsnet.Recipe(**QUICK, ema_decay=ema_decay, stop_at_error=stop_at_error)
    rows = fit(small(), digits, recipe, out=tmp_path / "whole", held_out=digits)
    assert len(rows) == (1 if stop_at_error else 3)

    def pull(*_):
        raise PullThePlug

    with patched(runs, "save_weights", pull), pytest.raises(PullThePlug):
        fit(small(), digits, recipe, out=tmp_path / "cut", held_out=digits)
    resumed = fit(small(seed=9), digits, recipe, out=tmp_path / "cut", held_out=digits, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert len(resumed) == len(rows)


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


def test_a_run_that_may_stop_early_keeps_the_images_that_it_stops_by(digits, tmp_path):
    recipe = capsnet.Recipe(**QUICK, stop_at_error=99.9)
    fit(small(), digits, recipe, out=tmp_path / "run", held_out=digits.select(slice(20)))
    (tmp_path / "run" / runs.WEIGHTS).unlink()
    with pytest.raises(capsnet.InputError, match="another model, recipe or training set"):
        fit(small(), digits, recipe, out=tmp_path / "run", held_out=digits.select(slice(30)), resume=True)


def test_dropout_is_resumed_bit_for_bit_too(digits, tmp_path, monkeypatch):
    images = digits.images[:, :, 8:20, 8:20].contiguous()
    crops = capsnet.ImageSet(images, digits.labels, digits.class_names)
    recipe = capsnet.Recipe(epochs=1, batch_size=16, max_shift=0)

    def cnn():
        torch.manual_seed(0)
        return capsnet.BaselineCNN((1, 12, 12), 10)

    fit(cnn(), crops, recipe, out=tmp_path / "whole")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    batch = Batches.train_batch

    def stop(self, epoch, step):
        if step == 2:
            raise PullThePlug
        return batch(self, epoch, step)

    with patched(Batches, "train_batch", stop), pytest.raises(PullThePlug):
        fit(cnn(), crops, recipe, out=tmp_path / "cut")
    torch.manual_seed(12345)  # the state of the global generator is nothing that a run depends on
    fit(cnn(), crops, recipe, out=tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_the_moving_average_warms_up():
    average = warmed_up_average(0.999)
    zero, one = torch.zeros(1), torch.ones(1)
    assert average(zero, one, 0).item() == pytest.approx(0.9)  # keeps a tenth of the past at first
    assert average(zero, one, torch.tensor(90)).item() == pytest.approx(0.09)
    assert average(zero, one, torch.tensor(10**6)).item() == pytest.approx(0.001, rel=1e-3)


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
        return Batch(images * float("nan") if (epoch, step) == (1, 1) else images, labels)

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


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1e-6},
        {"learning_rate": float("nan")},
        {"max_shift": -1},
        {"ema_decay": 1.0},
        {"warmup": 1.0},
        {"warmup": -1.0},
        {"weight_decay": -0.1},
        {"rotation": -1.0},
        {"scale": 1.0},
        {"shear": float("nan")},
        {"stop_at_error": 100.0},
        {"seed": -1},
        {"seed": 10**30},
        {"learning_rate": float("inf")},
    ],
)
def test_recipes_that_cannot_be_are_refused(wrong):
    with pytest.raises(capsnet.InputError):
        capsnet.Recipe(**wrong)


def test_recipes_of_the_wrong_kind_are_refused():
    # Without the shape checks of the test run, which would be first to complain.
    told = run_python("""
        import capsnet
        for wrong in ({"decay": "stepwise"}, {"crop": 2.5}, {"epochs": "3"}, {"rotation": None}):
            try:
                print("taken:", capsnet.Recipe(**wrong))
            except capsnet.InputError as error:
                print(error)
    """)
    assert told.splitlines() == [
        "unknown decay 'stepwise'; there are: exponential, cosine, linear",
        "crop must be a whole number, not 2.5",
        "epochs must be a whole number, not '3'",
        "rotation must be a finite number, not None",
    ]


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


def test_a_run_folder_is_not_overwritten_and_a_resumed_run_keeps_its_recipe(digits, tmp_path):
    fit(small(), digits, out=tmp_path / "run")
    with pytest.raises(capsnet.InputError, match="already holds a run"):
        fit(small(), digits, out=tmp_path / "run")
    with pytest.raises(capsnet.InputError, match="another model, recipe or training set"):
        fit(small(), digits, capsnet.Recipe(**{**QUICK, "epochs": 4}), out=tmp_path / "run", resume=True)
    with pytest.raises(capsnet.InputError, match="complete"):
        fit(small(), digits, out=tmp_path / "run", resume=True)
    with pytest.raises(capsnet.InputError, match="no run folder"):
        fit(small(), digits, out=tmp_path / "none", resume=True)


def test_the_rate_rises_in_a_line_and_falls_as_the_recipe_says():
    steps, epochs = 10, 4
    base = {"epochs": epochs, "learning_rate": 0.1, "final_learning_rate": 0.001}
    exponential = [capsnet.Recipe(**base).rate(step, steps) for step in range(40)]
    assert exponential == pytest.approx([0.1 * (0.01 ** (step / 39)) for step in range(40)])
    warm = [capsnet.Recipe(**base, warmup=0.125, decay="linear").rate(step, steps) for step in range(40)]
    assert warm[:6] == pytest.approx([0.1 / 6, 0.2 / 6, 0.3 / 6, 0.4 / 6, 0.5 / 6, 0.1])
    assert warm[5:] == pytest.approx([0.1 - 0.099 * n / 34 for n in range(35)])
    cosine = [capsnet.Recipe(**base, decay="cosine").rate(step, steps) for step in range(40)]
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[13] == pytest.approx(0.001 + 0.099 * 0.75)  # a third of the way: cos 60° = 1/2
    assert cosine[39] == pytest.approx(0.001)


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


def pairs_of(digits, count=64):
    return PairSet(digits, count, max_shift=1)


def small_for_pairs(seed=0):
    return small(seed, in_shape=(1, 30, 30))


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


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "rotation": 10.0, "warmup": 0.5}], ids=["plain", "more"])
def test_training_on_pairs_is_resumed_bit_for_bit(digits, tmp_path, monkeypatch, options):
    recipe, pairs = capsnet.Recipe(epochs=2, batch_size=16, **options), pairs_of(digits)
    rest, held_out = pairs.hold_out(20)
    fit(small_for_pairs(), rest, recipe, out=tmp_path / "whole", held_out=held_out)
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    cut_short(rest, recipe, tmp_path / "cut", 6, held_out, (1, 30, 30))
    fit(small_for_pairs(9), rest, recipe, out=tmp_path / "cut", held_out=held_out, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    (tmp_path / "cut" / runs.WEIGHTS).unlink()
    with pytest.raises(capsnet.InputError, match="another model, recipe or training set"):
        fit(small_for_pairs(), rest.reseeded(1), recipe, out=tmp_path / "cut", resume=True)


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


@pytest.mark.parametrize("number", [28, 30])  # disk full; read-only
def test_a_disk_that_fails_in_the_middle_leaves_the_last_checkpoint_from_which_the_run_goes_on(
    digits, tmp_path, monkeypatch, number
):
    fit(small(), digits, out=tmp_path / "whole")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    flushes = []

    def fail(descriptor):
        flushes.append(descriptor)
        if len(flushes) > 12:
            raise OSError(number, os.strerror(number))

    with patched(os, "fsync", fail), pytest.raises(capsnet.InputError, match="what was saved before is intact"):
        fit(small(), digits, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.partial"))
    assert torch.load(tmp_path / "run" / runs.CHECKPOINT, weights_only=True)["global_step"] > 2
    fit(small(), digits, out=tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_checkpoint_that_was_edited_is_refused_whoever_saved_it(digits, tmp_path):
    fit(small(), digits, out=tmp_path / "run")
    (tmp_path / "run" / runs.WEIGHTS).unlink()
    path = tmp_path / "run" / runs.CHECKPOINT
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "loops": 3}, path)  # with our fingerprint
    with pytest.raises(capsnet.InputError, match=r"last\.ckpt is damaged"):
        fit(small(), digits, out=tmp_path / "run", resume=True)


def test_a_run_killed_before_its_config_can_be_started_again(digits, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.123.partial").write_bytes(b"{")
    fit(small(), digits, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.partial"))
