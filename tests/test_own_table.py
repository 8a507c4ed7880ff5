"""A table of picture paths and labels as a data set: CSV as people's programs write it, TSV, Parquet."""

import datetime

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_sets import draw, opened, told, write_folder, write_table

import capsnet
from capsnet.card import public_name
from capsnet.data import parquet


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures, and rows that name them."""
    for number in range(10):
        draw(tmp_path / "pictures" / f"{number}.png", seed=number)
    return [(f"pictures/{number}.png", "cat" if number < 5 else "dog") for number in range(10)]


def write_parquet(place, /, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), place)
    return place


def columns_of(rows):
    paths, labels = zip(*rows, strict=True)
    return {"path": paths, "label": labels}


def test_a_table_names_pictures_and_their_classes(tmp_path, pictures, capsys):
    train, test = opened(write_table(tmp_path / "set.csv", pictures))
    assert train.class_names == ("cat", "dog")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([4, 4], [1, 1])
    assert "set.csv: 2 classes, 8 pictures to train on, 2 pictures to test on (20 % of each class); 8×8 pixels" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_as_spreadsheets_write_them(tmp_path, pictures, separator, encoding, end):
    rows = [(path, f'a "big", {label}; 猫') for path, label in pictures]
    place = write_table(tmp_path / "set.CSV", rows, separator, encoding=encoding, end=end)
    assert opened(place)[0].class_names == ('a "big", cat; 猫', 'a "big", dog; 猫')


def test_a_table_of_tabs(tmp_path, pictures):
    assert len(opened(write_table(tmp_path / "set.tsv", pictures, "\t"))[0]) == 8


def test_other_columns_blank_lines_and_spaces_do_no_harm(tmp_path, pictures):
    rows = [(number, "", f" {path} ", f" {label}") for number, (path, label) in enumerate(pictures)]
    place = write_table(tmp_path / "set.csv", rows, header=("", "Notes", " Image ", "CLASS"))
    place.write_text(place.read_text().replace("\n", "\n\n") + "\n\n")
    assert opened(place)[0].class_names == ("cat", "dog")


def test_paths_from_the_table_on_or_from_the_root(tmp_path, pictures, monkeypatch):
    monkeypatch.chdir("/")
    rows = [(tmp_path / path if number % 2 else f"./{path}", label) for number, (path, label) in enumerate(pictures)]
    assert sum(map(len, opened(write_table(tmp_path / "set.csv", rows)))) == 10


def test_a_column_says_what_is_to_test_on(tmp_path, pictures):
    uses = ("train", "train", "Validation", "test", "TEST")
    rows = [(*row, uses[number % 5]) for number, row in enumerate(pictures)]
    place = write_table(tmp_path / "set.csv", rows, header=("file", "target", "split"))
    assert [len(capsnet.open_dataset(str(place), split)) for split in ("train", "val", "test")] == [4, 2, 4]
    rows[3] = (*pictures[3], "")
    assert "line 5: the split is ''; there are: train, training, val, valid, validation, dev, test, testing" in told(
        write_table(place, rows, header=("file", "target", "split"))
    )


def test_classes_that_are_numbers(tmp_path, pictures):
    rows = [(path, 10 if label == "cat" else 2) for path, label in pictures]
    assert opened(write_table(tmp_path / "set.csv", rows))[0].class_names == ("2", "10")


def test_a_picture_that_stands_there_twice_is_one(tmp_path, pictures):
    assert sum(map(len, opened(write_table(tmp_path / "set.csv", pictures * 2)))) == 10
    twice = write_table(tmp_path / "set.csv", [*pictures, (pictures[0][0], "dog")])
    assert "line 12: pictures/0.png stands there with another label or split before" in told(twice)


def test_the_same_pictures_under_other_labels_are_another_set(tmp_path, pictures):
    place = write_table(tmp_path / "set.csv", pictures)
    assert opened(place)[0].class_names == ("cat", "dog")
    write_table(place, [(path, label.upper()) for path, label in pictures])
    assert opened(place)[0].class_names == ("CAT", "DOG")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", "has no column that is known to hold picture paths; it should have one called 'path', and has: none"),
        (b"pictures/0.png,cat\npictures/1.png,dog\n", "one called 'path', and has: 'pictures/0.png', 'cat'"),
        (b"path\npictures/0.png\n", "no column that is known to hold labels; it should have one called 'label'"),
        (b"path,label,label\n", "no column that is known to hold labels"),
        (b"path,label\n", "there are no pictures in"),
        (b"path,label\npictures/0.png\n", "line 2: there are 1 values for 2 columns"),
        (b"path,label\n\npictures/0.png,cat,\n", "line 3: there are 3 values for 2 columns"),
        (b"path,label\npictures/0.png, \n", "line 2: there is no label for pictures/0.png"),
        (b"path,label\n,cat\n", "line 2: there is no picture path"),
        (b"path,label\nnone.png,cat\n", "line 2: there is no picture "),
        (b"path,label\na\xffb.png,cat\n", "is no table of text in UTF-8"),
        ("path,label\nö.png,cat\n".encode("utf-16"), "is no table of text"),
        (b"\x89PNG\r\n\0\0\0", "is no table of text"),
        (b"path,label\n" + b"x" * 2**20 + b",cat\n", "is no table of text"),
        (b"path,label\n" + b"x" * 200_000 + b",cat\n", "line 2: field larger than field limit"),
        (b'path,label\n"pictures/0.png,cat\n', "line 2: there are 1 values for 2 columns"),
        (b"path,label\npictures/0.png,cat\npictures/1.png,cat\n", "has one class only, 'cat'"),
        (b"path,label\npictures/0.png,cat\npictures/1.png,dog\n", "has one picture; it takes one to train"),
        (b"path,label\n" + b"".join(b"pictures/%d.png,%s\n" % (n, b"1" * 5000) for n in (1, 2)), "has one class only"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, pictures, content, answer):
    (tmp_path / "set.csv").write_bytes(content)
    assert answer in told(tmp_path / "set.csv")


HEADS = [("image_id", "dx"), ("id_code", "diagnosis"), ("image", "label")]


@pytest.mark.parametrize("header", HEADS)
@pytest.mark.parametrize("name", ["{}", "{}.png", "pictures/{}", "pictures\\{}.png", ".\\pictures\\{}"])
def test_names_as_people_write_them(tmp_path, pictures, header, name, capsys):
    """Without an ending, or without the folder that the pictures are in, as in most tables of competitions."""
    rows = [(name.format(number), label) for number, (_, label) in enumerate(pictures)]
    train, test = opened(write_table(tmp_path / "set.csv", rows, header=header))
    assert (len(train), len(test), train.class_names) == (8, 2, ("cat", "dog"))
    assert f"; {rows[0][0]} is pictures/0.png; 8×8" in capsys.readouterr().err


def test_names_that_may_be_two_pictures_are_not_guessed_at(tmp_path, pictures):
    draw(tmp_path / "others" / "0.jpg")
    rows = [(str(number), label) for number, (_, label) in enumerate(pictures)]
    answer = told(write_table(tmp_path / "set.csv", rows))
    assert "line 2: 0 may be " in answer
    assert "pictures/0.png" in answer
    assert "others/0.jpg" in answer
    rows[0] = ("others/0", "cat")
    write_table(tmp_path / "set.csv", rows)
    (tmp_path / "others" / "0.jpg").unlink()
    assert "line 2: there is no picture " in told(tmp_path / "set.csv")  # pictures/0.png is another one


def test_a_column_for_each_class(tmp_path, pictures):
    """As ISIC has them; what else there is does no harm."""
    rows = [(path, float(label == "cat"), int(label == "dog"), 0, f"p{path}") for path, label in pictures]
    header = ("image", "MEL", "NV", "UNK", "patient")
    place = write_table(tmp_path / "set.csv", rows, header=header)
    train, test = opened(place)
    assert (train.class_names, len(train), len(test)) == (("MEL", "NV"), 8, 2)
    rows[3] = (pictures[3][0], 1, 1, 0, "p")
    assert "line 5: 2 columns of classes are 1; a picture has one label" in told(
        write_table(place, rows, header=header)
    )


def test_missing_pictures_are_counted(tmp_path, pictures, capsys):
    rows = [*pictures * 20, ("a.png", "cat"), ("b.png", "dog")]
    place = tmp_path / "set.csv"
    assert told(write_table(place, rows)).endswith(
        f"set.csv, line 202: there is no picture {tmp_path}/a.png; nor 1 others of 12"
    )
    for number in range(100):
        draw(tmp_path / "more" / f"{number}.png", seed=number)
    rows = [*((f"more/{number}.png", ("cat", "dog")[number % 2]) for number in range(100)), ("a.png", "cat")]
    train, test = opened(write_table(place, rows))
    assert len(train) + len(test) == 100
    said = capsys.readouterr().err
    assert f"; 1 missing left out, the first in line 102: there is no picture {tmp_path}/a.png; 8×8" in said


def test_tables_of_pixels_are_answered_shortly(tmp_path):
    header = ("label", *(f"pixel{number}" for number in range(784)))
    answer = told(write_table(tmp_path / "set.csv", [], header=header))
    assert answer.endswith(
        "one called 'path', and has: 'label', 'pixel0', 'pixel1', 'pixel2', 'pixel3', 'pixel4', 'pixel5', 'pixel6' and "
        "777 more; pixels themselves are read from an .npz archive: np.savez(FILE, images=…, labels=…)"
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary(max_size=60)
    | st.text(alphabet='path,;label\t\n\r"0 .png/\0', max_size=60).map(str.encode)
    | st.text(alphabet='path,;label\t\n\r"0 .png/\0', max_size=40).map(lambda text: b"path,label\n" + text.encode())
)
def test_anything_in_a_table_is_answered_with_one_line(tmp_path, content):
    (tmp_path / "any.csv").write_bytes(content)
    told(tmp_path / "any.csv")


@pytest.mark.parametrize("name", ["set.txt", "set", "set.png", "set.npy", "set.csv.gz"])
def test_other_files_are_not_guessed_at(tmp_path, name):
    (tmp_path / name).write_bytes(b"path,label\n")
    assert "is neither a folder nor a file of the kinds that are known: .npz, .csv, .tsv, .parquet" in told(
        tmp_path / name
    )


# Parquet


def test_a_parquet_table(tmp_path, pictures):
    train, test = opened(write_parquet(tmp_path / "set.parquet", **columns_of(pictures), more=[[1]] * 10))
    assert (train.class_names, len(train), len(test)) == (("cat", "dog"), 8, 2)


@pytest.mark.parametrize("name", ["set.parquet", "SET.PARQUET"])
def test_a_parquet_table_has_its_labels_in_one_column(tmp_path, pictures, name):
    flags = {"cat": [0, 1] * 5, "dog": [1, 0] * 5}
    place = write_parquet(tmp_path / name, path=columns_of(pictures)["path"], **flags)
    assert "no column that is known to hold labels" in told(place)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pyarrow.array([10.0, 2.0] * 5), ("2", "10")),
        (pyarrow.array([0.5, 2.0] * 5), ("0.5", "2")),
        (pyarrow.array([3, 20] * 5, pyarrow.uint8()), ("3", "20")),
        (pyarrow.array([True, False] * 5), ("False", "True")),
        (pyarrow.array(["x", "y"] * 5).dictionary_encode(), ("x", "y")),
        (pyarrow.array(["x", "y"] * 5, pyarrow.large_string()), ("x", "y")),
        (pyarrow.array([datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)] * 5), ("2026-01-02", "2026-01-03")),
    ],
)
def test_labels_of_any_type(tmp_path, pictures, labels, names):
    place = write_parquet(tmp_path / "set.parquet", path=columns_of(pictures)["path"], label=labels)
    assert opened(place)[0].class_names == names


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_labels_that_are_missing(tmp_path, pictures, missing):
    labels = pyarrow.array([1.0, 2.0] * 4 + [missing, 1.0], from_pandas=False)
    place = write_parquet(tmp_path / "set.parquet", path=columns_of(pictures)["path"], label=labels)
    assert "row 9: there is no label for pictures/8.png" in told(place)


def test_only_the_columns_that_are_needed_are_read(tmp_path, pictures, monkeypatch):
    """Pictures within the table, beside their paths, may be large."""
    monkeypatch.setattr(parquet, "MAX_BYTES", 10_000)
    photos = [np.random.default_rng(number).bytes(10_000) for number in range(10)]
    place = write_parquet(tmp_path / "set.parquet", **columns_of(pictures), photo=photos)
    assert len(opened(place)[0]) == 8
    place = write_parquet(place, path=[photo.hex() for photo in photos], label=columns_of(pictures)["label"])
    assert "speaks of 10 rows and" in told(place)


def test_pictures_within_a_table_are_no_paths(tmp_path, pictures):
    held = [{"bytes": b"x", "path": path} for path, _ in pictures]
    place = write_parquet(tmp_path / "set.parquet", image=held, label=columns_of(pictures)["label"])
    assert "the column 'image' of" in (answer := told(place))
    assert "holds struct<bytes: binary, path: string>; it should hold text or numbers" in answer
    place = write_parquet(place, image=[b"x"] * 10, label=[1] * 10)
    assert "holds binary; it should hold text or numbers" in told(place)


def test_parquet_files_that_are_none(tmp_path, monkeypatch):
    place = tmp_path / "set.parquet"
    for content in (b"", b"PAR1", b"path,label\n"):
        place.write_bytes(content)
        assert "set.parquet is damaged or no Parquet file: " in told(place)
    assert "has no column that is known to hold labels; it should have one called 'label', and has: 'path'" in told(
        write_parquet(place, path=["a"])
    )
    assert "there are no pictures in" in told(write_parquet(place, path=["a"][:0], label=["b"][:0]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the library pyarrow; install it with: pip install 'capsnet[hub]', or give a .csv" in told(place)


def test_parquet_files_with_any_damage(tmp_path, pictures):
    place = write_parquet(tmp_path / "set.parquet", **columns_of(pictures))
    whole = place.read_bytes()
    refused = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        place.write_bytes(content if seed % 3 else whole[: rng.integers(len(whole))])
        try:
            capsnet.open_dataset(place)
        except capsnet.InputError as error:
            refused += "\n" not in str(error)
    assert refused > 30


def test_a_picture_has_one_name_and_is_a_file(tmp_path, pictures):
    rows = [*pictures, ("./pictures/0.png", "dog")]
    assert "pictures/0.png stands there with another label" in told(write_table(tmp_path / "set.csv", rows))
    (tmp_path / "folder.png").mkdir()
    assert "there is no picture" in told(write_table(tmp_path / "set.csv", [*pictures, ("folder.png", "cat")]))


def test_columns_are_named_where_nobody_else_calls_them_so(tmp_path):
    write_folder(tmp_path)
    rows = [(f"{name}/{k}.png", name, "x") for name in ("cats", "dogs") for k in range(5)]
    table = write_table(tmp_path / "set.csv", rows, header=("Photo of it", "kind", "label"))
    assert f"others are named in: {table}:PATHS:LABELS" in told(table)
    train, test = opened(f"{table}:photo of it:KIND", size=8)
    assert train.class_names == ("cats", "dogs")
    assert (len(train), len(test)) == (8, 2)
    assert f"{table} has no column 'sort', or more than one; it has: 'Photo of it', 'kind', 'label'" in told(
        f"{table}:Photo of it:sort"
    )
    assert "there is no file or folder" in told(f"{table}:kind")
    assert public_name(f"{table}:photo of it:KIND") == "set.csv:photo of it:KIND"
