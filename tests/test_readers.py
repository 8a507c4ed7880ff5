"""Readers of published formats, on files that the tests write in those formats."""

import contextlib
import gzip
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import capsnet
from capsnet.data.affnist_files import read_affnist_file
from capsnet.data.hub import SHORT_NAMES
from capsnet.data.idx import read_idx_file
from capsnet.data.smallnorb import read_smallnorb_poses


def random(*shape, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def damaged(content, seed, header):
    """A file as an accident leaves it: cut, with wrong bytes (half of them in the header), or with more behind."""
    rng = np.random.default_rng(seed)
    content = bytearray(content)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(min(len(content), rng.choice([header, len(content)])))] = rng.integers(256)
        return bytes(content)
    return bytes(content) + rng.bytes(rng.integers(1, 40))


def told(path, *, by):
    """What is said of a file that cannot be used: one line with its name. None if it was read."""
    try:
        by(path)
    except capsnet.InputError as error:
        answer = str(error)
    else:
        return None
    assert path.name in answer
    assert "\n" not in answer
    return answer


def check_damage(path, read, header, cases=300):
    """Whatever happens to a file, it is read or refused; if its length is wrong it is refused."""
    whole = path.read_bytes()
    refused = 0
    for seed in range(cases):
        content = damaged(whole, seed, header)
        path.write_bytes(content)
        answer = told(path, by=read)
        refused += answer is not None
        if len(content) != len(whole):
            assert answer is not None, f"case {seed}"
    path.write_bytes(whole)
    assert told(path, by=read) is None
    assert refused > cases / 2


# IDX


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
        (gzip.compress(idx(random(30, 40, 2)))[:-30], "damaged"),
        (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 1, 1)), "truncated"),
    ],
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


# smallNORB

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
        ("dat", idx(random(4, 6, 5)), "not a -dat file of smallNORB"),
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


# affNIST


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


# The hub


def saved(folder, **splits):
    """A set with pictures and class labels, saved as `datasets` does."""
    pictures = {name: [Image.fromarray(array) for array in arrays] for name, arrays in splits.items()}
    features = datasets.Features(
        {"id": datasets.Value("int64"), "img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    tables = {
        name: datasets.Dataset.from_dict(
            {"id": list(range(len(images))), "img": images, "label": [k % 2 for k in range(len(images))]}, features
        )
        for name, images in pictures.items()
    }
    datasets.DatasetDict(tables).save_to_disk(folder)
    return f"hub:{folder}"


@pytest.fixture(autouse=True)
def quiet_hub(monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_hub_sets_saved_on_disk(tmp_path, colours):
    place = saved(tmp_path / "set", train=random(6, 10, 12, *colours), test=random(3, 10, 12, *colours, seed=1))
    train, test = (capsnet.open_dataset(place, split) for split in ("train", "test"))
    pixels = random(6, 10, 12, *(colours or (1,))).transpose(0, 3, 1, 2)
    assert (train.images.numpy() == pixels).all()
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.class_names == ("cat", "dog")
    assert len(test) == 3


def test_hub_sets_of_any_size(tmp_path):
    """Saved with splits or without, and given as a path or with `hub:`."""
    place = saved(tmp_path / "set", train=[random(40, 20), random(30, 60), random(50, 50), random(44, 70)])
    datasets.load_from_disk(tmp_path / "set")["train"].save_to_disk(tmp_path / "alone")
    for name in (place, tmp_path / "set", tmp_path / "alone", f"hub:{tmp_path / 'alone'}"):
        train, test = (capsnet.open_dataset(name, split, size=(16, 24)) for split in ("train", "test"))
        assert train.images.shape == test.images.shape == (2, 1, 16, 24)
        assert train.labels.sort().values.tolist() == test.labels.sort().values.tolist() == [0, 1]
    assert capsnet.open_dataset(place).image_shape == (1, 42, 55)  # the median picture's
    assert capsnet.open_dataset(place, channels=3).image_shape == (3, 42, 55)


def test_hub_sets_that_cannot_be_used(tmp_path):
    place = saved(tmp_path / "set", train=random(4, 4, 4), test=random(1, 4, 4))
    with pytest.raises(capsnet.InputError, match="has no val pictures; there are: train, test"):
        capsnet.open_dataset(place, "val")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [Image.fromarray(random(4, 4))] * 3, "label": [0, 1, None]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(capsnet.InputError, match=r"the class 'a' of .* has one picture"):
        capsnet.open_dataset(tmp_path / "unlabelled")
    rows = {name: values * 3 for name, values in rows.items()}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "unlabelled-too")
    with pytest.raises(capsnet.InputError, match="has the label -1 in train; labels are 0 to 1"):
        capsnet.open_dataset(tmp_path / "unlabelled-too")
    datasets.Dataset.from_dict({"img": [1], "label": [0]}).save_to_disk(tmp_path / "alone")
    with pytest.raises(capsnet.InputError, match=r"no column of type Image; there are: img \(Value\), label \(Value\)"):
        capsnet.open_dataset(f"hub:{tmp_path}/alone")
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"x": [1]})).save_to_disk(tmp_path / "numbers")
    with pytest.raises(capsnet.InputError, match=r"no column of type Image; there are: x \(Value\)"):
        capsnet.open_dataset(f"hub:{tmp_path}/numbers")
    with pytest.raises(capsnet.InputError, match=r"there is no folder \./none"):
        capsnet.open_dataset("hub:./none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(capsnet.InputError, match="cannot open the data set"):
        capsnet.open_dataset(f"hub:{tmp_path}/empty")


def test_a_picture_that_is_only_named_is_not_looked_for(tmp_path, monkeypatch):
    Image.fromarray(random(4, 4)).save(tmp_path / "mine.png")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": None, "path": str(tmp_path / "mine.png")}] * 4, "label": [0, 0, 1, 1]}
    # Saving would copy the file into the set; who means harm would not.
    monkeypatch.setattr(datasets.Image, "embed_storage", lambda self, storage, *_, **__: storage)
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "set")
    with pytest.raises(
        capsnet.InputError, match=r"none of the 4 pictures .* picture \d of .* is not in the data set itself"
    ):
        capsnet.open_dataset(f"hub:{tmp_path}/set")


def test_hub_sets_with_any_damage(tmp_path):
    place = saved(tmp_path / "set", train=random(6, 8, 8))
    files = sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        whole = file.read_bytes()
        for seed in range(25):
            file.unlink()  # the old content may still be mapped into memory
            file.write_bytes(damaged(whole, seed, 500))
            with contextlib.suppress(capsnet.InputError):  # but nothing else, and no crash
                capsnet.open_dataset(place)
        file.unlink()
        file.write_bytes(whole)
    assert len(capsnet.open_dataset(place)) == 4


def test_names_on_the_hub(monkeypatch):
    asked = []

    def load(name, configuration=None):
        asked.append((name, configuration))
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for place in ("cifar10", "svhn", "someone/things", "someone/things:large"):
        with pytest.raises(
            capsnet.InputError, match=f"cannot open the data set {place}: Couldn't reach '[^']*' on the"
        ):
            capsnet.open_dataset(f"hub:{place}")
    assert asked == [*SHORT_NAMES.values(), ("someone/things", None), ("someone/things", "large")]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(capsnet.InputError, match=r"pip install 'capsnet\[hub\]'"):
        capsnet.open_dataset("hub:cifar10")


# Names


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cifar", r"unknown data set 'cifar'; there are: mnist, multimnist, .*idx:FOLDER.*hub:NAME"),
        ("zip:x", "unknown data set 'zip:x'"),
        ("mnist:x", "unknown data set 'mnist:x'"),
        ("idx", "'idx' does not say where: idx:FOLDER"),
        ("hub:", "'hub:' does not say where: hub:NAME"),
    ],
)
def test_names_that_are_none(name, answer):
    with pytest.raises(capsnet.InputError, match=answer):
        capsnet.open_dataset(name)


def test_pairs_are_not_images_with_one_label():
    with pytest.raises(capsnet.InputError, match="two digits on each image"):
        capsnet.data.open_images("multimnist")
    assert torch.is_tensor(capsnet.data.open_images("mnist", "test").labels)
