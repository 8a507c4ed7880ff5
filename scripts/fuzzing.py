"""What the scripts share that damage files at random: how bytes are changed, and what must not happen then."""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import capsnet

SECONDS, PATIENCE = 10, 120
"""Of computing, and of waiting: a busy machine is not the reader's fault, but what waits for ever is."""
GRACE = 30
"""So many seconds more has what runs in a library of C, where Python cannot interrupt it."""
GIGABYTE = 2**20  # of getrusage's kilobytes
EXECUTED = "executed"


class HangError(BaseException):
    """Not an Exception: a reader that turns whatever it stumbles over into an `InputError` must not hide it."""


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.folder / EXECUTED), "w")


def refused(use: Callable[[], Any]) -> bool:
    """Whether `use` raises an `InputError` of one line. Anything else goes on, and what hangs raises a `HangError`."""
    used, started = time.process_time(), time.monotonic()

    def took() -> str:
        return f"{time.process_time() - used:.1f} s of computing, {time.monotonic() - started:.0f} s in all"

    def hang(number: int, frame: FrameType | None) -> None:
        raise HangError(took())

    for number, timer, seconds in TIMERS:
        signal.signal(number, hang)
        signal.setitimer(timer, seconds())
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            use()
    except capsnet.InputError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"refused, but not in one line: {str(error)!r}") from error
        return True
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
    if time.process_time() - used > SECONDS + 1:  # in a library of C that heard no signal
        raise HangError(took())
    return False


TIMERS = (
    (signal.SIGALRM, signal.ITIMER_REAL, lambda: PATIENCE),
    (signal.SIGPROF, signal.ITIMER_PROF, lambda: SECONDS),
)


def bytes_changed(content: bytes, chance: random.Random, reach: int | None = None) -> bytes:
    """Cut off, overwritten, taken out, put in, or another file altogether; within the first `reach` bytes."""
    changed = bytearray(content)
    start = chance.randrange(min(len(content), reach or len(content)) + 1)
    length = chance.choice((1, 2, 8, 64, 1000))
    piece = bytes(chance.choice((0, 255, 48, 123, chance.randrange(256))) for _ in range(length))
    kind = chance.randrange(5)
    if kind == 0:
        del changed[start:]
    elif kind == 1:
        changed[start : start + length] = piece
    elif kind == 2:
        del changed[start : start + length]
    elif kind == 3:
        changed[start:start] = piece
    else:
        return pickle.dumps(piece)
    return bytes(changed)


STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 10**30, 2**63, 1.5, -0.0, float("nan"), float("inf"), 1e308),
    *("", "x", "0", "\x00", "../../etc", "mnist", "é" * 1000, [], {}, [[]], {"": {}}, [0] * 1000, [1, 17, 17]),
    *(
        2.0,
        -1.5,
        10**400,
        -(2**70),
        float("-inf"),
        5e-324,
        [True],
        [[2.5]],
        [3] * 100_000,
        [[3, 4]] * 1000,
        [[[1]]],
        "nan",
    ),
]


def value_changed(tree: Any, chance: random.Random) -> Any:
    """One value of the tree is another, gone, or under another name."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.05:
        return chance.choice(STRANGE)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = chance.choice(keys)
    fate = chance.random()
    if isinstance(tree[key], dict | list) and fate < 0.85:
        tree[key] = value_changed(tree[key], chance)
    elif fate < 0.9:
        tree[key] = chance.choice(STRANGE)
    elif isinstance(tree, dict) and fate < 0.95:
        tree[chance.choice(("", "x", "__class__", "self", *keys))] = tree.pop(key)
    else:
        del tree[key]
    return tree


def memory() -> int:
    """The most that this process has had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Found:
    """How often each kind of thing came out how, and what should not have happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        print(what, file=sys.stderr, flush=True)
        self.failures.append(what)


Work = Callable[[int], str]
"""Does mutation number n, and says how that came out."""

Prepare = Callable[[Callable[[], None]], Work]
"""Called in the process that is to do the work, with what to call at every part of a mutation that is done."""


def in_children(prepare: Prepare, names: Sequence[str], numbers: range, trap: Path) -> Found:
    """Does mutations, which are called by `names`, in a process of its own; if it ends, another one does the rest.

    Nor does anything else that fails keep the rest from being done. `trap` is a file that only a `Trap` makes.
    """
    found = Found()
    while numbers:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _work(writing, prepare, numbers, trap)
        os.close(writing)
        numbers = numbers[_listen(reading, child, names, numbers, found) :]
        os.close(reading)
    return found


def _work(pipe: int, prepare: Prepare, numbers: range, trap: Path) -> None:
    """In the child, which never returns. Tells a line for each part that is done, the last one with the outcome."""
    try:
        work, before = prepare(lambda: _tell(pipe)), memory()
        _tell(pipe)
        for number in numbers:
            try:
                outcome = work(number)
            except BaseException:
                _tell(pipe, failed=traceback.format_exc())
                continue
            if trap.exists():
                trap.unlink()
                _tell(pipe, failed="executed")
            elif memory() - before > GIGABYTE:
                _tell(pipe, failed=f"{(memory() - before) / GIGABYTE:.1f} GiB of memory")
                break  # what a process had at its most never falls
            else:
                _tell(pipe, outcome=outcome)
    except BaseException:
        _tell(pipe, broken=traceback.format_exc())
    finally:
        os._exit(0)


def _tell(pipe: int, **what: Any) -> None:
    os.write(pipe, json.dumps(what).encode() + b"\n")


def _listen(pipe: int, child: int, names: Sequence[str], numbers: range, found: Found) -> int:
    """Until the child ends; how many mutations are behind it."""
    done, silent = 0, False

    def label() -> str:
        return f"mutation {numbers[done]} ({names[numbers[done]]})"

    for line in _lines(pipe):
        if line is None:
            silent = True
            os.kill(child, signal.SIGKILL)
        elif "broken" in line:
            raise RuntimeError(line["broken"])
        elif line:
            if "failed" in line:
                found.fail(f"{label()}: {line['failed']}")
            else:
                found.outcomes[names[numbers[done]], line["outcome"]] += 1
            done += 1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        found.fail(f"{label()}: " + ("it hangs" if silent else f"the process ended with status {status}"))
        done += 1
    return done


def _lines(pipe: int) -> Iterator[dict[str, Any] | None]:
    """What the child tells; None, and no more, when it tells nothing for too long."""
    rest, patience = b"", 5 * PATIENCE  # until it has begun
    while True:
        if not select.select([pipe], [], [], patience)[0]:
            yield None
            return
        piece = os.read(pipe, 2**16)
        if not piece:
            return
        patience = PATIENCE + GRACE
        *whole, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, whole)


def report(found: Found) -> None:
    """Prints how often what came out; ends with status 1 if anything failed."""
    for (name, outcome), count in sorted(found.outcomes.items()):
        print(f"{name:<28} {outcome:<9} {count:6,}")
    if found.failures:
        sys.exit(f"{len(found.failures)} of {found.outcomes.total() + len(found.failures):,} mutations failed")
