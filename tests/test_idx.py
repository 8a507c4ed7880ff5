"""Reader of MNIST's own format, on files that the tests write in it."""

import gzip
import struct

import numpy as np
import pytest
from damage import check_damage, random, told

import capsnet
from capsnet.data.idx import read_idx_file


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, prefix="", pack=False, train=12, test=5):
    folder.mkdir(exist_ok=True)
    for split, count, seed in (("train", train, 0), ("t10k", test, 1)):
        contents = {"images-idx3-ubyte": random(count, 7, 9, seed=seed), "labels-idx1-ubyte": np.arange(count) % 7}
        for name, array in contents.items():
            content = idx(array.astype(np.uint8))
            path = folder / f"{prefix}{split}-{name}{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)
    return folder


def read_images(path):
    return read_idx_file(path, dimensions=3)


@pytest.mark.parametrize("pack", [False, True])
def test_idx(tmp_path, pack):
    folder = write_idx(tmp_path / "set", pack=pack)
    train, test = (capsnet.open_dataset(f"idx:{folder}", split) for split in ("train", "test"))
    assert (train.images[:, 0].numpy() == random(12, 7, 9)).all()
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    assert test.images.shape == (5, 1, 7, 9)
    assert test.class_names == train.class_names == tuple("0123456")  # though the test images show but five


def test_idx_with_a_prefix_as_emnist_has_it(tmp_path):
    write_idx(tmp_path, prefix="emnist-letters-", pack=True)
    write_idx(tmp_path, prefix="emnist-digits-", train=3)
    assert len(capsnet.open_dataset(f"idx:{tmp_path}/emnist-letters")) == 12
    assert len(capsnet.open_dataset(f"idx:{tmp_path}/emnist-digits")) == 3
    with pytest.raises(capsnet.InputError, match=r"there is no IDX file .*/train-images-idx3-ubyte"):
        capsnet.open_dataset(f"idx:{tmp_path}")


def test_idx_files_that_are_missing_or_do_not_fit_together(tmp_path):
    folder = write_idx(tmp_path / "set")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(capsnet.InputError, match=r"the train files in .* hold 12 images, but 11 labels"):
        capsnet.open_dataset(f"idx:{folder}")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(capsnet.InputError, match=r"there is no IDX file .*t10k-labels-idx1-ubyte\(\.gz\)"):
        capsnet.open_dataset(f"idx:{folder}", "test")
    with pytest.raises(capsnet.InputError, match=r"there is no IDX file .*none-train-images"):
        capsnet.open_dataset(f"idx:{tmp_path}/none")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", "truncated"),
        (b"\x89PNG\r\n\x1a\n0000", "not an IDX file"),
        (b"\0\0\x08\0", "in 0 dimensions; it should hold unsigned bytes (0x08) in 3"),
        (idx(np.zeros((1, 1, 1), ">i4"), kind=0x0C), "type 0x0c in 3 dimensions; it should hold unsigned bytes"),
        (idx(random(3, 4)), "in 2 dimensions"),
        (idx(random(3, 4, 5))[:-1], "truncated: 1 bytes are missing"),
        (idx(random(3, 4, 5)) + b"\0", "longer than its header says"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),  # never allocated
        (gzip.compress(idx(random(30, 40, 2)), mtime=0)[:-30], "damaged"),
        (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 1, 1), mtime=0), "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else len(value),  # never bytes: names alike on every worker
)
def test_idx_files_that_are_no_such_files(tmp_path, content, answer):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert answer in told(path, by=read_images)


@pytest.mark.parametrize("pack", [False, True])
def test_idx_files_with_any_damage(tmp_path, pack):
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(gzip.compress(idx(random(4, 6, 5))) if pack else idx(random(4, 6, 5)))
    check_damage(path, read_images, 16)


def test_idx_files_of_any_size(tmp_path):
    """Given as a path or with `idx:`, as they are or scaled."""
    write_idx(tmp_path, pack=True)
    for place in (tmp_path, f"idx:{tmp_path}"):
        assert capsnet.open_dataset(place).image_shape == (1, 7, 9)
        assert capsnet.open_dataset(place, "test", size=20, channels=3).image_shape == (3, 20, 20)
    plain, colour = capsnet.open_dataset(tmp_path), capsnet.open_dataset(tmp_path, channels=3)
    assert colour.images.equal(plain.images.expand(-1, 3, -1, -1))
    with pytest.raises(capsnet.InputError, match="has no val pictures; there are: train, test"):
        capsnet.open_dataset(tmp_path, "val")
