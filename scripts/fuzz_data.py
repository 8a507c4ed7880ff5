"""Damage a user's data at random, and open it all the same.

    .venv/bin/python scripts/fuzz_data.py [--mutations 5000] [--seed 0] [--kind npz] [--only 17]

Pictures, IDX files, `.npz`, CSV and Parquet, folders of classes, smallNORB, affNIST, sets saved by `datasets`, and our
own cache. After as many mutations as are asked for come the bombs: small files that become large. Fails if anything
else is raised than an `InputError` of one line, if one takes longer than ten seconds, if the process grows by a
gigabyte or ends, or if anything is executed.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fuzz_bombs import BOMBS
from fuzz_sets import KINDS
from fuzzing import EXECUTED, Found, Work, in_children, refused, report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*KINDS, *BOMBS], help="one kind of data, or one bomb, alone")
    parser.add_argument("--no-bombs", action="store_true", help="not those, which take seconds each")
    parser.add_argument("--only", type=int, help="the mutation of this number alone")
    chosen = parser.parse_args()
    kinds = [chosen.kind] if chosen.kind else [*KINDS, *([] if chosen.no_bombs else BOMBS)]
    names = mutations_of(kinds, chosen.mutations)
    numbers = range(len(names)) if chosen.only is None else range(chosen.only, chosen.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        report(fuzz(Path(folder), names, numbers, chosen.seed))


def mutations_of(kinds: Sequence[str], count: int) -> list[str]:
    """Kinds of data by turns, then each bomb once."""
    changed = [kind for kind in kinds if kind in KINDS]
    return [changed[number % len(changed)] for number in range(count if changed else 0)] + [
        kind for kind in kinds if kind in BOMBS
    ]


def fuzz(folder: Path, names: Sequence[str], numbers: range, seed: int) -> Found:
    """Mutations of these kinds, in a process of its own whose cache is in `folder`."""

    def prepare(tell: Callable[[], None]) -> Work:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        torch.set_num_threads(1)
        _quiet()

        def work(number: int) -> str:
            for made in ("cache", "set"):
                shutil.rmtree(folder / made, ignore_errors=True)
            (folder / "set").mkdir()
            make = (KINDS | BOMBS)[names[number]]
            answers = []
            for use in make(random.Random(f"{seed} {number}"), folder / "set"):
                tell()
                answers.append(refused(use))
            return "refused" if all(answers) else "accepted"

        return work

    return in_children(prepare, names, numbers, folder / EXECUTED)


def _quiet() -> None:
    """Libraries of C tell what they find on the process's own standard error."""
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
