"""Damage the files of a run folder at random, and use it all the same.

    .venv/bin/python scripts/fuzz_runs.py [--mutations 5000] [--seed 0]

Every mutation goes through what the commands use. Fails if anything else is raised than an `InputError` of one line, if
one takes longer than ten seconds, if the process grows by a gigabyte, if an answer is no finite number, or if anything
is executed.
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
from unittest.mock import patch

import safetensors.torch
import torch
from fuzzing import EXECUTED, GIGABYTE, Trap, bytes_changed, memory, refused, value_changed

import capsnet
from capsnet import callbacks, cli, runs
from capsnet.card import model_card
from capsnet.checkpoints import SafeCheckpointIO, seal
from capsnet.evaluation import probabilities
from capsnet.experiments import records, table
from capsnet.experiments.rows import ROWS
from capsnet.experiments.spatial import records as spatial_records
from capsnet.experiments.spatial.summary import Records, verdict
from capsnet.experiments.spatial.tables import as_json, as_text
from capsnet.insight.health import draw_health, read_history
from capsnet.prediction import Prediction
from capsnet.training import fit

RECIPE = capsnet.Recipe(epochs=2, batch_size=4, max_shift=0)
SEALED = "last.ckpt re-sealed"
"""A checkpoint that was changed, and sealed as if it had not been."""
RESULTS = Path(__file__).parents[1] / "results"
RECORD = min((RESULTS / records.FOLDER).glob("*.json")).relative_to(RESULTS).as_posix()
SPATIAL = min((RESULTS / spatial_records.FOLDER).glob("*-seed-0.json")).relative_to(RESULTS).as_posix()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), chosen.mutations, chosen.seed)
    for (name, outcome), count in sorted(found.items()):
        print(f"{name:<40} {outcome:<9} {count:6,}")


def images() -> capsnet.ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 17, 17), dtype=torch.uint8, generator=generator)
    return capsnet.ImageSet(pixels, torch.arange(8) % 2, ("a", "b"))


def model() -> capsnet.CapsNet:
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder_hidden=(8,))


def make_run(folder: Path) -> None:
    """A complete run, as `capsnet train` leaves it, of a network for which a step takes milliseconds.

    Beside it lies a checkpoint of its third step, in the middle of an epoch, and a record of each kind.
    """
    command = cli.Train(data="idx:nowhere", recipe=RECIPE)
    kept: list[bytes] = []
    save = SafeCheckpointIO.save_checkpoint

    def save_and_keep(storage: SafeCheckpointIO, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        save(storage, checkpoint, path, **options)
        kept.append(path.read_bytes())

    with (
        patch.object(SafeCheckpointIO, "save_checkpoint", save_and_keep),
        patch.object(callbacks, "CHECKPOINT_SECONDS", 0),
    ):
        fit(model(), images(), RECIPE, out=folder, progress=False, device="cpu", command=cli.as_json(command))
    (folder / SEALED).write_bytes(kept[2])
    runs.write_json(folder / runs.REPORT, {"test_error": 50.0, "test_errors": 4, "test_images": 8})
    # As of a version whose weights did not name their config: so that every other config is still looked at and used.
    weights = folder / runs.WEIGHTS
    runs.write_atomically(weights, safetensors.torch.save(safetensors.torch.load_file(weights)))
    for name in (RECORD, SPATIAL):
        (folder / name).parent.mkdir()
        shutil.copy(RESULTS / name, folder / name)


def uses(folder: Path) -> dict[str, list[Callable[[], Any]]]:
    """What is done with each file, once it is damaged."""

    def resume() -> Any:
        (folder / runs.WEIGHTS).unlink(missing_ok=True)
        fit(model(), images(), RECIPE, out=folder, resume=True, progress=False, device="cpu")
        return answer()

    def resume_sealed() -> Any:
        shutil.copy(folder / SEALED, folder / runs.CHECKPOINT)
        return resume()

    def parse() -> Any:
        return cli._parse(["train", "--resume", "--out", str(folder)])

    def answer() -> Any:
        run = runs.open_run(folder)
        shape = run.model.config["in_shape"]
        scores = probabilities(run.model, torch.full((1, *shape), 255, dtype=torch.uint8))
        return json.dumps(Prediction(folder, scores[0]).as_json(run.class_names), allow_nan=False)

    def test_set() -> Any:
        return runs.open_split(folder, "mnist")

    def card() -> Any:
        return model_card(runs.read_config(folder), runs.read_report(folder), "hub:a/b")

    def make_table() -> Any:
        lines = table.make_table(ROWS.values(), records.read_records(folder))
        return table.format_table(lines), json.dumps([line.as_json() for line in lines], allow_nan=False)

    def make_spatial_tables() -> Any:
        found = Records(spatial_records.read_records(folder))
        return verdict(found), as_text(found, ()), json.dumps(as_json(found), allow_nan=False)

    return {
        RECORD: [make_table],
        SPATIAL: [make_spatial_tables],
        SEALED: [resume_sealed],
        runs.CONFIG: [answer, test_set, parse, resume],
        runs.METRICS: [lambda: runs.read_metrics(folder), lambda: draw_health(read_history(folder))],
        runs.REPORT: [card],
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
    if name == runs.WEIGHTS:
        kinds += [lambda: _weights_changed(content, chance)] * 4
    if name == runs.CHECKPOINT:
        kinds += [lambda: _state_changed(content, chance, folder)] * 2
    if name == SEALED:
        kinds = [lambda: _resealed(content, chance)]
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


def _resealed(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint of ours, edited and sealed: one to three values, or a tensor."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    if chance.random() < 0.3:
        part = chance.choice((state["state_dict"], state["optimizer_states"][0]["state"][0]))
        name = chance.choice(list(part))
        part[name] = _tensor_changed(part[name], chance)
    else:
        for _ in range(chance.choice((1, 1, 3))):
            value_changed(chance.choice((state, state["loops"], state["callbacks"], state["optimizer_states"])), chance)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return seal(buffer.getvalue())


def _weights_changed(content: bytes, chance: random.Random) -> bytes:
    """Of another kind, size or shape: one of them, or all."""
    state = safetensors.torch.load(content)
    names = list(state) if chance.random() < 0.3 else [chance.choice(list(state))]
    seed = chance.random()
    return safetensors.torch.save(
        state | {name: _tensor_changed(state[name], random.Random(seed)).contiguous() for name in names}
    )


def _tensor_changed(tensor: torch.Tensor, chance: random.Random) -> torch.Tensor:
    kinds = (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.int64,
        torch.bool,
        torch.float8_e4m3fn,
    )
    sizes = (0.0, 1e-45, 1e10, 1e20, 3e38, float("inf"), float("nan"), -1.0)
    return chance.choice(
        (
            lambda: tensor.to(chance.choice(kinds)),
            lambda: tensor * chance.choice(sizes),
            lambda: torch.full_like(tensor, chance.choice(sizes)),
            lambda: chance.choice((tensor[None], tensor.flatten(), tensor[:0] if tensor.ndim else tensor[None])),
        )
    )()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
