"""An .npz archive as a data set: arrays as people name and shape them, and what is refused."""

import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_sets import noise, opened, told

import capsnet

TEN = np.arange(10) % 2


def write(place, /, **arrays):
    np.savez(place, **arrays)
    return place


@pytest.fixture
def place(tmp_path):
    return tmp_path / "set.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),  # Keras
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("images_train", "labels_train", "images_val", "labels_val"),
        ("train_x", "train_y", "valid_x", "valid_y"),
        ("train_data", "train_targets", "test_data", "test_targets"),
    ],
)
def test_names_that_people_use(place, save, names):
    arrays = (noise(6, 5, 7), TEN[:6], noise(4, 5, 7, seed=1), TEN[:4])
    save(place, **dict(zip(names, arrays, strict=True)))
    train, test = opened(place)
    assert (train.images[:, 0].numpy() == arrays[0]).all()
    assert (test.images[:, 0].numpy() == arrays[2]).all()
    assert train.labels.tolist() == arrays[1].tolist()
    assert test.labels.tolist() == arrays[3].tolist()


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "target"), ("x_train", "y_train")]
)
def test_of_one_pair_a_part_is_to_test_on(place, names, capsys):
    images = noise(20, 5, 7)
    np.savez(place, **dict(zip(names, (images, np.arange(20) % 4), strict=True)))
    train, test = opened(place)
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([4] * 4, [1] * 4)
    for each in (train, test):
        for image, label in zip(each.images, each.labels, strict=True):
            (number,) = np.flatnonzero((images == image[0].numpy()).all(axis=(1, 2)))
            assert number % 4 == label
    assert "16 pictures to train on, 4 pictures to test on (20 % of each class)" in capsys.readouterr().err


def test_three_splits_as_in_medmnist(place):
    parts = {"train": 8, "val": 4, "test": 6}
    images = {f"{split}_images": noise(count, 9, 9, 3) for split, count in parts.items()}
    labels = {f"{split}_labels": TEN[:count, None] for split, count in parts.items()}
    write(place, **images, **labels)
    assert {split: len(capsnet.open_dataset(place, split)) for split in parts} == parts


def test_what_else_lies_there_is_not_looked_at(place):
    others = {"labels": np.array(["cat", "dog"]), "more": np.array([{}], object), "notes": np.array("of the set")}
    write(place, x_train=noise(8, 5, 5), y_train=TEN[:8], x_test=noise(2, 5, 5), y_test=TEN[:2], **others)
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr("README.txt", "of the archive")
    assert [len(each) for each in opened(place)] == [8, 2]


@pytest.mark.parametrize(
    ("shape", "channels", "axes"),
    [
        ((10, 6, 7), 1, None),
        ((10, 6, 7, 1), 1, (2, 0, 1)),
        ((10, 1, 6, 7), 1, (0, 1, 2)),
        ((10, 6, 7, 3), 3, (2, 0, 1)),
        ((10, 3, 6, 7), 3, (0, 1, 2)),
        ((10, 3, 6, 3), 3, (2, 0, 1)),
        ((10, 6, 7, 4), 4, (2, 0, 1)),
        ((10, 4, 6, 7), 4, (0, 1, 2)),
    ],
)
def test_channels_last_or_first(place, shape, channels, axes):
    images = noise(*shape)
    train, test = opened(write(place, x_train=images, y_train=TEN, x_test=images, y_test=TEN))
    assert train.image_shape[0] == channels
    wanted = images[:, None] if axes is None else images.transpose(0, *(axis + 1 for axis in axes))
    assert (train.images.numpy() == wanted).all()
    assert train.images.equal(test.images)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4", np.int16, np.int64, ">i2", np.uint16])
def test_numbers_of_any_type(place, kind):
    bytes_ = noise(10, 5, 7)
    floats = np.dtype(kind).kind == "f"
    images = (bytes_ / 255 if floats else bytes_).astype(kind)
    train, _ = opened(write(place, train_images=images, train_labels=TEN, test_images=images, test_labels=TEN))
    assert np.abs(train.images[:, 0].numpy().astype(int) - bytes_).max() <= (kind == np.float16)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (TEN + 7, ("7", "8")),
        (TEN.astype(float), ("0", "1")),
        (TEN.astype(bool), ("0", "1")),
        (TEN[:, None], ("0", "1")),
        (TEN.astype(">u2"), ("0", "1")),
        (np.eye(2, dtype=np.float32)[TEN], ("0", "1")),
        (np.array([2, 10])[TEN], ("2", "10")),
        (np.array(["dog", "cat"])[TEN], ("cat", "dog")),
        (np.array(["10", "2"])[TEN], ("2", "10")),
    ],
)
def test_labels_of_any_type(place, labels, names):
    train, _ = opened(write(place, x_train=noise(10, 5, 5), y_train=labels, x_test=noise(10, 5, 5), y_test=labels))
    assert train.class_names == names
    assert len({(train.class_names[label], str(given)) for label, given in zip(train.labels, labels, strict=True)}) == 2


def test_images_are_scaled_as_pictures_are(place):
    images = noise(10, 40, 20, 3)
    write(place, images=images, labels=TEN)
    train, _ = opened(place, size=(20, 16), channels=1)
    assert train.image_shape == (1, 20, 16)
    assert train.images[..., :3].eq(0).all()  # to the left of a picture half as wide as high
    plain, _ = opened(place)
    for image, whole in zip(train.images, plain.images, strict=True):
        picture = capsnet.data.pictures.Image.fromarray(whole.permute(1, 2, 0).numpy())
        assert image.equal(capsnet.data.pictures.frame(picture, (1, 20, 16)))


def test_large_images_are_made_small(place):
    write(place, images=noise(10, 100, 150), labels=TEN)
    assert opened(place)[0].image_shape == (1, 43, 64)
    assert "cannot be made into images of 3" in told(write(place, images=noise(10, 9, 9, 4), labels=TEN), channels=3)


@pytest.mark.parametrize(("side", "size"), [(64, None), (64, 64), (8, 64)])
def test_an_archive_larger_than_memory_is_read_in_pieces(place, monkeypatch, side, size):
    for module in ("arrays", "npz"):
        monkeypatch.setattr(f"capsnet.data.{module}.PIECE", 2**15)
    count = 2000
    np.savez_compressed(place, images=np.zeros((count, side, side), np.uint8), labels=np.arange(count) % 2)
    tracemalloc.start()
    try:
        train, _ = opened(place, size=size)
        assert tracemalloc.get_traced_memory()[1] < count * 64 * 64 / 1.5
    finally:
        tracemalloc.stop()
    assert train.nbytes == 0.8 * count * 64 * 64


def test_channels_that_make_no_picture_are_scaled_each_for_itself(place):
    train, _ = opened(write(place, images=noise(10, 2, 20, 20), labels=TEN), size=10)
    assert train.image_shape == (2, 10, 10)


# What is refused


X = noise(10, 5, 5)
IMAGES = {"x_train": X, "y_train": TEN, "x_test": X}


@pytest.mark.parametrize(
    ("arrays", "answer"),
    [
        ({}, "has no arrays called images and labels, or x_train, y_train, …; there are: none"),
        ({"arr_0": X, "arr_1": TEN}, "there are: arr_0 (10, 5, 5), arr_1 (10,)"),
        ({"images": X}, "images is there, but the labels that go with it are not"),
        ({"y": TEN}, "y is there, but the images that go with it are not"),
        ({**IMAGES}, "x_test is there, but the labels that go with it are not"),
        ({**IMAGES, "y_test": TEN[:9]}, "x_test holds 10 images, but"),
        ({**IMAGES, "x_test": X[:, 1:], "y_test": TEN}, "of different shapes: 1×5×5 in train and 1×4×5 in test"),
        ({**IMAGES, "y_test": TEN * 0}, "the class '1' of"),
        ({**IMAGES, "y_test": TEN + 1}, "the class '2' of"),
        ({"x_test": X, "y_test": TEN}, "has no train pictures; there are: test"),
        ({"images": X, "labels": TEN * 0}, "has one class only, '0'"),
        ({"images": X, "labels": -TEN}, "has the label -1; labels are 0 or more"),
        ({"images": X, "labels": TEN + 0.5}, "holds labels that are no whole numbers"),
        ({"images": X, "labels": np.full(10, np.nan)}, "holds labels that are no whole numbers"),
        (
            {"images": X, "labels": np.stack([TEN, TEN], 1)},
            "has 2 labels an image; there must be one, or be it one-hot",
        ),
        ({"images": X, "labels": np.zeros((10, 2, 2))}, "labels are one number an image"),
        ({"images": X, "labels": np.zeros((10, 0))}, "labels are one number an image"),
        ({"images": X, "labels": np.zeros(10, "S3")}, "labels are one number an image"),
        (
            {"images": X, "labels": TEN.astype(object)},
            "pickled objects, which are never opened; save labels.astype(str)",
        ),
        ({"images": X.astype(object), "labels": TEN}, "holds object; images are whole numbers or floats"),
        ({"images": X > 99, "labels": TEN}, "holds bool; images are whole numbers or floats"),
        ({"images": X * np.nan, "labels": TEN}, "reaches from nan to nan; images are finite numbers"),
        ({"images": X.reshape(10, 25), "labels": TEN}, "has the shape (10, 25); images are (N, H, W), (N, H, W, C) or"),
        ({"images": noise(10, 20, 20, 20), "labels": TEN}, "has the shape (10, 20, 20, 20); images are (N, H, W)"),
        ({"images": X[:, :0], "labels": TEN}, "has images of 0 bytes; 1 to 100,000,000 can be used"),
        ({"images": X[:0], "labels": TEN[:0]}, "there are no pictures in"),
        ({"images": np.asfortranarray(X), "labels": TEN}, "lies column by column; save it with np.ascontiguousarray"),
        ({"images": np.array(7), "labels": TEN}, "has the shape ()"),
    ],
)
def test_arrays_that_cannot_be_used(place, arrays, answer):
    assert answer in told(write(place, **arrays))


class Trap:
    """Whoever opens this pickle makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_pickle_is_opened(place, tmp_path):
    trap = np.array([Trap(str(tmp_path / "caught"))], object)
    content = io.BytesIO()
    np.lib.format.write_array(content, trap, allow_pickle=True)
    for names in (("images", "labels"), ("labels", "images")):
        write(place, **{names[1]: X})
        with zipfile.ZipFile(place, "a") as archive:
            archive.writestr(f"{names[0]}.npy", content.getvalue())
        told(place)
    place.write_bytes(pickle.dumps(Trap(str(tmp_path / "caught"))))
    assert "is damaged or no .npz file" in told(place)
    assert not (tmp_path / "caught").exists()


def header(text):
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("member", "answer"),
    [
        (b"", "is damaged or no .npz file"),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (10, 5, 5), }"),
            "its header speaks of another size",
        ),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -5, 5), }"), "negative shape"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999, 5, 5), }"), "another size"),
        (header("__import__('os')"), "is damaged or no .npz file"),
    ],
)
def test_headers_that_lie(place, member, answer):
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("images.npy", member)
    assert answer in told(place)


def test_a_packing_that_cannot_be_undone_in_parts(place):
    write(place, images=X, labels=TEN)
    with zipfile.ZipFile(place) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(place, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "is not packed as NumPy packs" in told(place)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_any_damage_is_answered_with_one_line_or_does_not_matter(place, data, packed):
    (np.savez_compressed if packed else np.savez)(place, images=X, labels=TEN)
    content = bytearray(place.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        train = capsnet.open_dataset(place)
    except capsnet.InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert torch.is_tensor(train.images)
