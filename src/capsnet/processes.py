"""Several processes that train one model together: how many there are, who starts them, what happens when one ends.

Lightning would start the others itself. But when one of them dies, it kills the first with SIGKILL, up to five seconds
later and without a word; and it starts them by `sys.argv`, which is not how every program was started.
"""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from capsnet.errors import InputError, ProcessLostError
from capsnet.streams import tell

PARENT = "CAPSNET_PARENT"
"""The environment variable by which a process knows that it was started here, and by whom: its parent, no other."""
OURS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "OMP_NUM_THREADS")
"""Environment variables that are set while processes work together."""
TRIED = 8
"""On a CPU so many processes are allowed even where there are fewer cores, to try things out."""
LOOK_EVERY = 0.2
"""Seconds between two looks at whether the others are alive."""
PATIENCE = 5.0
"""So many seconds a process has to end by itself when another one is gone, before it is ended."""
QUIET, LONGEST = 15.0, 1800.0
"""Seconds to wait for processes that do not come: before saying so, and in all."""


@dataclass(frozen=True)
class Team:
    """`devices` processes on each of `nodes` machines, one a device; this one is number `rank` of all."""

    device: torch.device
    devices: int = 1
    nodes: int = 1
    rank: int = 0
    environment: ClusterEnvironment | None = None
    """What tells Lightning who is who; None for a single process."""
    starts_others: bool = False

    @property
    def size(self) -> int:
        return self.devices * self.nodes


def find_team(device: torch.device, devices: int = 1, nodes: int = 1) -> Team:
    """Who trains: the processes that torchrun or srun has started, or else as many as are asked for.

    Raises `InputError` if the two differ, or if there is no way to so many.
    """
    if devices < 1 or nodes < 1:
        raise InputError(f"devices and nodes must be at least 1, not {devices} and {nodes}")
    found = _found_environment()
    if found:
        everywhere, here = _world(found)
        asked, there = (devices, nodes), (here, everywhere // here)
        if asked not in ((1, 1), there):
            raise InputError(
                f"{devices} devices on {nodes} nodes are asked for, but {there[0]} processes on each of {there[1]} "
                "nodes were started; leave --devices and --nodes out, or say the same"
            )
        _check_devices(device, here)
        return Team(device, *there, found.global_rank(), found if everywhere > 1 else None)
    if nodes > 1:
        raise InputError("on several machines, start this on each of them by torchrun or srun (docs/scaling.md)")
    _check_devices(device, devices)
    if devices == 1:
        return Team(device)
    if _started_here():
        return Team(device, devices, 1, _number("LOCAL_RANK", 1, devices - 1), LightningEnvironment())
    if device.type == "cpu" and devices > max(TRIED, _cores()):
        raise InputError(
            f"{devices} processes are too many for the {_cores()} cores of this machine; at most {max(TRIED, _cores())}"
        )
    if hasattr(sys, "ps1") or sys.flags.interactive or sys.orig_argv[1:] in ([], ["-"]):
        raise InputError(
            "in a notebook, training takes one device; for several, put the call into a script, "
            "or use: capsnet train --devices N"
        )
    return Team(device, devices, 1, 0, LightningEnvironment(), starts_others=True)


def _started_here() -> bool:
    """By another process of ours. What only left the variable behind is none: a script that has trained, say."""
    return os.environ.get(PARENT) == str(os.getppid())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _found_environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "SLURM_NTASKS" not in os.environ or _number("SLURM_NTASKS", 1) == 1:
        return None
    if not SLURMEnvironment.detect():
        return None
    if "SLURM_STEP_ID" not in os.environ:  # which srun sets
        raise InputError(
            f"this SLURM job has {os.environ['SLURM_NTASKS']} tasks, but nobody has started the others; start this by "
            "srun, which starts all (docs/scaling.md), or ask SLURM for one task"
        )
    try:
        return SLURMEnvironment(auto_requeue=False)  # SIGTERM keeps a checkpoint, as everywhere
    except RuntimeError as error:  # the number of tasks on each node is not told
        raise InputError(f"SLURM: {str(error).replace('HINT: ', '')}") from None


def _world(environment: ClusterEnvironment) -> tuple[int, int]:
    """How many processes there are, and how many of them on this machine; `InputError` where that cannot be."""
    slurm = isinstance(environment, SLURMEnvironment)
    size, local_size = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE") if slurm else ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local_rank = ("SLURM_PROCID", "SLURM_LOCALID") if slurm else ("RANK", "LOCAL_RANK")
    everywhere = _number(size, 1)
    here = _number(local_size, 1, everywhere)
    _number(rank, 0, everywhere - 1)
    _number(local_rank, 0, here - 1)
    if "MASTER_PORT" in os.environ:
        _number("MASTER_PORT", 0, 2**16 - 1)
    return everywhere, here


def _number(name: str, lowest: int, highest: int = 2**31) -> int:
    """In an environment variable. Raises `InputError` if there is another thing in it."""
    told = os.environ.get(name, "nothing")
    if not (told.isascii() and told.isdigit() and len(told) < 12 and lowest <= int(told) <= highest):
        limits = f"from {lowest} to {highest}" if highest < 2**31 else f"of at least {lowest}"
        raise InputError(f"the environment variable {name} should be a number {limits}, not {told}")
    return int(told)


def _check_devices(device: torch.device, count: int) -> None:
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise InputError(f"{count} processes want a GPU each, but this machine has {torch.cuda.device_count()}")
    if device.type not in ("cpu", "cuda") and count > 1:
        raise InputError(f"on {device.type} training takes one device, not {count}")


@contextlib.contextmanager
def working_together(team: Team) -> Iterator[None]:
    """Starts the other processes if that is up to this one, and sees to it that none outlives another for long.

    Each runs the program from its beginning, as this one did. Raises `ProcessLostError` if one of them has ended
    before the work was done.
    """
    if _started_here():
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    threads, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in OURS}
    others = _others(team.devices) if team.starts_others else None
    try:
        place = _meet(team)  # is kept until the end: the others may come to it later
        yield
        del place
        if others:
            others.done.set()
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        told = others.explain(PATIENCE) if others else None
        raise ProcessLostError(told or "another of the processes that train together has ended") from None
    finally:
        torch.set_num_threads(threads)  # Lightning gives each process its share of the cores
        for name, value in variables.items():  # what this program starts next is another thing
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if others and not others.done.is_set():
            others.done.set()
            others.kill()


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _meet(team: Team) -> Any:
    """Waits for the processes that srun has started, and says which have not come.

    Others know that all are there: torchrun by itself, and we of those that we start.
    """
    if not isinstance(team.environment, SLURMEnvironment) or torch.distributed.is_initialized():
        return None
    address, port, first = team.environment.main_address, team.environment.main_port, team.rank == 0
    begun = told = time.monotonic()

    def wait_for(*ranks: int) -> None:
        nonlocal told
        if (now := time.monotonic()) > told + QUIET:
            told = now
            who = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:9]))} of {team.size}"
            if now > begun + LONGEST:
                raise ProcessLostError(f"{who} did not come")
            tell(f"waiting for {who} …")
        time.sleep(LOOK_EVERY)

    while not first and not _answers(address, port):  # PyTorch would wait by itself, and say more
        wait_for(0)
    whole = timedelta(seconds=LONGEST)
    place = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        address, port, team.size, first, whole, wait_for_workers=False, multi_tenant=True
    )
    place.set(str(team.rank), "")
    while first and (missing := [rank for rank in range(team.size) if not place.check([str(rank)])]):
        wait_for(*missing)
    return place


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1.0).close()
    except OSError:
        return False
    return True


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)


def _others(count: int) -> "_Others":
    """New ones; or, where this program trains once more, those that do the same."""
    if not _STARTED:
        _STARTED.append(_Others(count))
    (others,) = _STARTED
    if others.count != count:
        raise InputError(f"this program trains in {others.count} processes; it cannot go on in {count}")
    if any(process.poll() is not None for process in others.processes):
        raise ProcessLostError("the other processes of this program have ended; start it anew")
    os.environ |= others.variables
    others.watch()
    return others


_STARTED: list["_Others"] = []


class _Others:
    """The processes 1, 2, … of this machine, whose standard error is kept until one of them fails."""

    def __init__(self, count: int) -> None:
        self.variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        self.variables |= {"NODE_RANK": "0", "LOCAL_RANK": "0"}
        self.count = count
        self.done = threading.Event()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.errors: list[IO[bytes]] = []
        atexit.register(self.leave)
        for rank in range(1, count):
            errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
            # A session of its own: Ctrl-C in the terminal comes to the first process alone, which tells the others.
            process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, **self.variables, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            self.processes.append(process)
            self.errors.append(errors)

    def watch(self) -> None:
        """From now on until the work is done."""
        self.done = threading.Event()
        threading.Thread(target=self._watch, args=(self.done,), daemon=True).start()

    def explain(self, patience: float) -> str | None:
        """Which one has failed and how; None if after so many seconds none has."""
        deadline = time.monotonic() + patience
        while not any(process.poll() for process in self.processes):
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_EVERY / 4)
        time.sleep(LOOK_EVERY)  # those that only lost the connection may be seen first
        failed = [(n, process.returncode) for n, process in enumerate(self.processes, 1) if process.poll()]
        number, status = min(failed, key=lambda one: (one[1] == 1, one[1]))
        if status < 0:
            return f"process {number} of {self.count} was killed (signal {-status})"
        return f"process {number} of {self.count} failed: {self._last_words(number)}"

    def leave(self) -> None:
        """At the end of the program: those that are still doing what it does after training may end it, too."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _watch(self, done: threading.Event) -> None:
        """A collective operation on GPUs waits for the dead, for minutes; then nobody but this thread can speak."""
        while not done.wait(LOOK_EVERY):
            if any(process.poll() for process in self.processes):
                told = self.explain(0)
                if not done.wait(2 * PATIENCE):
                    tell("")
                    tell(f"capsnet: {told}; the last checkpoint is intact")
                    self.kill()
                    os._exit(1)

    def _last_words(self, number: int) -> str:
        errors = self.errors[number - 1]
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines() or ["without a word"]
        return lines[-1].removeprefix("capsnet: ")
