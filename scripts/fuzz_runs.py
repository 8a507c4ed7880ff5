"""Damage the files of a run folder at random, and use it all the same.

    .venv/bin/python scripts/fuzz_runs.py [--mutations 5000] [--seed 0]

Every mutation goes through what the commands use. Fails if anything else is raised than an `InputError` of one line, if
one takes longer than ten seconds, if the process grows by a gigabyte, or if anything is executed.
"""

import argparse
import collections
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from fuzzing import EXECUTED, GIGABYTE, Trap, bytes_changed, memory, refused, value_changed

import capsnet
from capsnet import cli, runs
from capsnet.checkpoints import seal
from capsnet.insight.health import draw_health, read_history
from capsnet.training import fit

RECIPE = capsnet.Recipe(epochs=2, batch_size=4, max_shift=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), chosen.mutations, chosen.seed)
    for (name, outcome), count in sorted(found.items()):
        print(f"{name:<18} {outcome:<9} {count:6,}")


def images() -> capsnet.ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 17, 17), dtype=torch.uint8, generator=generator)
    return capsnet.ImageSet(pixels, torch.arange(8) % 2, ("a", "b"))


def model() -> capsnet.CapsNet:
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder_hidden=(8,))


def make_run(folder: Path) -> None:
    """A complete run, as `capsnet train` leaves it, of a network for which a step takes milliseconds."""
    command = cli.Train(data="idx:nowhere", recipe=RECIPE)
    fit(model(), images(), RECIPE, out=folder, progress=False, device="cpu", command=cli.as_json(command))
    runs.write_json(folder / runs.REPORT, {"test_error": 50.0, "test_images": 8})
    # As of a version whose weights did not name their config: so that every other config is still looked at and used.
    weights = folder / runs.WEIGHTS
    runs.write_atomically(weights, safetensors.torch.save(safetensors.torch.load_file(weights)))


def uses(folder: Path) -> dict[str, list[Callable[[], Any]]]:
    """What is done with each file, once it is damaged."""

    def resume() -> Any:
        (folder / runs.WEIGHTS).unlink(missing_ok=True)
        return fit(model(), images(), RECIPE, out=folder, resume=True, progress=False, device="cpu")

    def parse() -> Any:
        return cli._parse(["train", "--resume", "--out", str(folder)])

    def answer() -> Any:
        run = runs.open_run(folder)
        run.model.probabilities(torch.zeros(1, *run.model.config["in_shape"]))

    def test_set() -> Any:
        return runs.open_split(folder, "mnist")

    return {
        runs.CONFIG: [answer, test_set, parse, resume],
        runs.METRICS: [lambda: runs.read_metrics(folder), lambda: draw_health(read_history(folder))],
        runs.REPORT: [lambda: runs.read_json(folder / runs.REPORT)],
        runs.WEIGHTS: [answer],
        runs.CHECKPOINT: [resume],
    }


def fuzz(folder: Path, mutations: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """How often each file was refused and how often accepted (a change of a blank, say)."""
    chance = random.Random(seed)
    whole, cut = folder / "whole", folder / "cut"
    make_run(whole)
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    todo = uses(cut)
    before = memory()
    for number in range(mutations):
        name = list(todo)[number % len(todo)]
        shutil.copytree(whole, cut, dirs_exist_ok=True)
        damaged = mutate((whole / name).read_bytes(), name, chance, folder)
        for use in todo[name]:
            (cut / name).write_bytes(damaged)
            try:
                outcome = "refused" if refused(use) else "accepted"
            except BaseException:
                print(f"mutation {number} of {name}, seed {seed}; the file is kept as ./damaged", file=sys.stderr)
                Path("damaged").write_bytes(damaged)
                raise
            found[name, outcome] += 1
        if (folder / EXECUTED).exists():
            sys.exit(f"mutation {number} of {name} was executed")
        if memory() - before > GIGABYTE:
            sys.exit(f"mutation {number} of {name} took more than a gigabyte")
    return found


def mutate(content: bytes, name: str, chance: random.Random, folder: Path) -> bytes:
    kinds: list[Callable[[], bytes]] = [lambda: bytes_changed(content, chance)] * 2
    if name.endswith(".json"):
        kinds += [lambda: json.dumps(value_changed(json.loads(content), chance)).encode()] * 6
    if name == runs.METRICS:
        kinds += [lambda: _cell_changed(content.decode(), chance).encode()] * 2
    if name == runs.CHECKPOINT:
        kinds += [lambda: _state_changed(content, chance, folder)] * 2
    return chance.choice(kinds)()


def _cell_changed(text: str, chance: random.Random) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    row = chance.choice(rows)
    row[chance.randrange(len(row))] = chance.choice(("", "x", "nan", "inf", "-1e400", "0x1", '"', "\r", "é", "1,2"))
    return "\n".join(",".join(row) for row in rows)


def _state_changed(content: bytes, chance: random.Random, folder: Path) -> bytes:
    """A checkpoint of ours, edited and saved as PyTorch does; or with code in it, and sealed as ours is."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    trapped = chance.random() < 0.3
    if trapped:
        state[chance.choice(list(state))] = Trap(folder)
    buffer = io.BytesIO()
    torch.save(state if trapped else value_changed(state, chance), buffer)
    return seal(buffer.getvalue()) if trapped else buffer.getvalue()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
