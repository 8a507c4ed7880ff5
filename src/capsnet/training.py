"""Training: one Lightning module, and `fit`."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger

from capsnet import runs
from capsnet.callbacks import Checkpoints, Recorder, SafeCheckpointIO, ShowProgress, TrainingInterruptedError
from capsnet.data.augment import shift
from capsnet.data.image_set import ImageSet, to_float
from capsnet.data.pictures import measure_framing
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.models import Model, model_name
from capsnet.recipe import Recipe

EVALUATION_BATCH = 500


def fit(
    model: Model,
    train_set: ImageSet,
    recipe: Recipe | None = None,
    *,
    held_out: ImageSet | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    tensorboard: bool = False,
    progress: bool = True,
    command: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place; returns what `metrics.csv` holds, a dictionary for each epoch.

    Order and augmentation follow from the seed, the epoch and the step alone. The same call on the same machine gives
    the same weights, bit for bit, also when it was killed and resumed on the way.

    With `out`, a run folder is written: config first, checkpoints on the way, weights at the end. `resume` goes on
    from its last checkpoint, if model, recipe and images are the same. `held_out` is tested after each epoch; errors
    are in percent. `command` is recorded in the run's config. Raises `InputError` if model, data, recipe and folder do
    not fit, if a file cannot be written, or if the loss is no longer finite; `KeyboardInterrupt` after Ctrl-C, with
    the checkpoint written.
    """
    recipe = recipe or Recipe()
    for image_set in (train_set, held_out):
        if image_set:
            image_set.require(model.config["in_shape"], model.config["num_classes"])
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise InputError("training wants a float32 model: model.float()")
    if resume and out is None:
        raise InputError("to resume, name the run folder: out=…")
    if tensorboard and out is None:
        raise InputError("TensorBoard logs need a run folder: out=…")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("TensorBoard is not installed; install it with: pip install 'capsnet[tensorboard]'")
    chosen = pick_device(device)
    fingerprint = _fingerprint(model, recipe, train_set)
    if out is None:
        return _train(model, train_set, recipe, held_out, None, fingerprint, chosen, tensorboard, progress)
    folder = Path(out)
    if resume:
        _check_resumable(folder, fingerprint)
    else:
        sections: dict[str, Any] = {"recipe": asdict(recipe), "classes": list(train_set.class_names)}
        sections |= {"framing": asdict(measure_framing(train_set)), "command": dict(command or {})}
        _start_run(folder, model, fingerprint=fingerprint, **sections)
    with runs.locked(folder):
        rows = _train(model, train_set, recipe, held_out, folder, fingerprint, chosen, tensorboard, progress)
        runs.save_weights(model, folder)
    return rows


def _train(
    model: Model,
    train_set: ImageSet,
    recipe: Recipe,
    held_out: ImageSet | None,
    folder: Path | None,
    fingerprint: str,
    device: torch.device,
    tensorboard: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    """From the folder's last checkpoint, if there is one, to the end."""
    recorder = Recorder(recipe.batch_size, folder)
    checkpoints = Checkpoints(recorder, folder, fingerprint)
    callbacks: list[Callback] = [recorder, checkpoints]
    if recipe.ema_decay:
        callbacks.insert(0, WeightAveraging(avg_fn=warmed_up_average(recipe.ema_decay)))
    if progress:
        callbacks.insert(-1, ShowProgress(recorder))
    checkpoint = folder / runs.CHECKPOINT if folder else None
    with _quiet_lightning(), checkpoints.catching_signals():
        trainer = Trainer(
            accelerator=device.type,
            devices=1,
            precision="bf16-mixed" if device.type == "cuda" else "32-true",
            max_epochs=recipe.epochs,
            limit_val_batches=None if held_out else 0,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO(fingerprint)],
            logger=TensorBoardLogger(folder, name="", version="tensorboard") if folder and tensorboard else False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(
                TrainingModule(model, recipe),
                datamodule=Batches(train_set, held_out, recipe),
                ckpt_path=checkpoint if checkpoint and checkpoint.exists() else None,
                weights_only=True,
            )
        except TrainingInterruptedError as stop:
            kept = "; the checkpoint is kept" if checkpoint and checkpoint.exists() else ""
            raise KeyboardInterrupt(f"interrupted in {stop}{kept}") from None
    model.cpu().eval()
    return recorder.rows


class Batches(LightningDataModule):
    """All images as one tensor on the device; a batch is cut from it by epoch and step.

    Lightning's loaders (`Steps`) only count. So nothing about the order has to be remembered in a checkpoint, and a
    run resumed in the middle of an epoch sees the batches that it would have seen.
    """

    def __init__(self, train_set: ImageSet, held_out: ImageSet | None, recipe: Recipe) -> None:
        super().__init__()
        self.train_set = train_set
        self.held_out = held_out
        self.recipe = recipe
        self.planned_epoch = -1

    def train_dataloader(self) -> "Steps":
        return Steps(math.ceil(len(self.train_set) / self.recipe.batch_size))

    def val_dataloader(self) -> "Steps":
        return Steps(math.ceil(len(self.held_out) / EVALUATION_BATCH) if self.held_out else 0)

    def move_to(self, device: torch.device) -> None:
        self.train_set = _moved(self.train_set, device)
        self.held_out = _moved(self.held_out, device) if self.held_out else None

    def train_batch(self, epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, H, W) from 0 to 1, shifted at random, and their labels (B,)."""
        if epoch != self.planned_epoch:
            self._plan(epoch)
        part = slice(step * self.recipe.batch_size, (step + 1) * self.recipe.batch_size)
        chosen = self.order[part]
        images = self.train_set.images[chosen]
        if self.recipe.max_shift:
            images = shift(images, self.offsets[part], self.recipe.max_shift)
        return to_float(images), self.train_set.labels[chosen]

    def held_out_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.held_out is not None
        part = slice(step * EVALUATION_BATCH, (step + 1) * EVALUATION_BATCH)
        return to_float(self.held_out.images[part]), self.held_out.labels[part]

    def _plan(self, epoch: int) -> None:
        """Order and shifts of a whole epoch, made on the CPU so that every device sees the same, and moved once."""
        device = self.train_set.images.device
        generator = torch.Generator().manual_seed(mix_seed(self.recipe.seed, epoch))
        reach, count = self.recipe.max_shift, len(self.train_set)
        self.order = torch.randperm(count, generator=generator).to(device)
        self.offsets = torch.randint(-reach, reach + 1, (count, 2), generator=generator).to(device)
        self.planned_epoch = epoch


class Steps:
    """What Lightning takes for a data loader: the numbers of an epoch's steps. Resumable, as it has no state."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class TrainingModule(LightningModule):
    """A model, its loss, Adam, and an exponentially falling learning rate."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe

    @property
    def batches(self) -> Batches:
        datamodule = getattr(self.trainer, "datamodule", None)
        assert isinstance(datamodule, Batches)
        return datamodule

    def on_fit_start(self) -> None:
        self.batches.move_to(self.device)
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What draws at random inside the model (dropout) then depends on nothing but seed, epoch and step.
        torch.manual_seed(mix_seed(self.recipe.seed, self.current_epoch, batch_idx))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        images, labels = self.batches.train_batch(self.current_epoch, batch_idx)
        loss = self.model.loss(images, labels)
        sums = {"loss_mean": loss.total, **{f"{name}_loss": part for name, part in loss.parts.items()}}
        sums = {name: value.detach().float() * len(images) for name, value in sums.items()}
        return {"loss": loss.total, **sums, **_count_errors(loss.scores, labels)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        images, labels = self.batches.held_out_batch(batch_idx)
        counts = _count_errors(self.model.probabilities(images), labels)
        return {f"held_out_{name}": count for name, count in counts.items()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.recipe.learning_rate, fused=True)
        steps = max(1, int(self.trainer.estimated_stepping_batches) - 1)
        fall = (self.recipe.final_learning_rate / self.recipe.learning_rate) ** (1 / steps)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, fall)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmed_up_average(decay: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]:
    """An exponential moving average that forgets faster at first: after n updates it keeps at most (1 + n) / (10 + n).

    With a fixed decay of 0.999, two thirds of the initial weights, which know nothing, would still be in the average
    after an epoch of MNIST.
    """

    def average(averaged: torch.Tensor, current: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
        count = torch.as_tensor(updates, dtype=averaged.dtype, device=averaged.device)
        keep = ((1 + count) / (10 + count)).clamp(max=decay)
        return torch.lerp(current, averaged, keep)

    return average


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, such that neighbouring ones give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _count_errors(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    errors = (scores.detach().argmax(dim=1) != labels).sum().double()
    return {"errors": errors, "images": torch.full_like(errors, len(labels))}


def _moved(image_set: ImageSet, device: torch.device) -> ImageSet:
    return ImageSet(image_set.images.to(device), image_set.labels.to(device), image_set.class_names)


def _fingerprint(model: Model, recipe: Recipe, train_set: ImageSet) -> str:
    """Tells runs apart whose checkpoints must not be mixed: model, recipe, and every training image and label."""
    digest = hashlib.sha256(json.dumps([model_name(model), model.config, asdict(recipe)]).encode())
    for tensor in (train_set.images, train_set.labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _start_run(folder: Path, model: Model, **sections: Any) -> None:
    """Raises `InputError` if there is anything in the folder already."""
    if (folder / runs.CONFIG).exists():
        raise InputError(f"{folder} already holds a run; resume it (--resume) or choose another folder (--out)")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"the folder {folder} is not empty; choose a new one for the run (--out)")
    runs.make_folder(folder)
    runs.write_config(folder, model, **sections)


def _check_resumable(folder: Path, fingerprint: str) -> None:
    if runs.read_config(folder).get("fingerprint") != fingerprint:
        raise InputError(f"the run {folder} was started with another model, recipe or training set, and keeps its own")
    if (folder / runs.WEIGHTS).exists():
        raise InputError(f"the run {folder} is complete; there is nothing to resume")


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning logs what it does, what it would advise and what it would sell; our user asked for none of it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
