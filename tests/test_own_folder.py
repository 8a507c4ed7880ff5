"""A folder of class folders as a data set: which pictures and splits there are, and what is refused."""

import os

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from own_sets import draw, noise, opened, told, write_folder
from PIL import Image

import capsnet
from capsnet.data import cache, prepared
from capsnet.data.pictures import decode_picture, measure_picture
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
    assert "/dogs; 1 files left out that are no pictures (.heic)" in told(tmp_path)
    draw(tmp_path / "dogs" / "a.png")
    assert "the class 'dogs' of" in (answer := told(tmp_path))
    assert "has one picture; it takes one to train and one to test on" in answer


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
    assert classes_of(tmp_path) == ("caf\udce9", "dogs")


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


# Sizes and colours


def test_images_are_of_the_median_size(tmp_path, capsys):
    for number, (height, width) in enumerate([(10, 30), (12, 36), (14, 20)]):
        draw(tmp_path / "a" / f"{number}.png", height, width)
        draw(tmp_path / "b" / f"{number}.png", height, width)
    assert opened(tmp_path)[0].image_shape == (1, 12, 30)
    assert "; 12×30 pixels (the median picture has 12×30; --size sets another size), grey" in capsys.readouterr().err


def test_no_image_is_large_unless_asked_for(tmp_path, capsys):
    write_folder(tmp_path, 100, 200, 3, count=2)
    assert opened(tmp_path)[0].image_shape == (3, 32, 64)
    assert "32×64 pixels (the median picture has 100×200; --size sets another size), colour" in capsys.readouterr().err
    assert opened(tmp_path, size=(90, 70))[0].image_shape == (3, 90, 70)
    assert "90×70 pixels, colour" in capsys.readouterr().err
    assert opened(tmp_path, size=20, channels=1)[0].image_shape == (1, 20, 20)
    write_folder(tmp_path / "thin", 1, 300, count=2)
    assert opened(tmp_path / "thin")[0].image_shape == (1, 1, 64)


def test_pictures_keep_their_aspect(tmp_path):
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (40, 20), 255).save(tmp_path / name / f"{number}.png")
    image = opened(tmp_path, size=16)[0].images[0, 0]
    assert image[4:12].eq(255).all()
    assert image[:4].eq(0).all()
    assert image[12:].eq(0).all()


def test_a_mix_of_formats_and_colours_is_in_colour(tmp_path):
    kinds = {"a.png": "L", "b.jpg": "RGB", "c.gif": "P", "d.bmp": "1", "e.tif": "I;16", "f.webp": "RGBA", "g.tiff": "F"}
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for file, mode in kinds.items():
            Image.new(mode, (9, 9)).save(tmp_path / name / file)
    Image.new("CMYK", (9, 9)).save(tmp_path / "x" / "h.jpeg")
    train, test = opened(tmp_path)
    assert (len(train) + len(test), train.image_shape) == (15, (3, 9, 9))


WHITE = {
    "1": np.ones((4, 5), bool),
    "L": np.full((4, 5), 255, np.uint8),
    "LA": np.full((4, 5, 2), 255, np.uint8),
    "I;16": np.full((4, 5), 65535, np.uint16),
    "F": np.ones((4, 5), np.float32),
}


@pytest.mark.parametrize("mode", WHITE)
def test_pictures_in_grey_are_grey(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(WHITE[mode]).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    assert measure_picture(path, "x") == (4, 5, True)
    picture = decode_picture(path, "x")
    assert picture.mode == "L"
    assert np.unique(np.asarray(picture)) == 255


def test_grey_with_transparency_stays_grey(tmp_path):
    pixels = np.zeros((4, 4, 2), np.uint8)
    pixels[:2, :, 1] = 255  # black ink on nothing
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = decode_picture(tmp_path / "a.png", "x")
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0] * 4] * 2 + [[255] * 4] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
    """Measured as they are decoded, and decoded as a viewer shows them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = draw(tmp_path / "a.png", 4, 7, exif=exif)
    picture = decode_picture(path, "x")
    assert measure_picture(path, "x")[:2] == (picture.height, picture.width)
    assert picture.size == ((7, 4) if orientation < 5 else (4, 7))
    stored = torch.from_numpy(noise(4, 7))
    turned = [
        *(stored, stored.flip(1), stored.flip(0, 1), stored.flip(0)),
        *(stored.T, stored.rot90(-1), stored.T.flip(0, 1), stored.rot90(1)),
    ]
    assert (np.asarray(picture) == turned[orientation - 1].numpy()).all()


def test_of_a_picture_that_moves_the_first_moment_is_taken(tmp_path):
    first, second = (Image.new("L", (6, 6), level) for level in (200, 10))
    for ending in ("gif", "webp", "tif", "png"):
        path = tmp_path / f"a.{ending}"
        first.save(path, save_all=True, append_images=[second], **({"lossless": True} if ending == "webp" else {}))
        assert np.unique(np.asarray(decode_picture(path, "x"))).tolist() == [200]


# Damage


def entries():
    """All that lies in the cache but locks, which stay."""
    return sorted(path for path in cache.cache_folder().glob("*") if path.suffix != ".lock")


def write_damaged(root, damaged, count=100):
    """Of `2 * count` pictures so many are damaged, each in its own way."""
    write_folder(root, count=count)
    ways = [b"", b"no picture at all", (root / "cats" / "0.png").read_bytes()[:60]]
    for number in range(damaged):
        (root / "dogs" / f"{number}.png").write_bytes(ways[number % 3])
    return root


def test_damaged_pictures_are_named_left_out_and_counted(tmp_path, capsys):
    train, test = opened(write_damaged(tmp_path / "set", 2))
    assert len(train) + len(test) == 198
    said = capsys.readouterr().err
    assert "left out: dogs/0.png is not a picture that can be read (PNG, JPEG, … are)\n" in said
    assert "left out: dogs/1.png is not a picture that can be read" in said
    assert said.endswith("8×8 pixels, grey; 2 damaged left out\n")
    assert [len(each.labels) for each in (train, test)] == [len(each.images) for each in (train, test)]
    opened(tmp_path / "set")  # told again, from the cache
    assert capsys.readouterr().err.endswith("; 2 damaged left out\n")


def test_too_many_damaged_pictures_stop_and_leave_nothing(tmp_path):
    place = write_damaged(tmp_path / "set", 3)
    before = entries()
    answer = told(place)
    assert answer.startswith(f"more than 1 % of the 200 pictures of {place} cannot be read, the last one: dogs/")
    assert entries() == before


def test_a_truncated_picture_is_damaged(tmp_path, capsys):
    write_folder(tmp_path, 40, 40, count=60)
    path = tmp_path / "cats" / "7.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert sum(map(len, opened(tmp_path))) == 119
    assert "left out: cats/7.png is damaged or cannot be read: " in capsys.readouterr().err


def test_a_link_that_leads_nowhere_is_a_damaged_picture(tmp_path, capsys):
    write_folder(tmp_path, count=60)
    (tmp_path / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cats" / "lock").symlink_to("user@host:1234")
    assert sum(map(len, opened(tmp_path))) == 120
    assert "left out: there is no picture cats/gone.png\n" in capsys.readouterr().err


def test_no_more_than_a_few_damaged_pictures_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_DAMAGED", 1)
    opened(write_damaged(tmp_path / "set", 30))
    said = capsys.readouterr().err
    assert said.count("left out: ") == prepared.MAX_NAMED
    assert "; 30 damaged left out\n" in said


def test_where_all_pictures_are_damaged_the_first_is_named(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert "none of the 4 pictures of" in (answer := told(tmp_path))
    assert ".png is not a picture that can be read" in answer


def test_a_class_of_which_damage_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_DAMAGED", 1)
    write_damaged(tmp_path, 5, count=5)
    assert "the class 'dogs' of" in (answer := told(tmp_path))
    assert "has no pictures in train" in answer


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path, capsys):
    write_folder(tmp_path, count=60)
    Image.new("1", (11_000, 10_000)).save(tmp_path / "cats" / "huge.png")
    assert sum(map(len, opened(tmp_path))) == 120
    assert "left out: cats/huge.png has 11000×10000 pixels; the limit is 100,000,000\n" in capsys.readouterr().err


def test_a_test_folder_beside_class_folders_is_told(tmp_path):
    place = write_folder(tmp_path / "set", classes=("cats", "dogs", "test/cats", "test/dogs"))
    assert told(place) == (
        f"{place} has class folders beside test, which has folders of the same names; put them into a folder train"
    )
