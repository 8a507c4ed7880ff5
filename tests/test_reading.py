"""Pipes, devices, sockets and links in circles where files are wanted: one line, at once; and folders of any shape."""

import os
import signal
import socket

import numpy as np
import pytest
from own_sets import draw, opened, write_folder, write_table
from test_affnist_files import affnist
from test_idx import write_idx
from test_smallnorb import TRAINING, write_norb

import capsnet
from capsnet import runs
from capsnet.checkpoints import SafeCheckpointIO
from capsnet.data import cache
from capsnet.data.pictures import read_picture
from capsnet.disk import open_file, read_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes among files are POSIX's")


@pytest.fixture(autouse=True)
def patience():
    """Whoever waits for a pipe fails, and does not wait for ever."""

    def give_up(number, frame):
        raise TimeoutError("it waits for a pipe, or reads for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path):
    os.mkfifo(path)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's address is short
        listening.bind(path.name)
        os.chdir(before)


def put_circle(path):
    path.symlink_to(path.name)


OTHERS = {
    put_pipe: "it is a pipe, not a file",
    put_device: "it is a device, not a file",
    put_socket: "it is a socket, not a file",
    put_circle: "Too many levels of symbolic links",
}


def idx(folder, name):
    write_idx(folder)
    return folder / name, lambda: capsnet.open_dataset(f"idx:{folder}")


def smallnorb(folder, name):
    write_norb(folder)
    return folder / f"{TRAINING}-{name}.mat", lambda: capsnet.open_dataset(f"smallnorb:{folder}")


def batch_of_affnist(folder, name):
    from scipy.io import savemat

    batches = folder / "training_batches"
    batches.mkdir()
    for batch in "12":
        savemat(batches / f"{batch}.mat", affnist(3))
    return batches / name, lambda: capsnet.open_dataset(f"affnist:{folder}")


def picture(folder, name):
    draw(folder / name)
    return folder / name, lambda: read_picture(folder / name, (1, 8, 8))


def run(folder, name):
    capsnet.save(capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder=False), folder)
    (folder / name).write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"")
    read = {runs.METRICS: lambda: runs.read_metrics(folder), runs.REPORT: lambda: runs.read_json(folder / name)}
    return folder / name, read.get(name, lambda: runs.load(folder))


def checkpoint(folder, name):
    (folder / name).write_bytes(b"")
    return folder / name, lambda: SafeCheckpointIO("").load_checkpoint(folder / name)


PLACES = [
    (idx, "train-labels-idx1-ubyte"),
    (idx, "train-images-idx3-ubyte"),
    (smallnorb, "cat"),
    (smallnorb, "dat"),
    (batch_of_affnist, "1.mat"),
    (picture, "x.png"),
    (run, runs.CONFIG),
    (run, runs.WEIGHTS),
    (run, runs.METRICS),
    (run, runs.REPORT),
    (checkpoint, runs.CHECKPOINT),
]


@pytest.mark.parametrize(("make", "name"), PLACES)
@pytest.mark.parametrize("put", OTHERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, make, name, put):
    path, read = make(tmp_path, name)
    path.unlink()
    put(path)
    with pytest.raises(capsnet.InputError) as refused:
        read()
    answer = str(refused.value)
    assert path.name in answer
    assert "\n" not in answer
    if name not in (runs.CHECKPOINT, runs.CONFIG) and (put is not put_circle or name not in (runs.WEIGHTS, "x.png")):
        assert OTHERS[put] in answer


@pytest.mark.parametrize("put", OTHERS)
@pytest.mark.parametrize("name", ["set.npz", "set.csv"])
def test_a_set_in_a_file_that_is_none(tmp_path, put, name):
    put(tmp_path / name)
    with pytest.raises(capsnet.InputError, match="there is no file or folder"):
        capsnet.open_dataset(str(tmp_path / name))


@pytest.mark.parametrize("put", OTHERS)
def test_a_picture_replaced_after_it_was_listed_is_a_damaged_one(tmp_path, put, monkeypatch):
    write_folder(tmp_path / "set", count=60)
    read = cache.kept

    def replaced(*arguments):
        (tmp_path / "set" / "cats" / "1.png").unlink()
        put(tmp_path / "set" / "cats" / "1.png")
        return read(*arguments)

    monkeypatch.setattr("capsnet.data.prepared.kept", replaced)
    assert len(capsnet.open_dataset(str(tmp_path / "set"), "train")) in (95, 96)


@pytest.mark.parametrize("put", OTHERS)
def test_an_index_of_the_cache_that_is_no_file_is_made_anew(tmp_path, put, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "set")
    opened(tmp_path / "set")
    (index,) = (tmp_path / "cache").rglob(cache.INDEX)
    index.unlink()
    put(index)
    assert sum(map(len, opened(tmp_path / "set"))) == 10
    assert index.is_file()


def test_files_are_opened_as_they_are(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content"
    with open_file(tmp_path / "file") as file:
        assert file.read(3) == b"con"
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")


def test_a_pipe_that_comes_after_the_look_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    looked = os.stat(tmp_path / "file")
    monkeypatch.setattr("capsnet.disk.os.stat", lambda path: looked)
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        open_file(tmp_path / "pipe")


def test_links_that_fork_lead_to_each_folder_once(tmp_path):
    write_folder(tmp_path / "set")
    place = tmp_path / "set" / "cats"
    for level in range(24):
        draw(tmp_path / "levels" / str(level) / "x.png", seed=1000 + level)
        for way in ("left", "right"):
            (place / way).symlink_to(tmp_path / "levels" / str(level))
        place = tmp_path / "levels" / str(level)
    assert sum(map(len, opened(tmp_path / "set"))) == 10 + 24


def test_two_classes_may_share_a_folder(tmp_path):
    write_folder(tmp_path / "set")
    draw(tmp_path / "shared" / "x.png", seed=99)
    for name in ("cats", "dogs"):
        (tmp_path / "set" / name / "more").symlink_to(tmp_path / "shared")
    assert sum(map(len, opened(tmp_path / "set"))) == 12


def test_folders_as_deep_as_a_path_may_be_long(tmp_path):
    write_folder(tmp_path / "set")
    before = os.getcwd()
    os.chdir(tmp_path / "set" / "cats")
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        np.save("x.npy", np.zeros(1))
        draw_here = draw(tmp_path / "x.png", seed=99)
        os.rename(draw_here, "x.png")
    finally:
        os.chdir(before)
    try:
        assert sum(map(len, opened(tmp_path / "set"))) == 11
    finally:
        remove_deep(tmp_path / "set" / "cats")


def remove_deep(folder):
    """`shutil.rmtree`, with which pytest clears up, is recursive."""
    before = os.getcwd()
    os.chdir(folder)
    depth = 0
    while os.path.isdir("d"):
        os.chdir("d")
        depth += 1
    for name in os.listdir():
        os.remove(name)
    for _ in range(depth):
        os.chdir("..")
        os.rmdir("d")
    os.chdir(before)


def test_a_folder_without_an_end_above_the_limit_is_told(tmp_path):
    write_table(tmp_path / "set.csv", [["loop/x.png", "a"], ["loop/y.png", "b"]])
    put_circle(tmp_path / "loop")
    with pytest.raises(capsnet.InputError, match=r"set\.csv, line 2"):
        capsnet.open_dataset(str(tmp_path / "set.csv"))
