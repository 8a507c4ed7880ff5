"""Kill -9 at random moments of one training run, some of them while a checkpoint is being written.

    .venv/bin/python scripts/kill_runs.py [--kills 20] [--seed 0] [--folder runs/killed]

After each kill the run is resumed by the command. Fails unless every kill leaves a checkpoint from which it goes on, at
most one step behind (one is written after every step here), no half-written file stays, and the final weights are bit
for bit those of an undisturbed run.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from capsnet import callbacks, cli, data, runs
from capsnet import training as _training  # noqa: F401 (now, and not in every process anew)
from capsnet.batches import Batches
from capsnet.commands import train

SIZES = {"conv_channels": 16, "primary_types": 4, "decoder_hidden": (32, 64)}
STEPS_PER_KILL = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the two runs are kept; by default nowhere")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        runs.make_folder(folder)
        make_small()
        kill_one_run(folder, chosen.kills, random.Random(chosen.seed))


def make_small() -> None:
    """A network and a test set that take milliseconds, and a checkpoint after every step."""
    whole = data.DATASETS["mnist"]
    data.DATASETS["mnist"] = lambda split: whole(split).first(200)
    train.sizes = lambda name, width: SIZES  # type: ignore[assignment]
    callbacks.CHECKPOINT_SECONDS = 0.0


def kill_one_run(folder: Path, kills: int, chance: random.Random) -> None:
    steps = (kills + 1) * STEPS_PER_KILL
    flags = f"train --limit 80 --held-out 16 --batch-size 16 --epochs {steps // 4 + 1} --ema-decay 0.9".split()
    whole, cut = folder / "whole", folder / "cut"
    started = time.perf_counter()
    finish(start([*flags, "--out", str(whole)], folder / "whole.steps"))
    print(f"undisturbed: {count(folder / 'whole.steps')} steps, {time.perf_counter() - started:.0f} s", flush=True)
    arguments = [*flags, "--out", str(cut)]
    for number in range(1, kills + 1):
        moment = ("in a step", "in a checkpoint", "in a step", "at the start")[number % 4]
        begun, told = kill_once(arguments, cut, folder / "cut.steps", moment, chance)
        checkpoint = cut / runs.CHECKPOINT
        saved = torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0
        litter = len(list(cut.glob(".*.partial")))
        print(f"kill {number:2}: {told}; step {begun} begun, {saved} saved, {litter} half-written", flush=True)
        if not saved <= begun <= saved + 2:  # the step whose checkpoint was being written, and the one begun by now
            sys.exit(f"more than one step was lost: {begun - 1} were done, {saved} are saved")
        arguments = ["train", "--resume", "--out", str(cut)]
        if not (cut / runs.CONFIG).exists():
            arguments = [*flags, "--out", str(cut)]  # killed before there was a run
    finish(start(arguments, folder / "cut.steps"))
    same = all((whole / name).read_bytes() == (cut / name).read_bytes() for name in (runs.WEIGHTS, runs.CONFIG))
    if list(cut.glob(".*.partial")) or not same:
        sys.exit("half-written files stayed, or the weights differ")
    print(f"after {kills} kills the final weights are bit for bit those of the undisturbed run")


def kill_once(arguments: list[str], folder: Path, steps: Path, moment: str, chance: random.Random) -> tuple[int, str]:
    """Start the command, kill it at some moment of its training; the step then begun, and what the moment was."""
    wanted = count(steps) + chance.randint(1, STEPS_PER_KILL - 3)
    pause = chance.uniform(0, 1.0 if moment == "at the start" else 0.05)
    process = start(arguments, steps)
    if moment == "at the start":
        told = f"{1000 * pause:.0f} ms after the start"
    else:
        wait_until(lambda: count(steps) >= wanted or ended(process))
        told = f"{1000 * pause:.0f} ms after a step began"
    if moment == "in a checkpoint":
        wait_until(lambda: any(folder.glob(f".{runs.CHECKPOINT}.*.partial")))
        told = "while a checkpoint was being written"
    else:
        time.sleep(pause)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return last(steps), told


def start(arguments: list[str], steps: Path) -> int:
    """The command in a process of its own, forked from this one, which never computes; notes the steps it begins."""
    if process := os.fork():
        return process
    batch = Batches.train_batch

    def noted(self: Batches, epoch: int, step: int) -> object:
        with open(steps, "a") as file:
            file.write(f"{epoch * len(self.train_dataloader()) + step + 1}\n")
        return batch(self, epoch, step)

    Batches.train_batch = noted  # type: ignore[assignment]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os._exit(cli.main(arguments))


def finish(process: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        sys.exit(f"the command failed with status {status}")


def ended(process: int) -> bool:
    if os.waitpid(process, os.WNOHANG) != (0, 0):
        sys.exit("the command ended before it could be killed; it could not go on")
    return False


def count(steps: Path) -> int:
    return len(list(lines(steps)))


def last(steps: Path) -> int:
    return int(["0", *lines(steps)][-1])


def lines(steps: Path) -> Iterator[str]:
    return (line for line in steps.read_text().split("\n") if line) if steps.exists() else iter(())


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.001)


if __name__ == "__main__":
    main()
