"""Reader of affNIST's MATLAB files, on files that the tests write in their format."""

import struct
import zlib

import numpy as np
import pytest
from damage import check_damage, random, told
from scipy.io import savemat

import capsnet
from capsnet.data.affnist_files import read_affnist_file


def affnist(count, seed=0, **other):
    """All fields of the published files, in their types."""
    labels = np.arange(count) % 10
    fields = {
        "affine_matrix": np.zeros((1, count), object),
        "human_readable_transform": np.zeros((6, count)),
        "image": random(1600, count, seed=seed),
        "label_one_of_n": np.eye(10, dtype=np.uint8)[:, labels],
        "label_int": labels.astype(np.uint8)[None],
        "id": np.arange(count, dtype=np.int32)[None],
    }
    for k in range(count):
        fields["affine_matrix"][0, k] = np.eye(3)
    return {"affNISTdata": {**fields, **other}}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_affnist(tmp_path, compressed, kind):
    labels = np.array([[3, 0, 9, 9]], kind)
    savemat(tmp_path / "test.mat", affnist(4, label_int=labels), do_compression=compressed)
    for place in (tmp_path, tmp_path / "test.mat"):
        test = capsnet.open_dataset(f"affnist:{place}", "test")
        assert test.images.shape == (4, 1, 40, 40)
        assert (test.images.numpy().reshape(4, 1600) == random(1600, 4).T).all()  # a column an image, row by row
        assert test.labels.tolist() == [3, 0, 9, 9]
        assert test.num_classes == 10


def test_affnist_batches_are_read_in_order(tmp_path):
    batches = tmp_path / "training_and_validation_batches"
    batches.mkdir()
    for number in (1, 2, 10):
        savemat(batches / f"{number}.mat", affnist(number, seed=number))
    train = capsnet.open_dataset(f"affnist:{tmp_path}")
    assert len(train) == 13
    assert (train.images[1:3].numpy().reshape(2, 1600) == random(1600, 2, seed=2).T).all()
    with pytest.raises(capsnet.InputError, match=r"there should be one of: test_batches, test\.mat"):
        capsnet.open_dataset(f"affnist:{tmp_path}", "test")
    with pytest.raises(capsnet.InputError, match=r"there is no file or folder .*/none"):
        capsnet.open_dataset(f"affnist:{tmp_path}/none", "test")
    with pytest.raises(capsnet.InputError, match="is one file, the test set"):
        capsnet.open_dataset(f"affnist:{batches}/1.mat", "train")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"other": np.zeros(3)}, "no structure affNISTdata with image and label_int"),
        ({"affNISTdata": {"image": random(1600, 2)}}, "no structure affNISTdata with image and label_int"),
        ({"affNISTdata": np.zeros(3)}, "no structure affNISTdata"),
        (affnist(2, image=random(784, 2)), "should be 1600×N unsigned bytes, not 784×2"),
        (affnist(2, image=np.zeros((1600, 2))), "not 1600×2 of type float64"),
        (affnist(2, image="text"), "damaged: a field that should hold numbers does not"),
        (affnist(3, label_int=np.zeros((1, 2), np.uint8)), "3 images, but 2 labels"),
        (affnist(2, label_int=np.array([[1, 10]], np.uint8)), "labels other than 0 to 9"),
        (affnist(2, label_int=np.array([[1, 0.5]])), "labels other than 0 to 9"),
    ],
)
def test_matlab_files_that_are_not_affnist(tmp_path, content, answer):
    savemat(tmp_path / "x.mat", content)
    assert answer in told(tmp_path / "x.mat", by=read_affnist_file)


def test_other_files_are_not_affnist(tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, affnist(2), do_compression=True)
    whole = path.read_bytes()
    for content in (b"", b"\x89HDF\r\n", whole[:126] + b"??" + whole[128:]):
        path.write_bytes(content)
        assert "is not a MATLAB 5 file" in told(path, by=read_affnist_file)
    bomb = struct.pack("<II", 14, 2**31)
    path.write_bytes(whole[:128] + struct.pack("<II", 15, 100) + zlib.compress(bomb))
    assert "damaged" in told(path, by=read_affnist_file)
    assert "cannot be read" in told(tmp_path / "none.mat", by=read_affnist_file)


@pytest.mark.parametrize("compressed", [False, True])
def test_affnist_files_with_any_damage(tmp_path, compressed):
    path = tmp_path / "x.mat"
    savemat(path, affnist(3), do_compression=compressed)
    check_damage(path, read_affnist_file, 1000)
