"""Pictures are decoded once, into a cache: what is found there, what is made again, and what goes wrong."""

import json
import os
import resource
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from own_sets import draw, opened, told, write_folder
from tiny import finish, start, wait_for

from capsnet.data import cache, prepared


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "capsnet"


@pytest.fixture
def pets(tmp_path):
    return write_folder(tmp_path / "pets")


def entries(folder):
    """All that lies there but locks, which stay."""
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


def whole(*sets):
    return sorted(image.numpy().tobytes() for each in sets for image in each.images)


def test_pictures_are_decoded_once(folder, pets, monkeypatch, capsys):
    train, test = opened(pets)
    made = entries(folder)
    assert len(made) == 1
    monkeypatch.delattr("capsnet.data.prepared.decode_picture")
    capsys.readouterr()
    again, test_again = opened(pets)
    assert train.images.equal(again.images)
    assert test.labels.equal(test_again.labels)
    assert entries(folder) == made
    assert capsys.readouterr().err == (
        f"{pets}: 2 classes, 8 pictures to train on, 2 pictures to test on (20 % of each class); 8×8 pixels, grey\n"
        "  train + test: cats 4 + 1, dogs 4 + 1\n"
    )
    assert {path.name for path in (folder / made[0]).iterdir()} == {
        *("index.json", "train.images", "train.labels", "test.images", "test.labels"),
    }


def rewrite(pets):
    draw(pets / "cats" / "0.png", seed=99)


def add(pets):
    draw(pets / "cats" / "new.png", seed=98)


def remove(pets):
    (pets / "cats" / "0.png").unlink()


def rename_class(pets):
    (pets / "cats").rename(pets / "lions")


def move_to_another_class(pets):
    (pets / "cats" / "0.png").rename(pets / "dogs" / "10.png")


@pytest.mark.parametrize("change", [rewrite, add, remove, rename_class, move_to_another_class])
def test_what_has_changed_is_read_anew(folder, pets, change):
    before = opened(pets)
    change(pets)
    after = opened(pets)
    assert len(entries(folder)) == 2
    count = {add: 11, remove: 9}.get(change, 10)
    assert sum(map(len, after)) == count
    assert (whole(*before) == whole(*after)) == (change in (rename_class, move_to_another_class))
    assert after[0].class_names == ("dogs", "lions") if change is rename_class else ("cats", "dogs")


def test_each_size_and_colour_is_an_entry_of_its_own(folder, pets):
    opened(pets)
    assert opened(pets, size=8, channels=1)[0].image_shape == (1, 8, 8)  # which is what nobody had to say
    assert len(entries(folder)) == 1
    assert opened(pets, size=9)[0].image_shape == (1, 9, 9)
    assert opened(pets, size=(9, 9), channels=1)[0].image_shape == (1, 9, 9)
    assert len(entries(folder)) == 2
    assert opened(pets, channels=3)[0].image_shape == (3, 8, 8)
    assert opened(pets, size=8, channels=3)[0].image_shape == (3, 8, 8)
    assert len(entries(folder)) == 3


def test_the_cache_may_be_removed_at_any_time(folder, pets):
    train, _ = opened(pets)
    shutil.rmtree(folder)
    assert train.images.equal(opened(pets)[0].images)


def test_the_images_are_mapped_and_cannot_be_written_to(folder, pets):
    """No byte of them is read until somebody looks, and nobody can change the cache by mistake."""
    train, _ = opened(pets)
    file = next(folder.rglob("train.images"))
    assert file.read_bytes() == train.images.numpy().tobytes()
    with open("/proc/self/maps") as maps:
        kinds = [line.split()[1] for line in maps if line.rstrip().endswith(str(file))]
    assert kinds
    assert all("w" not in kind for kind in kinds)


# Damage


def cut(entry):
    os.truncate(entry / "train.images", 100)


def lose(entry):
    (entry / "test.labels").unlink()


def scribble(entry):
    (entry / "index.json").write_text("{")


def misuse(entry):
    (entry / "index.json").write_text(json.dumps([1, 2]))


def invert(file):
    pixels = np.memmap(file, np.uint8, "r+")
    pixels[:] = 255 - pixels
    pixels.flush()


def invert_images(entry):
    invert(entry / "train.images")


def invert_labels(entry):
    invert(entry / "test.labels")


def invert_as_a_disk_would(entry):
    """No program was at it: the time of the last change stays."""
    file = entry / "test.images"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    invert(file)
    os.utime(file, ns=times)


def pipe_as_index(entry):
    (entry / "index.json").unlink()
    os.mkfifo(entry / "index.json")


def pipe_as_images(entry):
    (entry / "train.images").unlink()
    os.mkfifo(entry / "train.images")


def file_in_its_place(entry):
    shutil.rmtree(entry)
    entry.write_text("not ours")


def dangling_link_in_its_place(entry):
    shutil.rmtree(entry)
    entry.symlink_to("nowhere")


def link_in_its_place(entry):
    elsewhere = entry.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("a user's")
    shutil.rmtree(entry)
    entry.symlink_to(elsewhere)


def old_version(entry):
    """An index with the sizes of the files alone."""
    index = json.loads((entry / "index.json").read_bytes())
    del index["sum"]
    index["files"] = {name: size for name, (size, *_) in index["files"].items()}
    (entry / "index.json").write_text(json.dumps({**index, "sum": cache._sum(index)}))


def partial_is_a_file(entry):
    shutil.rmtree(entry)
    entry.with_suffix(".partial").write_text("not ours")


DAMAGE = [
    *(cut, lose, scribble, misuse, invert_images, invert_labels, invert_as_a_disk_would, pipe_as_index, pipe_as_images),
    *(file_in_its_place, dangling_link_in_its_place, link_in_its_place, old_version, partial_is_a_file),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(folder, pets, damage):
    train, test = (each.images.clone() for each in opened(pets))
    (name,) = entries(folder)
    damage(folder / name)
    again, test_again = opened(pets)
    assert again.images.equal(train)
    assert test_again.images.equal(test)
    assert entries(folder) == [name]
    if damage is link_in_its_place:
        assert (folder.parent / "elsewhere" / "precious").read_text() == "a user's"


def test_large_files_are_read_only_if_somebody_has_written_to_them(folder, pets, monkeypatch):
    train, _ = opened(pets)
    monkeypatch.setattr(cache, "ALWAYS_SUMMED", 0)
    with monkeypatch.context() as patch:
        patch.delattr(cache, "_sum_of_file")
        opened(pets)
    (file,) = folder.rglob("train.images")
    os.utime(file, ns=(0, 0))  # as a copy of the cache may have it
    (made,) = entries(folder)
    inode = (folder / made).stat().st_ino
    assert opened(pets)[0].images.equal(train.images)
    assert (folder / made).stat().st_ino == inode
    before = train.images.clone()
    invert(file)
    assert opened(pets)[0].images.equal(before)


def test_whoever_interrupts_leaves_nothing(folder, pets, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepared.Progress, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened(pets)
    assert entries(folder) == []
    assert sum(map(len, opened(pets))) == 10


def test_what_killed_processes_left_is_cleared_away(folder, pets):
    """But not what a process is about to make."""
    for name in ("a" * 32, "b" * 32):
        (folder / f"{name}.partial").mkdir(parents=True)
        (folder / f"{name}.partial" / "train.images").write_bytes(b"half")
    with cache.FileLock(folder / f"{'b' * 32}.lock"):
        opened(pets)
    assert len(names := entries(folder)) == 2
    assert f"{'b' * 32}.partial" in names


# Reads a set; where a second file is named, it makes that file at its third picture and goes no further.
READS = """
import pathlib, sys, time
import capsnet
from capsnet.data import prepared
place, hangs = sys.argv[1:]
def frame(picture, shape, whole=prepared.frame):
    frame.seen += 1
    if hangs and frame.seen > 2:
        pathlib.Path(hangs).touch()
        time.sleep(1000)
    return whole(picture, shape)
frame.seen = 0
prepared.frame = frame
print(len(capsnet.open_dataset(place)))
"""


def test_one_process_reads_while_another_waits_and_takes_over_when_it_is_killed(tmp_path, folder, pets):
    first = start(pets, tmp_path / "hangs", cwd=tmp_path, program=("-c", READS))
    wait_for((tmp_path / "hangs").exists, first)
    assert [name.partition(".")[2] for name in entries(folder)] == ["partial"]
    second = start(pets, "", cwd=tmp_path, program=("-c", READS))
    told = second.stderr.readline()
    assert told == f"another process is reading {pets}; waiting for it …\n"
    assert second.poll() is None
    first.kill()
    finish(first)
    assert finish(second)[:2] == (0, "8\n")
    (name,) = entries(folder)
    assert "." not in name


def test_who_has_waited_takes_what_was_made(folder, pets, monkeypatch, capsys):
    begun, go_on, sets = threading.Event(), threading.Event(), []

    def wait(*_, whole=prepared.frame):
        begun.set()
        go_on.wait(60)
        return whole(*_)

    monkeypatch.setattr(prepared, "frame", wait)
    first = threading.Thread(target=lambda: sets.append(opened(pets)))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=lambda: sets.append(opened(pets)))
    second.start()
    while "waiting for it" not in capsys.readouterr().err:
        assert second.is_alive()
        time.sleep(0.01)
    go_on.set()
    first.join(60)
    second.join(60)
    assert sets[0][0].images.equal(sets[1][0].images)
    assert len(entries(folder)) == 1


# Room


def test_a_set_for_which_there_is_no_room_is_not_begun(folder, pets, monkeypatch):
    monkeypatch.setattr(prepared, "room", lambda: 639)
    assert told(pets) == f"{pets} takes 0.0 GB in the cache, but {folder} has not the room"
    assert entries(folder) == []
    monkeypatch.setattr(prepared, "room", lambda: 640)
    opened(pets)


def test_a_disk_that_is_full_is_told_in_one_line(folder, tmp_path):
    pets = write_folder(tmp_path / "large", 100, 100, count=10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert told(pets, size=100) == f"cannot write the cache {folder}: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert entries(folder) == []
    assert sum(map(len, opened(pets, size=100))) == 20


def test_a_cache_that_cannot_be_written_is_told_in_one_line(folder, pets, tmp_path, monkeypatch):
    (tmp_path / "caches").write_text("a file")
    assert told(pets) == f"cannot write the cache {folder}: Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written_is_still_read(folder, pets, tmp_path):
    opened(pets)
    other = write_folder(tmp_path / "other")
    folder.chmod(0o500)
    try:
        assert sum(map(len, opened(pets))) == 10
        assert told(other) == f"cannot write the cache {folder}: Permission denied"
    finally:
        folder.chmod(0o700)


# A process that may have 200 MB more reads and trains on images of 240 MB.
LARGE = """
import resource, sys
import torch
import capsnet

def train_on(images):
    model = capsnet.CapsNet((3, 20, 20), 2, conv_channels=4, primary_types=2, decoder_hidden=(8,))
    recipe = capsnet.Recipe(epochs=1, batch_size=16, crop=20)
    capsnet.fit(model, images, recipe, out=f"{sys.argv[2]}/{len(images)}", progress=False)
    return model

few = capsnet.ImageSet(torch.zeros(32, 3, 24, 24, dtype=torch.uint8), torch.arange(32) % 2, ("a", "b"))
torch.set_num_threads(1)
train_on(few)  # imports what training needs
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 200_000_000,) * 2)
try:
    torch.ones(240_000_000, dtype=torch.uint8)
except RuntimeError:
    pass  # it does not fit
else:
    sys.exit("there is no limit")
train, test = (capsnet.open_dataset(sys.argv[1], split, size=256) for split in ("train", "test"))
model = train_on(train)
capsnet.evaluate(model, test.centre(20))
print(train.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are kept by Linux")
def test_a_set_larger_than_memory_trains(tmp_path):
    count, side = 1500, 256
    images = np.zeros((count, side, side, 3), np.uint8)
    np.savez_compressed(tmp_path / "large.npz", images=images, labels=np.arange(count) % 2)
    process = start(tmp_path / "large.npz", tmp_path / "run", cwd=tmp_path, program=("-c", LARGE))
    status, out, err = finish(process, timeout=600)
    assert status == 0, err
    assert int(out) == 0.8 * images.nbytes


def test_labels_that_are_none_are_refused(folder, pets, monkeypatch):
    """However large, and should the sum of the file not tell: nothing as long as they say is made to count them."""
    opened(pets)
    (entry,) = entries(folder)
    labels = folder / entry / "train.labels"
    np.array([2**62, *np.fromfile(labels, np.int64)[1:]]).tofile(labels)
    monkeypatch.setattr(cache, "_is_as_written", lambda *_: True)
    assert "labels must be 0 to 1, but they reach from 0 to " in told(pets)
