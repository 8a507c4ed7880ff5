"""A full disk or a folder that may not be written: one line, exit status 2, and what was there before is intact."""

import contextlib
import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import capsnet
from capsnet import cli, data, runs
from capsnet.data.cache import cache_folder
from capsnet.experiments import rows
from capsnet.experiments.rows import Row

SIZES = {"in_shape": (1, 28, 28), "num_classes": 10, "conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 32)}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX's")


@contextlib.contextmanager
def small_disk(size):
    """No file may become larger, as if the disk were full. The largest by far is the weights, about 100 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read_only(monkeypatch, beginning):
    """Files whose names begin so cannot be written; the tests may run as root, whom permissions do not bind."""

    def refuse(path, mode="r", **options):
        if "w" in mode and os.path.basename(path).startswith(f".{beginning}"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open(path, mode, **options)

    monkeypatch.setattr(runs, "open", refuse, raising=False)


def model(seed=0, **sizes):
    torch.manual_seed(seed)
    return capsnet.CapsNet(**{**SIZES, **sizes})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a figure and an ONNX file beside it that were made before."""
    digits = capsnet.open_dataset("mnist", "test").select(slice(40))
    monkeypatch.setitem(data.DATASETS, "mnist", lambda split: digits)
    monkeypatch.chdir(tmp_path)
    runs.make_folder(tmp_path / "run" / "figures")
    capsnet.save(model(), "run", command={"data": "mnist"})
    (tmp_path / "run" / "figures" / "reconstructions.png").write_bytes(b"an old figure")
    (tmp_path / "old.onnx").write_bytes(b"an old file")
    return tmp_path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_saving_over_another_model_leaves_that_one(run):
    before = contents(run)
    with (
        small_disk(20_000),
        pytest.raises(capsnet.InputError, match=r"cannot write run/model\.safetensors: File too l"),
    ):
        capsnet.save(model(primary_types=4), "run")  # whose config alone would fit
    assert contents(run) == before
    assert capsnet.load("run").config["primary_types"] == 2


@pytest.mark.parametrize("arguments", [("figures", "run"), ("export", "run", "old.onnx")])
@pytest.mark.parametrize("full", [True, False])
def test_what_was_drawn_or_exported_before_is_intact(run, capsys, monkeypatch, arguments, full):
    before = contents(run)
    if not full:
        read_only(monkeypatch, "")
    with small_disk(5_000) if full else contextlib.nullcontext():
        status, out, err = command(capsys, *arguments)
    assert (status, out) == (2, "")
    reason = "File too large" if full else "Read-only file system"
    target = "run/figures/reconstructions.png" if arguments[0] == "figures" else "old.onnx"
    assert err.splitlines()[-1] == f"capsnet: cannot write {target}: {reason}; what was saved before is intact"
    assert "Traceback" not in err
    assert contents(run) == before


@pytest.mark.parametrize("command", ["evaluate run", "reproduce --table"])
def test_output_that_cannot_be_written_is_told_in_one_line(run, command):
    if not os.path.exists("/dev/full"):
        pytest.skip("wants Linux's /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "capsnet", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "capsnet: No space left on device")
    assert "Traceback" not in done.stderr


def test_a_record_that_cannot_be_written_leaves_the_run(run, capsys, monkeypatch):
    recipe = capsnet.Recipe(epochs=1, batch_size=32)
    monkeypatch.setitem(rows.ROWS, "tiny", Row("tiny", "mnist", "", "capsnet", SIZES, recipe, 1.0))
    with monkeypatch.context() as patch:
        read_only(patch, "tiny")
        status, _, err = command(capsys, "reproduce", "tiny", "--seeds", "1", "--device", "cpu")
    assert status == 2
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("capsnet: cannot write results/runs/tiny")
    monkeypatch.setattr("capsnet.experiments.making.fit", None)  # nothing is trained again
    assert command(capsys, "reproduce", "tiny", "--seeds", "1", "--device", "cpu")[0] == 0


def test_pictures_that_do_not_fit_into_the_cache_leave_nothing_there(run):
    for number in range(8):
        folder = run / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(folder / f"{number}.png")
    before = set(cache_folder().glob("*")) if cache_folder().exists() else set()
    with small_disk(10_000), pytest.raises(capsnet.InputError, match=r"cannot write the cache .*: File too large"):
        capsnet.open_dataset("./pictures")
    left = set(cache_folder().glob("*")) - before
    assert {path.suffix for path in left} <= {".lock"}
    assert len(capsnet.open_dataset("./pictures")) == 6
