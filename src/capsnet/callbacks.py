"""What happens around the training steps: figures are recorded, checkpoints written, progress is shown."""

import contextlib
import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.optim.swa_utils import AveragedModel

from capsnet.batches import Batches
from capsnet.checks import is_number
from capsnet.data import ImageSet, Pairs
from capsnet.errors import InputError
from capsnet.health import vital_signs
from capsnet.models import CapsNet
from capsnet.runs import CHECKPOINT, METRICS, write_atomically
from capsnet.signals import HANGUP, ending_signals
from capsnet.streams import progress_console, tell

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written at the end of every epoch, and within an epoch when the last one is older than this."""
QUICK_CHECKPOINT_SECONDS = 20.0
"""On a GPU, an epoch's end has one only if the last one is older than this."""
CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite; each look makes a GPU wait."""


class TrainingInterruptedError(Exception):
    """Training was stopped by a signal; the message says where."""


class Recorder(Callback):
    """Averages the losses of each epoch and writes them as one line to `metrics.csv` and to the loggers.

    The vital signs of a CapsNet at the end of the epoch, measured on the `probe` images, go with them.
    The sums stay on the device until the epoch ends, and travel in the checkpoint, so that a resumed run records what
    an undisturbed one would. Of several processes each has sums of its own, until they are gathered.
    """

    def __init__(self, batches: Batches, folder: Path | None, probe: ImageSet | Pairs) -> None:
        self.batches = batches
        self.folder = folder
        self.probe = probe
        self.rows: list[dict[str, Any]] = []
        self.sums: dict[str, torch.Tensor] = {}
        self.seconds = 0.0  # of this epoch, before the last resumption
        self.started = 0.0
        self.has_begun = False
        """Whether a step was made, be it after a resumption."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()
        groups, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress.current
        epoch, step = divmod(trainer.global_step, self.batches.steps)
        group = math.ceil(step / self.batches.steps_at_once)
        forgotten = trainer.global_step > 0 and not trainer.optimizers[0].state
        # At the end of an epoch as many are done as there are, or none.
        if epoch != trainer.current_epoch or done.ready not in {group, group or groups} or forgotten:
            raise InputError(f"the checkpoint in {self.folder} is damaged: its parts contradict each other")
        self.check_position(trainer)
        self._leave_to_the_first(trainer)  # what a checkpoint has brought

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._add(outputs)
        self.has_begun = True
        if (batch_idx + 1) % max(1, CHECK_EVERY // self.batches.steps_at_once) == 0:
            self.refuse_unless_finite(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        totals = self.refuse_unless_finite(trainer)
        sums = {name: float(value) for name, value in totals.items()}
        images = sums.pop("images")
        held_out_images, held_out_errors = sums.pop("held_out_images", 0), sums.pop("held_out_errors", 0)
        seconds = self.seconds + time.perf_counter() - self.started
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {name: value / images for name, value in sums.items() if name != "errors"}
        row["train_error"] = 100 * sums["errors"] / images
        if held_out_images:
            row["held_out_error"] = 100 * held_out_errors / held_out_images
        if isinstance(pl_module.model, CapsNet):
            row |= vital_signs(pl_module.model, self.probe.images, self.probe.labels)
        row |= {
            "learning_rate": self.batches.recipe.rate(trainer.global_step - 1, self.batches.steps),
            "seconds": max(round(seconds, 2), 0.01),
            "images_per_second": round(images / seconds, 1),
        }
        self.rows.append(row)
        self.sums, self.seconds, self.started = {}, 0.0, time.perf_counter()
        if self.folder and trainer.is_global_zero:
            write_atomically(self.folder / METRICS, _as_csv(self.rows))
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in row.items()}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.started
        return {"rows": self.rows, "sums": {k: v.cpu() for k, v in self.sums.items()}, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows, sums, seconds = state_dict["rows"], state_dict["sums"], state_dict["seconds"]
        figures = [
            seconds,
            *(total.item() for total in sums.values()),
            *(value for row in rows for value in row.values()),
        ]
        if not all(map(is_number, figures)) or min(figures[: 1 + len(sums)]) < 0:
            raise InputError(f"the checkpoint in {self.folder} is damaged: its figures are none")
        self.rows, self.sums, self.seconds = rows, sums, seconds

    def check_position(self, trainer: Trainer) -> None:
        """Raises `InputError` unless there is a row for each epoch that is done."""
        if [row.get("epoch") for row in self.rows] != list(range(1, trainer.current_epoch + 1)):
            raise InputError(f"the checkpoint in {self.folder} is damaged: it does not tell of each epoch")

    def refuse_unless_finite(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        """The sums over all processes; the first process has them from here on.

        Raises `InputError` if any loss of this epoch so far was infinite or not a number. Every process must call it.
        """
        totals = self._gather(trainer)
        if all(bool(value.isfinite()) for value in totals.values()):
            return totals
        there = self.folder is not None and (self.folder / CHECKPOINT).exists()
        kept = f"; the last good checkpoint is kept in {self.folder}/{CHECKPOINT}" if there else ""
        raise InputError(
            f"the loss is no longer finite (epoch {trainer.current_epoch + 1}, before step {trainer.global_step}); "
            f"try a smaller learning rate{kept}"
        )

    def _gather(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        if trainer.world_size > 1 and self.sums:
            together = torch.stack([value.double() for value in self.sums.values()])
            torch.distributed.all_reduce(together)
            self.sums = {name: total.to(self.sums[name].dtype) for name, total in zip(self.sums, together, strict=True)}
        totals = self.sums
        self._leave_to_the_first(trainer)
        return totals

    def _leave_to_the_first(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}

    def _add(self, sums: dict[str, torch.Tensor]) -> None:
        for name, value in sums.items():
            if name != "loss":  # Lightning's own entry; ours are sums over images
                self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value.clone()


class MovingAverage(WeightAveraging):
    """Lightning's moving average of the weights, warmed up, and taken as the result at the end of training."""

    def __init__(self, decay: float) -> None:
        self.update = warmed_up_average(decay)
        super().__init__(multi_avg_fn=self.update)
        self.started = False

    @property
    def averaged(self) -> AveragedModel:
        assert self._average_model is not None
        return self._average_model

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and self.trainer_steps_alone

    @torch.no_grad()
    def follow(self, module: LightningModule) -> None:
        """After a step that Lightning does not see; no GPU is asked how many there were before."""
        averages = [*self.averaged.module.parameters(), *self.averaged.module.buffers()]
        before = self.averaged.n_averaged
        # The first time the average becomes the weights, which 9 / (10 - 1) does.
        self.update(averages, [*module.parameters(), *module.buffers()], torch.where(before == 0, -1, before))
        self.averaged.n_averaged += 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.to(trainer.strategy.root_device)  # where Lightning moves it next; the average stays where it is made
        super().setup(trainer, pl_module, stage)
        self.trainer_steps_alone = pl_module.automatic_optimization

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.started:  # a run killed after its last step; Lightning skips the loop, and the end of it
            self.on_train_end(trainer, pl_module)


def warmed_up_average(decay: float) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor], None]:
    """An exponential moving average that forgets faster at first: after n updates it keeps at most (1 + n) / (10 + n).

    With a fixed decay of 0.999, two thirds of the initial weights, which know nothing, would still be in the average
    after an epoch of MNIST. The averages are changed in place, without a new tensor and a copy of it.
    """

    def update(averages: Sequence[torch.Tensor], currents: Sequence[torch.Tensor], updates: torch.Tensor) -> None:
        new = (9 / (10 + updates)).clamp(min=1 - decay)
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, new.to(average.dtype))
            else:  # a count, as a stem's batch normalisation keeps
                average.copy_(current)

    return update


class StopAtError(Callback):
    """Ends training after the first epoch whose held-out error, in percent, is low enough."""

    def __init__(self, recorder: Recorder, error: float) -> None:
        self.recorder = recorder
        self.error = error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_reached(trainer)  # a run that was killed after that epoch has nothing left to do

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_reached(trainer)

    def _stop_if_reached(self, trainer: Trainer) -> None:
        if self.recorder.rows and self.recorder.rows[-1]["held_out_error"] <= self.error:
            trainer.should_stop = True


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` fresh, and turns Ctrl-C, SIGTERM and SIGHUP into a checkpoint after the step under way.

    Of several processes the first writes, by its clock; a signal to any of them stops all after the same step.
    Lightning calls subclasses of its `Checkpoint` after all other callbacks, so what is saved is complete.
    """

    def __init__(self, recorder: Recorder, folder: Path | None, fingerprint: str, speaks: bool = True) -> None:
        self.recorder = recorder
        self.speaks = speaks
        self.folder = folder
        self.fingerprint = fingerprint
        self.saved = time.perf_counter()
        self.interrupted = False
        self.group: Any = None

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGHUP are ours for as long as this lasts, if we are in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self._on_signal) for number in _signals()}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler of SIGTERM, set just now, broadcasts from wherever a process happens to be.
            for number in _signals():
                signal.signal(number, self._on_signal)
        if trainer.world_size > 1:  # on the CPU, so that no GPU waits for the answer
            self.group = torch.distributed.new_group(backend="gloo")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["fingerprint"] = self.fingerprint

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # the epoch's end follows, with what belongs to it, and saves
        due = trainer.is_global_zero and time.perf_counter() - self.saved > CHECKPOINT_SECONDS
        interrupted, due = self._any(self.interrupted, due)
        if interrupted or due:
            self._save(trainer, pl_module)
        if interrupted:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Where an epoch takes less than a second, to write it down would take as long.
        quick = self.recorder.batches.steps_at_once > 1
        young = quick and time.perf_counter() - self.saved < QUICK_CHECKPOINT_SECONDS
        if self.interrupted or not young:
            self._save(trainer, pl_module)
        (interrupted,) = self._any(self.interrupted)
        if interrupted and trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop(trainer)

    def _any(self, *flags: bool) -> list[bool]:
        """Each flag, whether any process has it."""
        if self.group is None:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX, self.group)
        return [bool(flag) for flag in raised]

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.folder:
            return
        self.recorder.refuse_unless_finite(trainer)
        # A finite loss can be followed by an update that is not; such weights must not replace good ones.
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise InputError("the weights are no longer finite; try a smaller learning rate")
        trainer.save_checkpoint(self.folder / CHECKPOINT)  # only the first process writes it
        self.saved = time.perf_counter()

    def _stop(self, trainer: Trainer) -> None:
        raise TrainingInterruptedError(f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.interrupted:
            self.interrupted = True
            if self.speaks:
                tell("stopping after this step …")
        elif number != HANGUP:  # a terminal's end may be signalled twice: by the system, and by the shell
            # The second time, at once; Lightning would answer a KeyboardInterrupt with exit 1.
            raise TrainingInterruptedError("the middle of a step")


class ShowProgress(Callback):
    """A bar on standard error with images/s, loss and time left in the run, and a line for each epoch done.

    The line comes when the epoch's checkpoint is there.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.told = 0  # epochs
        self.console = progress_console()
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s  loss {task.fields[loss]} "),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told = len(self.recorder.rows)
        total = self.recorder.batches.steps * (trainer.max_epochs or 0)
        self.progress.start()
        self.task = self.progress.add_task(
            "", total=total, completed=trainer.global_step, epoch=self._epoch(trainer), rate="–", loss="–"
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress.disable:
            return
        task = self.progress.tasks[self.task]
        fields: dict[str, Any] = {"epoch": self._epoch(trainer)}
        if batch_idx % 10 == 0:  # reading the loss makes a GPU wait
            fields["loss"] = f"{float(outputs['loss']):.4f}"
            fields["rate"] = f"{task.speed * self.recorder.batches.recipe.batch_size:,.0f}" if task.speed else "–"
        self.progress.update(self.task, completed=trainer.global_step, **fields)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_new_epochs(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_new_epochs(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._tell_new_epochs(trainer)
        self.progress.stop()

    def _tell_new_epochs(self, trainer: Trainer) -> None:
        for row in self.recorder.rows[self.told :]:
            held_out = f"  held-out error {row['held_out_error']:.2f} %" if "held_out_error" in row else ""
            self.console.print(
                f"epoch {row['epoch']}/{trainer.max_epochs}  loss {row['loss_mean']:.4f}  "
                f"train error {row['train_error']:.2f} %{held_out}  "
                f"{row['images_per_second']:,.0f} images/s  {row['seconds']:.0f} s",
                soft_wrap=True,
            )
        self.told = len(self.recorder.rows)

    @staticmethod
    def _epoch(trainer: Trainer) -> str:
        return f"{min(trainer.current_epoch + 1, trainer.max_epochs or math.inf)}/{trainer.max_epochs}"


def _signals() -> list[int]:
    return [signal.SIGINT, *ending_signals()]


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
