"""File systems that cannot flush or lock, as some network and FUSE ones: who works there is told once, and works."""

import errno
import fcntl
import os

import pytest
import terminal
import tiny
from own_sets import opened, write_folder

import capsnet
from capsnet import disk, runs

QUICK = (slice(60), {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (16,)})
NO_FLUSH, NO_LOCK = "this file system cannot flush", "this file system cannot lock"


def failing(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(autouse=True)
def nothing_told_yet():
    disk._warn.cache_clear()
    yield
    disk._warn.cache_clear()


@pytest.fixture
def here(capsys, tmp_path, monkeypatch):
    tiny.shrink(monkeypatch, *QUICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: terminal.typed(capsys, *arguments)


@pytest.mark.parametrize(
    ("module", "name", "number", "told"),
    [
        (os, "fsync", errno.EINVAL, NO_FLUSH),
        (os, "fsync", errno.ENOTSUP, NO_FLUSH),
        (fcntl, "flock", errno.ENOSYS, NO_LOCK),
        (fcntl, "flock", errno.ENOTSUP, NO_LOCK),
        (fcntl, "flock", errno.EBADF, NO_LOCK),  # a folder over NFS
    ],
)
def test_what_cannot_be_done_is_told_once_and_done_without(here, tmp_path, monkeypatch, module, name, number, told):
    write_folder(tmp_path / "set", 20, 20)
    monkeypatch.setattr(module, name, failing(number))
    status, out, err = here("train", "--data", "./set", "--epochs", "2", "--width", "0.05", "--out", "run")
    assert status == 0, err
    assert "test error" in out
    assert err.count(told) == 1
    assert capsnet.load(tmp_path / "run")


def test_a_set_is_kept_where_nothing_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    write_folder(tmp_path / "set")
    opened(tmp_path / "set")
    monkeypatch.setattr("capsnet.data.prepared._make", None)  # nothing is made again
    assert sum(map(len, opened(tmp_path / "set"))) == 10


def test_without_locks_nothing_of_another_process_is_cleared_away(tmp_path, monkeypatch):
    (tmp_path / ".last.ckpt.123.partial").write_bytes(b"perhaps being written")
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with runs.locked(tmp_path):
        assert list(tmp_path.iterdir())


def test_what_is_said_of_a_write_that_failed_is_true(tmp_path, monkeypatch):
    runs.write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(runs, "flush_folder", failing(errno.EIO))
    with pytest.raises(capsnet.InputError, match=r"file is written, but may be lost in a power cut: .*: Input/output"):
        runs.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_of_two_files_the_one_that_is_replaced_is_named(tmp_path, monkeypatch):
    replace = os.replace

    def half(source, target):
        if target.name == runs.CONFIG:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", half)
    model = capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder=False)
    with pytest.raises(capsnet.InputError, match=r"cannot write .*json: .*; but model\.safetensors is replaced"):
        capsnet.save(model, tmp_path / "run")
