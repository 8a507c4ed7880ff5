"""Several processes that train one model together: how many there are, who starts them, what happens when one ends.

Lightning would start the others itself. But when one of them dies, it kills the first with SIGKILL, up to five seconds
later and without a word; and it starts them by `sys.argv`, which is not how every program was started.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from capsnet.errors import InputError, ProcessLostError
from capsnet.streams import tell

PARENT = "CAPSNET_PARENT"
"""The environment variable by which a process knows that it was started here, and by whom."""
LOOK_EVERY = 0.2
"""Seconds between two looks at whether the others are alive."""
PATIENCE = 5.0
"""So many seconds a process has to end by itself when another one is gone, before it is ended."""


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
        everywhere, here = found.world_size(), _processes_here(found)
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
    environment = LightningEnvironment()
    started = PARENT in os.environ
    if not started and (hasattr(sys, "ps1") or sys.flags.interactive or sys.orig_argv[1:] in ([], ["-"])):
        raise InputError(
            "in a notebook, training takes one device; for several, put the call into a script, "
            "or use: capsnet train --devices N"
        )
    return Team(device, devices, 1, environment.local_rank(), environment, starts_others=not started)


def _found_environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    try:
        if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
            return SLURMEnvironment(auto_requeue=False)  # SIGTERM keeps a checkpoint, as everywhere
    except RuntimeError as error:  # the number of tasks on each node is not told
        raise InputError(f"SLURM: {str(error).replace('HINT: ', '')}") from None
    return None


def _processes_here(environment: ClusterEnvironment) -> int:
    name = "SLURM_NTASKS_PER_NODE" if isinstance(environment, SLURMEnvironment) else "LOCAL_WORLD_SIZE"
    return int(os.environ.get(name, environment.world_size()))


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
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_end_with_parent, args=(int(parent),), daemon=True).start()
    others = _Others(team.devices) if team.starts_others else None
    threads, told_threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    try:
        yield
        if others:
            others.done.set()
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        told = others.explain(PATIENCE) if others else None
        raise ProcessLostError(told or "another of the processes that train together has ended") from None
    finally:
        torch.set_num_threads(threads)  # Lightning gives each process its share of the cores
        if told_threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        if others and not others.done.is_set():
            others.done.set()
            others.kill()


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)


class _Others:
    """The processes 1, 2, … of this machine, whose standard error is kept until one of them fails."""

    def __init__(self, count: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": "0"}
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
                env={**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            self.processes.append(process)
            self.errors.append(errors)
        os.environ[PARENT] = ""  # they are there, should this program train once more
        threading.Thread(target=self._watch, daemon=True).start()

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

    def _watch(self) -> None:
        """A collective operation on GPUs waits for the dead, for minutes; then nobody but this thread can speak."""
        while not self.done.wait(LOOK_EVERY):
            if any(process.poll() for process in self.processes):
                told = self.explain(0)
                if not self.done.wait(2 * PATIENCE):
                    tell(f"\ncapsnet: {told}; the last checkpoint is intact")
                    self.kill()
                    os._exit(1)

    def _last_words(self, number: int) -> str:
        errors = self.errors[number - 1]
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines() or ["without a word"]
        return lines[-1].removeprefix("capsnet: ")
