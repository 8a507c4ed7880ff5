"""Data sets of the hub, on sets that the tests save as it does."""

import contextlib
from pathlib import Path

import datasets
import pytest
from damage import damaged, random
from PIL import Image

import capsnet
from capsnet.data.hub import SHORT_NAMES


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


def test_names_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()  # no data set: it does not stand for the one on the hub
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
