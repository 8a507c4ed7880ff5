"""Own images from the command line: train on them, evaluate, predict."""

import json

import numpy as np
import pytest
from own_sets import draw, write_folder, write_table
from PIL import Image

import capsnet
from capsnet import cli, runs

TINY = ("--epochs", 1, "--width", 0.05, "--size", 20, "--batch-size", 8, "--device", "cpu")


def typed(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_folder_is_trained_on_tested_and_predicted(tmp_path, capsys):
    pets = write_folder(tmp_path / "pets", 30, 40, 3, classes=("cats", "dogs", "two wörds"), count=6)
    run = tmp_path / "run"
    status, out, err = typed(capsys, "train", "--data", pets, *TINY, "--out", run)
    assert status == 0, err
    assert f"{pets}: 3 classes, 15 pictures to train on, 3 pictures to test on (20 % of each class); 20×20" in err
    assert "of 3 images)" in out
    assert tuple(capsnet.load(run).config["in_shape"]) == (3, 20, 20)
    assert runs.read_config(run)["classes"] == ["cats", "dogs", "two wörds"]
    status, out, err = typed(capsys, "evaluate", run, "--data", pets, "--json")
    assert status == 0, err
    assert json.loads(out)["images"] == 3
    status, out, err = typed(capsys, "predict", run, pets / "cats" / "0.png", pets / "dogs" / "1.png", "--json")
    assert status == 0, err
    assert {answer["class"] for answer in json.loads(out)["predictions"]} <= {"cats", "dogs", "two wörds"}

    # Another set is read as the run's own was, and its classes are known by their names.
    table = [(f"pets/dogs/{number}.png", "dogs") for number in range(4)]
    table += [(f"pets/cats/{number}.png", "cats") for number in range(4)]
    status, out, err = typed(capsys, "evaluate", run, "--data", write_table(tmp_path / "set.csv", table), "--json")
    assert status == 0, err
    assert json.loads(out)["images"] == 2
    lions = write_folder(tmp_path / "lions", classes=("cats", "lions"))
    status, out, err = typed(capsys, "evaluate", run, "--data", lions)
    assert (status, out) == (2, "")
    assert err.endswith("capsnet: this set has a class 'lions', which is none of: cats, dogs, two wörds\n")


def test_predict_sees_what_the_model_was_trained_on(tmp_path, capsys):
    """The cache holds the picture as `predict` makes it, pixel for pixel."""
    pets = write_folder(tmp_path / "pets", 50, 33, count=4)
    draw(pets / "cats" / "tall.jpg", 90, 20, 3, seed=50)
    run = tmp_path / "run"
    status, _, err = typed(capsys, "train", "--data", pets, *TINY, "--out", run)
    assert status == 0, err
    own = runs.open_run(run)
    train, test = (capsnet.open_dataset(pets, split, size=20) for split in ("train", "test"))
    stored = {image.numpy().tobytes() for each in (train, test) for image in each.images}
    seen = {
        capsnet.data.pictures.read_picture(path, train.image_shape, own.framing).numpy().tobytes()
        for path in pets.rglob("*.*")
    }
    assert seen == stored


def test_an_archive_is_trained_on(tmp_path, capsys):
    place = tmp_path / "set.npz"
    np.savez(place, train_images=np.zeros((16, 22, 22, 3), np.uint8), train_labels=np.arange(16)[:, None] % 2)
    status, _, err = typed(capsys, "train", "--data", place, *TINY, "--channels", 1, "--out", tmp_path / "run")
    assert status == 0, err
    status, out, err = typed(capsys, "evaluate", tmp_path / "run", "--data", place)
    assert status == 0, err
    assert out.startswith("test error ")


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--data", "{}/none"], "there is no file or folder {}/none"),
        (["--data", "{}/one"], "{}/one has one class only, 'cats'; there must be at least 2 to tell apart"),
        (["--data", "{}/damaged"], "more than 1 % of the 10 pictures of {}/damaged cannot be read, the last one: "),
        (["--data", "{}/picture.png"], "{}/picture.png is neither a folder nor a file of the kinds that are known: "),
        (
            ["--data", "{}/pets", "--size", "20x"],
            "a size is a number of pixels, or HEIGHTxWIDTH, like 48x64; it is '20x'",
        ),
        (["--data", "{}/pets", "--size", "0"], "images have 1 to 4096 pixels a side"),
        (["--data", "mnist", "--size", "20"], "size and channels are for your own images; those of mnist have theirs"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, capsys, flags, answer):
    write_folder(tmp_path / "pets")
    write_folder(tmp_path / "one", classes=("cats",))
    (write_folder(tmp_path / "damaged") / "cats" / "0.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(tmp_path / "picture.png")
    arguments = [flag.format(tmp_path) for flag in flags]
    status, out, err = typed(capsys, "train", *arguments, "--epochs", 1, "--out", tmp_path / "run")
    assert (status, out) == (2, "")
    *others, last = err.splitlines()
    assert last.startswith(f"capsnet: {answer.format(tmp_path)}")
    assert all(line.startswith("reading ") for line in others)
    assert not (tmp_path / "run").exists()
