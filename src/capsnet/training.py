"""Training: one Lightning module, and `fit`."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from capsnet import runs
from capsnet.batch_norm import BatchNorm
from capsnet.batches import Batch, Batches, Part, RawBatch, mix_seed
from capsnet.callbacks import (
    Checkpoints,
    MovingAverage,
    Recorder,
    ShowProgress,
    StopAtError,
    TrainingInterruptedError,
)
from capsnet.checkpoints import SafeCheckpointIO
from capsnet.cuda_graph import GraphedStep, can_capture
from capsnet.data import ImageSet, PairSet, PosedSet, require_set
from capsnet.data.image_set import prints_of
from capsnet.data.pictures import Framing, measure_framing
from capsnet.devices import pick_device, seed_generators, training_precision, worth_at_once
from capsnet.errors import InputError, gist
from capsnet.evaluation import missed_things
from capsnet.health import PROBE
from capsnet.models import CapsNet, CapsuleDetector, CNNDetector, Loss, Model, model_name
from capsnet.optimizer import AdamW
from capsnet.processes import Team, find_team, working_together
from capsnet.recipe import Recipe

SEEN = 64
"""So many of the first training images a run can tell again."""


def fit(
    model: Model,
    train_set: ImageSet | PairSet,
    recipe: Recipe | None = None,
    *,
    held_out: ImageSet | PairSet | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    tensorboard: bool = False,
    progress: bool = True,
    command: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Train `model` in place; returns what `metrics.csv` holds, a dictionary for each epoch.

    Of a `PairSet` each epoch sees new pairs, and each digit is the target of its own reconstruction. Order, pairs and
    augmentation follow from the seed, the epoch and the step alone. The same call on the same machine gives
    the same weights, bit for bit, also when it was killed and resumed on the way.

    With `out`, a run folder is written: config first, checkpoints on the way, weights at the end. `resume` goes on from
    its last checkpoint, if model, recipe and images are the same. `held_out` is tested after each epoch, and training
    may stop by it (`recipe.stop_at_error`); errors are in percent. `command` is recorded in the run's config.
    `callbacks` are further ones for Lightning.

    With `devices`, so many processes share each batch (`recipe.batch_size` is that of all together) and add up their
    gradients; under torchrun and srun, those that were started. Every process runs the whole program, the first alone
    writes. The result is that of one process but for rounding, and for dropout, which each draws for itself.

    Raises `InputError` if model, data, recipe and folder do not fit, if a file cannot be written, or if the loss is no
    longer finite; `KeyboardInterrupt` after Ctrl-C, with the checkpoint written; `ProcessLostError` if another process
    has ended.
    """
    recipe = recipe or Recipe()
    for data in (train_set, *([held_out] if held_out is not None else [])):
        require_set(data)
    train_set = _with_or_without_poses(model, train_set, recipe)
    held_out = None if held_out is None else _cropped(held_out, recipe.crop)
    for data in (_cropped(train_set.first(1), recipe.crop), held_out):
        if data:
            data.require(model.config["in_shape"], model.config["num_classes"])
    if isinstance(train_set, ImageSet) and recipe.max_shift >= min(model.config["in_shape"][1:]):
        raise InputError(f"a shift by {recipe.max_shift} pixels leaves nothing of images of {model.config['in_shape']}")
    if recipe.stop_at_error and not held_out:
        raise InputError("to stop at an error, hold training images out (--held-out N): it is measured on them")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise InputError("training wants a float32 model: model.float()")
    if resume and out is None:
        raise InputError("to resume, name the run folder: out=…")
    if tensorboard and out is None:
        raise InputError("TensorBoard logs need a run folder: out=…")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("TensorBoard is not installed; install it with: pip install 'capsnet[tensorboard]'")
    team = find_team(pick_device(device), devices, nodes)
    decisive = [train_set, held_out] if held_out and recipe.stop_at_error else [train_set]
    fingerprint = _fingerprint(model, recipe, *decisive)
    folder = Path(out) if out is not None else None
    writes = folder is not None and team.rank == 0
    if folder and writes:
        if resume:
            _check_resumable(folder, fingerprint)
        else:
            runs.require_free(folder)
            runs.make_folder(folder)
    batches = Batches(train_set, held_out, recipe)
    if team.size == 1:
        batches.steps_at_once = worth_at_once(team.device, batches.steps * recipe.epochs)
    if folder and writes and resume:  # other processes, on other machines, need not see the folder
        batches.steps_at_once = _steps_at_once(folder)
        if batches.steps_at_once > 1 and team.size > 1:
            raise InputError(f"the run {folder} was begun by one process on a GPU; go on with it by one process")
    with runs.locked(folder) if folder and writes else contextlib.nullcontext():
        if folder and writes and not resume:
            sections: dict[str, Any] = {"recipe": asdict(recipe), "classes": list(train_set.class_names)}
            sections |= {"image_shape": train_set.image_shape, "framing": asdict(_framing(train_set))}
            sections |= {"command": dict(command or {})}
            if batches.steps_at_once > 1:
                sections["steps_at_once"] = batches.steps_at_once
            if isinstance(train_set, ImageSet):
                sections["seen"] = list(prints_of(train_set.first(SEEN)))
            runs.require_free(folder)  # of two that started at once one has the lock, and has begun
            runs.write_config(folder, model, fingerprint=fingerprint, **sections)
        started = writes and not resume
        with (
            runs.cleared_on_failure(folder) if folder and started else contextlib.nullcontext(),
            working_together(team),
        ):
            rows = _train(model, batches, folder, fingerprint, team, tensorboard, progress, callbacks)
        if folder and writes:
            runs.save_weights(model, folder)
    return rows


def _train(
    model: Model,
    batches: Batches,
    folder: Path | None,
    fingerprint: str,
    team: Team,
    tensorboard: bool,
    progress: bool,
    more_callbacks: Sequence[Callback],
) -> list[dict[str, Any]]:
    """From the folder's last checkpoint, if there is one, to the end."""
    recipe = batches.recipe
    average = MovingAverage(recipe.ema_decay) if recipe.ema_decay else None
    recorder = Recorder(batches, folder, _cropped(batches.train_set, recipe.crop).batch(0, PROBE))
    checkpoints = Checkpoints(recorder, folder, fingerprint, speaks=team.rank == 0)
    callbacks: list[Callback] = [recorder, checkpoints]
    if average:
        callbacks.insert(0, average)
    if recipe.stop_at_error:
        callbacks.append(StopAtError(recorder, recipe.stop_at_error))
    if progress and team.rank == 0:
        callbacks.insert(-1, ShowProgress(recorder))
    callbacks += more_callbacks
    checkpoint = folder / runs.CHECKPOINT if folder else None
    reader = SafeCheckpointIO(fingerprint)
    with _quiet_lightning(), checkpoints.catching_signals():
        trainer = Trainer(
            accelerator=team.device.type,
            devices=team.devices,
            num_nodes=team.nodes,
            strategy="ddp" if team.size > 1 else "auto",
            precision=training_precision(team.device),
            max_epochs=recipe.epochs,
            limit_val_batches=None if batches.held_out else 0,
            callbacks=callbacks,
            plugins=[reader, *([team.environment] if team.environment else [])],
            logger=TensorBoardLogger(folder, name="", version="tensorboard") if folder and tensorboard else False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        starts_from = checkpoint if checkpoint and checkpoint.exists() else None
        if team.size > 1:
            trainer.strategy.setup_environment()
            reader.broadcast = trainer.strategy.broadcast
            starts_from, first = trainer.strategy.broadcast((starts_from, fingerprint))
            if fingerprint != first:
                raise InputError("this process was given another model, recipe or training set than the first one")
        try:
            trainer.fit(
                GroupedTraining(model, recipe, average) if batches.steps_at_once > 1 else TrainingModule(model, recipe),
                datamodule=batches,
                ckpt_path=starts_from,
                weights_only=True,
            )
        except TrainingInterruptedError as stop:
            kept = "; the checkpoint is kept" if checkpoint and checkpoint.exists() else ""
            raise KeyboardInterrupt(f"interrupted in {stop}{kept}") from None
        except Exception as error:
            if starts_from is None or recorder.has_begun or team.size > 1 or isinstance(error, InputError):
                raise
            if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
                raise
            raise InputError(f"cannot go on from {starts_from}: {gist(error)}; remove it to start anew") from error
        recorder.check_position(trainer)
    model.cpu().eval()
    if isinstance(model, CapsNet):
        model.fold_batch_norm()
    return recorder.rows


class TrainingModule(LightningModule):
    """A model, its loss, Adam, and the recipe's learning rate."""

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
        self.batches.share_out(self.global_rank, self.trainer.world_size)
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.seed(batch_idx)

    def seed(self, step: int) -> None:
        """What draws at random inside the model (dropout) then depends on nothing but seed, epoch and step.

        Several processes draw differently, as they see different images. Counted from 1, because a seed sequence is the
        same without a 0 at its end, and that one is the epoch's.
        """
        own = (self.global_rank,) if self.global_rank else ()
        seed_generators(mix_seed(self.recipe.seed, self.current_epoch, step + 1, *own), self.device)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        part = self.batches.train_part(batch_idx)
        for layer in self.model.modules():
            if isinstance(layer, BatchNorm):
                layer.counts = part.images > 0
        loss, sums = self.loss_and_sums(self.batches.train_batch(self.current_epoch, batch_idx), part)
        # The processes' gradients are averaged; what is wanted is the mean over all images of the batch.
        return {"loss": loss.total * (part.share * self.trainer.world_size), **sums}

    def loss_and_sums(self, batch: Batch, part: Part) -> tuple[Loss, dict[str, torch.Tensor]]:
        """The loss of a batch, and what is summed over the images of an epoch."""
        images, labels, targets = batch
        loss = self.model.loss(images, labels, targets)
        sums = {"loss_mean": loss.total, **{f"{name}_loss": value for name, value in loss.parts.items()}}
        sums = {name: value.detach().float() * part.images for name, value in sums.items()}
        return loss, {**sums, **_count_errors(loss.scores, labels, part.images)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        images, labels, _ = self.batches.held_out_batch(batch_idx)
        counts = _count_errors(self.model.probabilities(images), labels, self.batches.held_out_part(batch_idx).images)
        return {f"held_out_{name}": count for name, count in counts.items()}

    def make_optimizer(self) -> AdamW:
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        return AdamW(
            [{"params": weights, "weight_decay": self.recipe.weight_decay}, {"params": biases, "weight_decay": 0}],
            lr=1.0,
        )

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        # The scheduler multiplies the rate given there, which must therefore be 1.
        steps = self.batches.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.recipe.rate(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class GroupedTraining(TrainingModule):
    """The same, but that Lightning sees so many steps as one (`Batches.steps_at_once`).

    Between two steps Lightning takes longer than a GPU for a step of MNIST's CapsNet. On a GPU each step is one
    replayed graph, with optimizer and moving average; a run that began there can go on elsewhere, step by step.
    """

    def __init__(self, model: Model, recipe: Recipe, average: MovingAverage | None) -> None:
        super().__init__(model, recipe)
        self.automatic_optimization = False
        self.averages = [average] if average else []

    def configure_optimizers(self) -> Any:
        return self.make_optimizer()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.graph: GraphedStep | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        pass  # each step is seeded by itself

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        totals: dict[str, torch.Tensor] = {}
        steps = self.batches.steps_of(batch_idx)
        for step in steps:
            self.seed(step)
            for name, value in self._take_step(step).items():
                totals[name] = totals[name] + value if name in totals else value.clone()
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counted in (progress.total, progress.current):  # it is from these that Lightning knows its global step
            counted.ready += len(steps)
            counted.completed += len(steps)
        return {"loss": totals["loss_mean"] / totals["images"], **totals}

    def _take_step(self, step: int) -> dict[str, torch.Tensor]:
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, AdamW)
        part = self.batches.train_part(step)
        raw = self.batches.raw_batch(self.current_epoch, step)
        rate = self.recipe.rate(self.current_epoch * self.batches.steps + step, self.batches.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not can_capture(self.device) or part.images < self.recipe.batch_size:
            return self._whole_step(raw, part)
        if self.graph is None:
            kept = [average.averaged for average in self.averages]
            self.graph = GraphedStep(lambda batch: self._whole_step(batch, part), [self.model, *kept], optimizer, raw)
        return self.graph(raw, rate)

    def _whole_step(self, raw: RawBatch, part: Part) -> dict[str, torch.Tensor]:
        optimizer, kind = self.trainer.optimizers[0], self.device.type
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            loss, sums = self.loss_and_sums(raw.to_float(), part)
        with torch.autocast(kind, enabled=False):
            loss.total.backward()
            optimizer.step()
            for average in self.averages:
                average.follow(self)
        return sums


def _count_errors(scores: torch.Tensor, labels: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """`count` is that of the images, or 0 if they are not this process's to count."""
    errors = missed_things(scores.detach(), labels).any(dim=1)[:count].sum()
    return {"errors": errors, "images": torch.full_like(errors, count)}


def _fingerprint(model: Model, recipe: Recipe, *sets: ImageSet | PairSet) -> str:
    """Tells runs apart whose checkpoints must not be mixed: model, recipe, and every image and label that decides.

    Settings that are off do not count, so that a run can be resumed by a version that has more of them.
    """
    settings = {name: value for name, value in asdict(recipe).items() if value}
    digest = hashlib.sha256(json.dumps([model_name(model), model.config, settings]).encode())
    for data in sets:
        if isinstance(data, PairSet):
            digest.update(json.dumps([data.count, data.seed, data.max_shift]).encode())
            data = data.digits
        for tensor in (*data.pieces(), data.labels, *([data.poses] if isinstance(data, PosedSet) else [])):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _with_or_without_poses(model: Model, train_set: ImageSet | PairSet, recipe: Recipe) -> ImageSet | PairSet:
    """A detector learns poses, which must still be right after augmentation; no other model asks for them."""
    if isinstance(model, CapsuleDetector | CNNDetector):
        if not isinstance(train_set, PosedSet):
            raise InputError("a detector learns from images whose poses are known, as those of the data set faces are")
        if recipe.rotation or recipe.scale or recipe.shear or recipe.elastic or recipe.crop:
            raise InputError(
                "things whose poses are known are only shifted: leave out rotation, scale, shear, elastic and crop"
            )
    elif isinstance(train_set, PosedSet):
        return ImageSet(train_set.images, train_set.labels, train_set.class_names)
    return train_set


def _framing(train_set: ImageSet | PairSet) -> Framing:
    if isinstance(train_set, PairSet):
        pairs = train_set.batch(0, 1000)
        train_set = ImageSet(pairs.images, pairs.labels[:, 0], train_set.class_names)
    return train_set.framing or measure_framing(train_set)


def _cropped(data: ImageSet | PairSet, size: int) -> ImageSet | PairSet:
    """What a model sees that is trained on squares of `size` pixels a side; 0 for whole images."""
    if size and isinstance(data, PairSet):
        raise InputError("pairs are not cropped: a digit might fall outside; leave --crop out")
    return data.centre(size) if size and isinstance(data, ImageSet) else data


def _check_resumable(folder: Path, fingerprint: str) -> None:
    if runs.read_config(folder).get("fingerprint") != fingerprint:
        raise InputError(f"the run {folder} was started with another model, recipe or training set, and keeps its own")
    if (folder / runs.WEIGHTS).exists():
        raise InputError(f"the run {folder} is complete; there is nothing to resume")


def _steps_at_once(folder: Path) -> int:
    """Of a run that is gone on with: its checkpoint counts in these."""
    steps = runs.read_config(folder).get("steps_at_once", 1)
    if type(steps) is not int or not 1 <= steps <= 10_000:
        raise InputError(f"{folder / runs.CONFIG} is damaged: steps_at_once is {steps!r}")
    return steps


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
