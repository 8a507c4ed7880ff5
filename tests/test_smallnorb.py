"""Reader of smallNORB's files, on files that the tests write in their format."""

import gzip
import struct

import numpy as np
import pytest
from damage import check_damage, random

import capsnet
from capsnet.data.smallnorb import read_smallnorb_poses

TRAINING = "smallnorb-5x46789x9x18x6x2x96x96-training"
TESTING = "smallnorb-5x01235x9x18x6x2x96x96-testing"


def norb(array):
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}[array.dtype.name]
    sizes = [*array.shape, 1, 1][: max(array.ndim, 3)]
    return struct.pack(f"<II{len(sizes)}I", magic, array.ndim, *sizes) + array.tobytes()


def write_norb(folder, pack=False):
    folder.mkdir(exist_ok=True)
    for name, count in ((TRAINING, 10), (TESTING, 5)):
        rng = np.random.default_rng(count)
        contents = {
            "dat": random(count, 2, 96, 96, seed=count),
            "cat": (np.arange(count) % 5).astype(np.int32),
            "info": rng.integers(0, 9, (count, 4), dtype=np.int32),
        }
        for kind, array in contents.items():
            path = folder / f"{name}-{kind}.mat{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(norb(array), 1) if pack else norb(array))
    return folder


@pytest.mark.parametrize("pack", [False, True])
def test_smallnorb(tmp_path, pack, monkeypatch):
    monkeypatch.setattr("capsnet.data.smallnorb.CHUNK", 4)
    folder = write_norb(tmp_path / "norb", pack)
    train, test = (capsnet.open_dataset(f"smallnorb:{folder}", split) for split in ("train", "test"))
    assert train.images.shape == (10, 2, 48, 48)
    assert len(test) == 5
    assert train.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert train.class_names == ("animal", "human", "plane", "truck", "car")
    pixels = random(10, 2, 96, 96, seed=10).astype(float)
    for n, camera, row, column in ((0, 0, 0, 0), (3, 1, 20, 47), (9, 0, 47, 5)):
        four = pixels[n, camera, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert train.images[n, camera, row, column].item() == int(four.mean() + 0.5)
    poses = read_smallnorb_poses(str(folder), "test")
    assert poses.shape == (5, 4)
    assert (poses.numpy() == np.random.default_rng(5).integers(0, 9, (5, 4), dtype=np.int32)).all()


@pytest.mark.parametrize(
    ("kind", "content", "answer"),
    [
        ("dat", norb(random(10, 2, 96, 96))[:-1], "truncated"),
        ("dat", norb(random(10, 2, 96, 96)) + b"x", "longer than its header says"),
        ("dat", norb(random(1, 2, 108, 108)), "holds 1×2×108×108 numbers; in smallNORB they are N×2×96×96"),
        ("dat", norb(random(0, 2, 96, 96)), "holds 0×2×96×96"),
        ("dat", norb(np.zeros(10, np.int32)), "not a -dat file"),
        ("dat", b"\0\0\x08\3" + bytes(132), "not a -dat file of smallNORB"),
        ("cat", norb(np.zeros((10, 4), np.int32)), "2 dimensions, not 1"),
        ("cat", norb(np.zeros(9, np.int32)), "hold 10 images, but 9 labels"),
        ("cat", norb(np.full(10, 5, np.int32)), "labels must be 0 to 4"),
        ("cat", b"", "truncated"),
    ],
)
def test_smallnorb_files_that_are_no_such_files(tmp_path, kind, content, answer):
    folder = write_norb(tmp_path / "norb")
    (folder / f"{TRAINING}-{kind}.mat").write_bytes(content)
    with pytest.raises(capsnet.InputError, match=answer):
        capsnet.open_dataset(f"smallnorb:{folder}")


def test_smallnorb_files_with_any_damage(tmp_path):
    folder = write_norb(tmp_path / "norb")

    def read(path):
        capsnet.open_dataset(f"smallnorb:{folder}", "test")

    check_damage(folder / f"{TESTING}-dat.mat", read, 24, cases=100)
    check_damage(folder / f"{TESTING}-info.mat", lambda _: read_smallnorb_poses(str(folder), "test"), 20)


def test_smallnorb_that_is_not_there(tmp_path):
    with pytest.raises(capsnet.InputError, match=r"there is no file smallnorb-…-training-dat\.mat .*none"):
        capsnet.open_dataset(f"smallnorb:{tmp_path}/none")
