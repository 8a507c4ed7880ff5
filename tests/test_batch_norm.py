"""Batch normalisation of the primary capsules: in training, folded at its end, shared by processes, in every file."""

import copy
import os
import signal
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch.multiprocessing.spawn import spawn

import capsnet
from capsnet import data
from capsnet.batch_norm import BatchNorm
from capsnet.batches import Batches
from capsnet.models import CapsNet
from capsnet.recipe import Recipe
from capsnet.training import TrainingModule


def tiny(**settings):
    torch.manual_seed(0)
    sizes = {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (8,), "batch_norm": True, "temperature": 10.0}
    return CapsNet((1, 20, 20), 3, **{**sizes, **settings})


def pictures(count, side=20):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    return data.ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"))


def after_steps(model, images):
    model.train()
    for _ in range(3):
        model.primary(model.features(images))
    return model.eval()


def test_folded_it_computes_the_same():
    images = data.to_float(pictures(4).images)
    model = after_steps(tiny(), images)
    with torch.no_grad():
        model.primary.norm.bias.normal_()
        expected = model(images)
        model.fold_batch_norm()
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model.primary.norm is None
    assert "batch_norm" not in model.config
    assert model.primary.conv.bias.requires_grad
    plain = tiny(batch_norm=False)
    assert plain.config == model.config
    plain.load_state_dict(model.state_dict())


def test_it_is_pytorchs_layer():
    x = torch.randn(5, 6, 2, 3) * 3 + 1
    ours, theirs = BatchNorm(6, scale=0.5), torch.nn.BatchNorm2d(6)
    torch.nn.init.constant_(theirs.weight, 0.5)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_is_loaded_as_the_network_that_training_leaves(tmp_path, ema_decay):
    model, images = tiny(), pictures(12)
    recipe = Recipe(epochs=2, batch_size=4, max_shift=0, ema_decay=ema_decay)
    capsnet.fit(model, images, recipe, held_out=images, out=tmp_path / "run", progress=False, device="cpu")
    loaded = capsnet.load(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded(data.to_float(images.images))[1], model(data.to_float(images.images))[1])
    assert loaded.config == model.config
    capsnet.save(loaded, tmp_path / "again")
    assert capsnet.load(tmp_path / "again").config == model.config


def test_a_model_that_was_never_folded_is_saved_loaded_and_copied(tmp_path):
    images = data.to_float(pictures(4).images)
    model = after_steps(tiny(), images)
    capsnet.save(model, tmp_path / "run")
    with torch.no_grad():
        expected = model(images)[1]
        loaded = capsnet.load(tmp_path / "run")
        assert torch.equal(loaded(images)[1], expected)
        loaded.fold_batch_norm()
        torch.testing.assert_close(copy.deepcopy(loaded)(images)[1], expected)


class Interrupt(Callback):
    """Ctrl-C in the third step."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_and_resumed_it_gives_the_same_weights(tmp_path):
    images, recipe = pictures(20), Recipe(epochs=2, batch_size=4, max_shift=1, ema_decay=0.9)
    whole, begun, resumed = tiny(), tiny(), tiny()
    rest = {"held_out": images, "progress": False, "device": "cpu"}
    capsnet.fit(whole, images, recipe, **rest)
    with pytest.raises(KeyboardInterrupt):
        capsnet.fit(begun, images, recipe, out=tmp_path / "run", callbacks=[Interrupt()], **rest)
    capsnet.fit(resumed, images, recipe, out=tmp_path / "run", resume=True, **rest)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_last_batch_of_one_image_on_a_grid_of_one_position_is_trained_on():
    model = CapsNet((1, 17, 17), 3, conv_channels=4, primary_types=2, decoder=False, batch_norm=True)
    rows = capsnet.fit(model, pictures(5, 17), Recipe(epochs=1, batch_size=4), progress=False, device="cpu")
    assert rows[0]["loss_mean"] > 0
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize(("rank", "counts"), [(0, False), (1, True)])
def test_of_two_processes_one_has_the_last_image_and_counts(monkeypatch, rank, counts):
    recipe = Recipe(batch_size=4, max_shift=0)
    batches = Batches(pictures(5), None, recipe)
    batches.share_out(rank, 2)
    for name, value in {"batches": batches, "current_epoch": 0, "trainer": SimpleNamespace(world_size=2)}.items():
        monkeypatch.setattr(TrainingModule, name, value)
    module = TrainingModule(tiny(), recipe)
    module.training_step(None, 1)
    assert module.model.primary.norm.counts is counts
    module.training_step(None, 0)
    assert module.model.primary.norm.counts


def in_process(rank, x, place):
    """What one of three processes computes; the last has no image of the batch, and computes the first one's."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    torch.distributed.init_process_group("gloo", f"file://{place}/meeting", rank=rank, world_size=3)
    layer = BatchNorm(6, scale=0.5)
    layer.counts = rank < 2
    own = x[[0, 1, 0]][rank : rank + 1].requires_grad_()
    out = layer(own)
    (out.square().sum() * layer.counts).backward()
    torch.save({"out": out.detach(), "grad": own.grad, **layer.state_dict()}, f"{place}/{rank}")
    torch.distributed.destroy_process_group()


def test_processes_share_the_statistics_of_the_images_that_are_of_the_batch(tmp_path):
    x = torch.randn(2, 6, 2, 3) * 3 + 1
    spawn(in_process, (x, str(tmp_path)), nprocs=3)
    parts = [torch.load(tmp_path / str(rank)) for rank in range(3)]
    alone = BatchNorm(6, scale=0.5)
    out = alone(x.requires_grad_())
    out.square().sum().backward()
    torch.testing.assert_close(torch.cat([part["out"] for part in parts[:2]]), out.detach())
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts[:2]]), x.grad, rtol=1e-3, atol=1e-4)
    for part in parts:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(part[name], alone.state_dict()[name])
