"""A folder of class folders as a data set: which pictures and splits there are, and what is refused."""

import os

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from own_sets import draw, noise, opened, told, write_folder

import capsnet
from capsnet.data.splits import draw_test, in_order


def classes_of(place):
    return opened(place)[0].class_names


def sorted_images(*sets):
    """Whatever the order, these are the same pictures."""
    return sorted(image.numpy().tobytes() for each in sets for image in each.images)


def test_class_folders_become_classes_and_a_fifth_of_each_is_to_test_on(tmp_path, capsys):
    train, test = opened(write_folder(tmp_path / "pets", count=10))
    assert train.class_names == test.class_names == ("cats", "dogs")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([8, 8], [2, 2])
    assert train.image_shape == (1, 8, 8)
    assert sorted_images(train, test) == sorted(noise(8, 8, seed=seed).tobytes() for seed in range(20))
    for image, label in zip(train.images, train.labels, strict=True):
        own = range(10) if label == 0 else range(10, 20)
        assert any((image[0].numpy() == noise(8, 8, seed=seed)).all() for seed in own)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"reading 20 pictures of {tmp_path}/pets …"
    assert said[2:] == ["  train + test: cats 8 + 2, dogs 8 + 2"]
    assert said[1] == (
        f"{tmp_path}/pets: 2 classes, 16 pictures to train on, 4 pictures to test on (20 % of each class); "
        "8×8 pixels, grey"
    )


def test_a_draw_is_the_same_each_time_and_a_new_picture_leaves_the_others_where_they_were(tmp_path):
    first = write_folder(tmp_path / "first", count=20)
    moved = write_folder(tmp_path / "moved", count=20)
    (train, test), (again, _) = opened(first), opened(moved)
    assert train.images.equal(again.images)
    draw(first / "cats" / "new.png", seed=99)
    _, later = opened(first)
    assert len(set(sorted_images(test)) - set(sorted_images(later))) <= 1


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    seed=st.integers(0, 9),
    missing=st.integers(0, 3),
)
def test_draws_are_stratified(counts, seed, missing):
    """Also where pictures have no label: they are told later."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(-1, len(counts)), [missing, *counts]))
    names = [f"class {number}" for number in range(len(counts))]
    parts = draw_test([f"picture {number}" for number in range(len(labels))], labels, names, "x")
    assert sorted([*parts["train"], *parts["test"]]) == list(range(len(labels)))
    for number, count in enumerate(counts):
        assert (labels[parts["test"]] == number).sum() == max(1, round(0.2 * count))


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Testing"), ("TRAIN", "validation"), ("train", "val")]
)
def test_splits_that_folders_say(tmp_path, names):
    for split, count in zip(names, (4, 2), strict=True):
        write_folder(tmp_path / "set" / split, count=count)
    train, test = opened(tmp_path / "set")
    assert (len(train), len(test)) == (8, 4)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("archive/dataset/train", "archive/dataset/Testing Images"),
        ("wrapped/trainset", "wrapped/dev"),
        ("train2017", "val2017"),
    ],
)
def test_splits_as_people_pack_them(tmp_path, train, test):
    write_folder(tmp_path / train, count=4)
    write_folder(tmp_path / test, count=2)
    sets = opened(tmp_path)
    assert [(len(each), each.class_names) for each in sets] == [(8, ("cats", "dogs")), (4, ("cats", "dogs"))]


def test_class_folders_that_are_wrapped(tmp_path):
    assert classes_of(write_folder(tmp_path / "data/archive/pets").parents[1]) == ("cats", "dogs")
    write_folder(tmp_path / "one", classes=("cats",))
    draw(tmp_path / "one" / "cats" / "more" / "a.png")
    assert "has one class only, 'cats'" in told(tmp_path / "one")


def test_splits_within_each_class(tmp_path):
    """Folders of all classes; beside a class without them they are folders like any other."""
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        write_folder(tmp_path, classes=(f"cats/{split}", f"dogs/{split}"), count=count)
    assert [len(capsnet.open_dataset(str(tmp_path), split)) for split in ("train", "val", "test")] == [8, 2, 4]
    write_folder(tmp_path, classes=("birds",), count=3)
    train, test = opened(tmp_path)
    assert (len(train) + len(test), train.class_names) == (17, ("birds", "cats", "dogs"))


@pytest.mark.parametrize("names", [("color", "grayscale", "segmented"), ("training", "holdout")])
def test_folders_that_all_hold_the_same_classes_are_none(tmp_path, names):
    for name in names:
        write_folder(tmp_path / name, classes=("apple", "pear"), count=2)
    assert told(tmp_path).startswith(
        f"the folders {', '.join(sorted(names))} of {tmp_path} have folders of the same names in them (apple, pear), "
        f"so they are no classes; give one of them, --data {tmp_path}/{sorted(names)[0]}, or call them train and test"
    )
    assert classes_of(tmp_path / names[0]) == ("apple", "pear")


def test_class_folders_with_folders_of_years_are_classes(tmp_path):
    write_folder(tmp_path, classes=("cats/2019", "cats/2020", "dogs/2019", "dogs/2020"), count=2)
    assert classes_of(tmp_path) == ("cats", "dogs")


def test_a_second_copy_within_a_set_is_told(tmp_path):
    """As one well-known set of cells is packed."""
    write_folder(tmp_path, classes=("cats", "dogs", "cell_images/cats", "cell_images/dogs"))
    assert "has a folder cell_images with all the class folders in it once more; leave it out" in told(tmp_path)


def test_what_lies_beside_the_splits_is_left_out_and_told(tmp_path, capsys):
    for name in ("train", "test"):
        write_folder(tmp_path / name, count=2)
    draw(tmp_path / "seg_pred" / "a.png")
    assert [len(each) for each in opened(tmp_path)] == [4, 4]
    assert "4 pictures to test on; left out: seg_pred; 8×8 pixels" in capsys.readouterr().err


def test_of_many_classes_the_first_are_told(tmp_path, capsys):
    write_folder(tmp_path, classes=("a" * 50, *(f"b{number}" for number in range(19))), count=2)
    opened(tmp_path)
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"  train + test: {'a' * 39}… 1 + 1, b0 1 + 1, ")
    assert last.endswith(", b10 1 + 1 and 8 classes more")


def test_a_third_folder_is_to_validate_with(tmp_path):
    for split, count in (("train", 5), ("valid", 2), ("test", 3)):
        write_folder(tmp_path / split, count=count)
    assert [len(capsnet.open_dataset(str(tmp_path), split)) for split in ("train", "val", "test")] == [10, 4, 6]


def test_of_a_training_folder_alone_a_part_is_to_test_on(tmp_path):
    write_folder(tmp_path / "train")
    train, test = opened(tmp_path)
    assert (len(train), len(test)) == (8, 2)
    write_folder(tmp_path / "other" / "test")
    assert "has no train pictures; there are: test" in told(tmp_path / "other")
    assert "has no val pictures; there are: train, test" in told(tmp_path, "val")


def test_beside_other_vehicles_a_train_is_a_class(tmp_path):
    assert classes_of(write_folder(tmp_path, classes=("bus", "car", "train"))) == ("bus", "car", "train")


def test_folders_that_say_two_things_are_not_guessed_at(tmp_path):
    for name in ("Test", "train", "testing"):
        write_folder(tmp_path / "twins" / name, count=2)
    assert "has two folders to test on, Test and testing" in told(tmp_path / "twins")
    for name in ("train", "test", "notes"):
        write_folder(tmp_path / "mixed" / name, count=2)
    assert "has a folder notes beside those to train and to test on" in told(tmp_path / "mixed")


def test_a_folder_may_also_be_a_path_object_or_lie_at_home(tmp_path, monkeypatch):
    write_folder(tmp_path / "mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert capsnet.open_dataset(tmp_path / "mnist").class_names == ("cats", "dogs")
    assert capsnet.open_dataset(os.curdir + "/mnist").class_names == ("cats", "dogs")
    assert capsnet.open_dataset("~/mnist").class_names == ("cats", "dogs")
    assert capsnet.open_dataset((tmp_path / "mnist").relative_to(tmp_path)).class_names == ("cats", "dogs")


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        ("~nobody-here/pets", "there is no file or folder ~nobody-here/pets"),
        ("./none", "there is no file or folder ./none"),
        ("a/" + "x" * 300, "there is no file or folder a/x"),
        ("x" * 300, "unknown data set 'x"),
        ("./a\0b", "there is no file or folder"),
        ("", "unknown data set ''"),
        ("idx:~nobody-here", "there is no IDX file ~nobody-here"),
        ("hub:~nobody-here", "there is no folder ~nobody-here"),
        ("smallnorb:~nobody-here", "there is no file smallnorb"),
        ("affnist:~nobody-here", "there is no file or folder ~nobody-here"),
    ],
)
def test_places_that_are_none(place, answer):
    assert answer in told(place)


def test_only_own_sets_have_pictures_to_validate_with(tmp_path):
    for name in ("mnist", f"smallnorb:{tmp_path}", f"affnist:{tmp_path}"):
        assert told(name, "val") == "unknown split 'val'; there are: train, test"


# Sets that cannot be used
def test_sets_without_classes(tmp_path):
    assert "there are no class folders in" in told(tmp_path)
    draw(tmp_path / "a.png")
    assert "put the pictures of each class in a folder of its own" in told(tmp_path)
    write_folder(tmp_path, classes=("cats",))
    assert "has one class only, 'cats'; there must be at least 2" in told(tmp_path)
    (tmp_path / "dogs").mkdir()
    assert f"there are no pictures in the class folder {tmp_path}/dogs" in told(tmp_path)
    (tmp_path / "dogs" / "a.HEIC").write_bytes(b"")
    assert "/dogs; 1 files left out that cannot be read (.heic; convert them to JPEG or PNG)" in told(tmp_path)
    draw(tmp_path / "dogs" / "a.png")
    assert "the class 'dogs' of" in (answer := told(tmp_path))
    assert "has one picture; it takes one to train and one to test on" in answer


def test_what_is_in_a_folder_without_classes_is_named(tmp_path):
    (tmp_path / "X_train.npy").write_bytes(b"")
    (tmp_path / "y_train.npy").write_bytes(b"")
    assert told(tmp_path).endswith(
        "; put arrays, such as X_train.npy, into one archive: np.savez('set.npz', x_train=…, y_train=…), and perhaps "
        "x_test and y_test"
    )
    (tmp_path / "metadata.csv").write_bytes(b"")
    assert told(tmp_path).endswith(f"; metadata.csv in it is a set of its own: --data {tmp_path}/metadata.csv")


def test_classes_that_differ_between_train_and_test(tmp_path):
    write_folder(tmp_path / "train", classes=("cats", "dogs", "birds"))
    write_folder(tmp_path / "test", classes=("cats", "dogs"))
    assert "the class 'birds' of" in (answer := told(tmp_path))
    assert "has no pictures in test, but has in train; each must show the same classes" in answer
    assert told(tmp_path, "test") == answer


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"size": 0}, "images have 1 to 4096 pixels a side, not 0"),
        ({"size": (8, 5000)}, "images have 1 to 4096 pixels a side"),
        ({"channels": 2}, "channels are 1 for grey or 3 for colour, not 2"),
    ],
)
def test_sizes_that_no_image_has(tmp_path, options, answer):
    assert answer in told(write_folder(tmp_path), **options)


def test_sizes_are_for_own_images():
    assert "size and channels are for your own images" in told("mnist", size=20)


# Which files are pictures, and of which class
def test_files_and_folders_that_are_no_pictures_are_left_out(tmp_path, capsys):
    write_folder(tmp_path, classes=("cats", "two words", "naïve 猫"))
    for name in ("cats/.hidden.png", "cats/Thumbs.db", "cats/._0.png", ".git/a.png", "__MACOSX/cats/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "README.txt").write_text("of the set")
    (tmp_path / "cats" / "notes.txt").write_text("of a class")
    (tmp_path / "cats" / "LICENSE").write_text("of a class")
    os.mkfifo(tmp_path / "cats" / "pipe.png")
    train, test = opened(tmp_path)
    assert (len(train) + len(test), train.class_names) == (15, ("cats", "naïve 猫", "two words"))
    assert "; 2 files left out that are no pictures (without an ending, .txt)" in capsys.readouterr().err


def test_folders_within_a_class_folder_belong_to_it(tmp_path):
    draw(tmp_path / "dogs" / "a.png")
    draw(tmp_path / "dogs" / "more" / "of them" / "b.PNG", seed=1)
    draw(tmp_path / "cats" / "train" / "a.Jpg")
    draw(tmp_path / "cats" / "test" / "b.JPEG", seed=1)
    assert classes_of(tmp_path) == ("cats", "dogs")
    assert sum(map(len, opened(tmp_path))) == 4


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "set")
    draw(tmp_path / "elsewhere" / "a.png", seed=77)
    (tmp_path / "set" / "dogs" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dogs" / "all").symlink_to(tmp_path / "set" / "dogs")
    (tmp_path / "set" / "dogs" / "itself").symlink_to("itself")
    assert sum(map(len, opened(tmp_path / "set"))) == 11


def test_names_that_are_no_unicode(tmp_path):
    write_folder(tmp_path)
    os.rename(os.fsencode(tmp_path / "cats"), os.fsencode(tmp_path) + b"/caf\xe9")
    assert classes_of(tmp_path) == (r"caf\xe9", "dogs")


def test_classes_are_ordered_as_people_do(tmp_path):
    names = ("10", "2", "1", "Class 11", "class 2", "b", "A")
    assert classes_of(write_folder(tmp_path, classes=names, count=2)) == (
        *("1", "2", "10", "A", "b", "class 2", "Class 11"),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), unique=True))
@example(["1" * 5000, "1" * 4999, "٣", "²"])
def test_any_names_have_an_order(names):
    assert in_order(reversed(names)) == in_order(names)
    assert sorted(in_order(names)) == sorted(names)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**30), unique=True))
def test_numbers_are_in_their_order(numbers):
    assert in_order(map(str, numbers)) == [str(number) for number in sorted(numbers)]


def test_a_thousand_classes(tmp_path):
    picture = draw(tmp_path / "picture.png")
    for number in range(1000):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            os.link(picture, tmp_path / "set" / str(number) / name)
    train, test = opened(tmp_path / "set")
    assert train.labels.bincount().equal(torch.ones(1000, dtype=torch.long))
    assert test.class_names == tuple(map(str, range(1000)))


def test_drawing_from_many_classes_takes_no_longer_than_from_few():
    names = [str(number) for number in range(50_000)]
    labels = np.repeat(np.arange(25_000), 2)
    assert (labels[draw_test(names, labels, names[:25_000], "x")["test"]].sum()) == sum(range(25_000))


def test_a_test_folder_beside_class_folders_is_told(tmp_path):
    place = write_folder(tmp_path / "set", classes=("cats", "dogs", "test/cats", "test/dogs"))
    assert told(place) == (
        f"{place} has class folders beside test, which has folders of the same names; put them into a folder train"
    )
