"""Runs that are stopped in the middle, and go on."""

import os
from dataclasses import make_dataclass

import pytest
import torch
from learning import QUICK, PullThePlug, fit, pairs_of, patched, small, small_for_pairs, weights

import capsnet
from capsnet import callbacks, runs
from capsnet.batches import Batches
from capsnet.training import _fingerprint


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(64))


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


def test_a_setting_of_a_later_version_makes_no_other_run_unless_it_is_used(digits):
    later = make_dataclass("Later", [("novelty", float, 0.0)], bases=(capsnet.Recipe,), frozen=True)
    model, now = small(), _fingerprint(small(), capsnet.Recipe(), digits)
    assert _fingerprint(model, later(), digits) == now
    assert _fingerprint(model, later(novelty=1.0), digits) != now
    assert _fingerprint(model, capsnet.Recipe(seed=1), digits) != now


RECIPES = {
    "plain": {},
    "average": {"ema_decay": 0.9},
    "everything": {
        **{"decay": "cosine", "warmup": 0.3, "weight_decay": 0.1, "ema_decay": 0.9},
        **{"rotation": 10.0, "scale": 0.1, "shear": 0.1, "elastic": 0.5, "crop": 24},
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
