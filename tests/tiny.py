"""The `capsnet` command on a tiny network and a few images, with a checkpoint after every step."""

import os
import subprocess
import sys
import time
from pathlib import Path

from capsnet import callbacks, data
from capsnet.commands import train

_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import pytest
import tiny
from capsnet import cli
tiny.shrink(pytest.MonkeyPatch(), {images}, {sizes})
if __name__ == "__main__":
    sys.exit(cli.main())
"""


def shrink(monkeypatch, images, sizes):
    """MNIST has these images only, networks have these sizes, and a checkpoint is kept after every step."""
    open_whole = data.DATASETS["mnist"]
    monkeypatch.setitem(data.DATASETS, "mnist", lambda split: open_whole(split).select(images))
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(train, "sizes", lambda name, width: sizes)


def program(images, sizes):
    """The `capsnet` command, shrunk."""
    return _PROGRAM.format(tests=str(Path(__file__).parent), images=images, sizes=sizes)


TINY = program(slice(120), {"conv_channels": 8, "primary_types": 2, "decoder_hidden": (16,)})
# Of 33 training images the last batch has one, so that one of two processes has none.
ODD = ("--limit", 44, "--held-out", 11, "--batch-size", 16, "--ema-decay", 0.9)


def start(*arguments, cwd, program=("-c", TINY), **environment):
    """A process that trains; processes of one thread do not wait for each other on busy machines."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=300):  # a machine may be busy with much else
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for(condition, process, timeout=180):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"it did not happen within {timeout} seconds")
