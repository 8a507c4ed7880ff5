"""Own images from the command line: train on them, evaluate, predict; and what is typed wrongly is told at once."""

import json

import numpy as np
import pytest
from own_sets import draw, write_folder, write_table
from PIL import Image
from terminal import typed

import capsnet
from capsnet import callbacks, cli, runs
from capsnet.commands import train
from capsnet.models import SmallCNN

TINY = ("--epochs", 1, "--width", 0.05, "--size", 20, "--batch-size", 8, "--device", "cpu")


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

    # Another set is read as the run's own was, and its classes are known by their names. Here it is the same pictures.
    table = [(f"pets/dogs/{number}.png", "dogs") for number in range(4)]
    table += [(f"pets/cats/{number}.png", "cats") for number in range(4)]
    status, out, err = typed(capsys, "evaluate", run, "--data", write_table(tmp_path / "set.csv", table), "--json")
    assert status == 0, err
    assert json.loads(out)["images"] == 8
    lions = write_folder(tmp_path / "lions", classes=("cats", "lions"))
    status, out, err = typed(capsys, "evaluate", run, "--data", lions)
    assert (status, out) == (2, "")
    assert err.endswith("capsnet: this set has a class 'lions', which is none of: cats, dogs, two wörds\n")


@pytest.fixture
def run(tmp_path):
    """Of a set of two classes, in a folder `pets`; its answers do not matter."""
    pets = write_folder(tmp_path / "pets", 20, 20, classes=("cats", "dogs"), count=5)
    model = SmallCNN((1, 20, 20), 2, channels=(2, 2, 2), dense=4)
    recipe = capsnet.Recipe(epochs=1, batch_size=8)
    options = {"out": tmp_path / "run", "progress": False, "command": {"data": "pets"}}
    capsnet.fit(model, capsnet.open_dataset(pets), recipe, **options)
    return tmp_path / "run"


def count_tested(capsys, run, place):
    """How many pictures, and what is said."""
    status, out, err = typed(capsys, "evaluate", run, "--data", place, "--json")
    assert status == 0, err
    return json.loads(out)["images"], err


def test_another_folder_is_tested_on_in_full(tmp_path, capsys, run):
    new = write_folder(tmp_path / "new", 30, 25, classes=("dogs", "cats"), count=7)
    images, err = count_tested(capsys, run, new)
    assert images == 14
    assert f"{new}: test: cats 7, dogs 7\n" in err
    table = [(f"new/{name}/{number}.png", name) for name in ("cats", "dogs") for number in range(7)]
    assert count_tested(capsys, run, write_table(tmp_path / "set.csv", table))[0] == 14
    images = np.stack([np.full((20, 20), level, np.uint8) for level in range(9)])
    np.savez(tmp_path / "set.npz", x=images, y=np.array(["dogs"] * 9))
    assert count_tested(capsys, run, tmp_path / "set.npz")[0] == 9
    assert count_tested(capsys, run, tmp_path / "set.npz")[0] == 9  # from the cache
    status, out, _ = typed(capsys, "evaluate", run, "--data", new)
    assert status == 0
    assert " of 14; " in out


@pytest.mark.parametrize("classes", [("cats",), ("dogs",)])
def test_a_test_folder_may_have_few_of_the_classes(tmp_path, capsys, run, classes):
    new = write_folder(tmp_path / "new", 30, 25, classes=classes, count=1)
    images, err = count_tested(capsys, run, new)
    assert images == 1
    assert f"{new}: test: cats {int(classes[0] == 'cats')}, dogs {int(classes[0] == 'dogs')}\n" in err


@pytest.mark.parametrize(("split", "other"), [("test", "train"), ("val", "train"), ("test", None)])
def test_a_folder_that_says_what_is_to_test_on_is_believed(tmp_path, capsys, run, split, other):
    write_folder(tmp_path / "new" / split, 30, 25, classes=("cats",), count=3)
    if other:
        write_folder(tmp_path / "new" / other, 30, 25, classes=("lions", "cats"), count=4)
    assert count_tested(capsys, run, tmp_path / "new")[0] == 3


def test_a_run_s_own_set_is_never_tested_on_in_full(tmp_path, capsys, run, monkeypatch):
    """Under its own name, from elsewhere, and moved: what was trained on would be no test."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # of making the run
    for place in ("pets", "./pets", tmp_path / "pets"):
        assert count_tested(capsys, run, place) == (2, f"{place}: test: cats 1, dogs 1\n")
    (tmp_path / "pets").rename(tmp_path / "moved")
    images, err = count_tested(capsys, run, tmp_path / "moved")
    assert images == 2
    assert f"{tmp_path}/moved holds what this run was trained on; testing on what it kept to test on\n" in err


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((8, 8), (20, 20)),
        ((10, 13), (20, 26)),
        ((17, 17), None),
        ((6, 64), (20, 204)),
        ((2, 64), (20, 204)),
        ((64, 16), (80, 20)),
        ((16, 64), (20, 80)),
        ((17, 64), None),
        ((1, 64), (20, 204)),
    ],
)
def test_a_size_that_the_model_cannot_take_is_not_chosen(size, wanted):
    assert train.Train(data="./x")._larger((1, *size)) == wanted
    assert train.Train(data="./x", model="small-cnn")._larger((1, *size)) == (wanted if min(size) < 8 else None)
    assert train.Train(data="./x", size="9")._larger((1, *size)) is None
    assert train.Train(data="mnist")._larger((1, *size)) is None
    assert train.Train(data="./x", stem=3)._larger((1, 64, 64)) is None


@pytest.mark.parametrize(("size", "wanted"), [((8, 8), (20, 20)), ((200, 50), (80, 20))])
def test_pictures_of_any_size_are_trained_on(tmp_path, capsys, size, wanted):
    strips = write_folder(tmp_path / "strips", *size, count=3)
    flags = ("--epochs", 1, "--width", 0.02, "--batch-size", 4, "--no-decoder", "--out", tmp_path / "run")
    status, _, err = typed(capsys, "train", "--data", strips, *flags)
    assert status == 0, err
    assert tuple(runs.read_model_config(tmp_path / "run")["in_shape"]) == (1, *wanted)
    assert f"too few for capsnet, so the pictures are scaled to {wanted[0]}×{wanted[1]} (--size sets another" in err
    status, _, err = typed(capsys, "evaluate", tmp_path / "run", "--data", strips)
    assert status == 0, err


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


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (30, 30), (40 * number, 9, 9)).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def unread(monkeypatch):
    """Reading a large folder can take an hour, and a mistyped flag must not cost one."""

    def read(*arguments, **options):
        raise AssertionError("the pictures were read first")

    monkeypatch.setattr(train, "open_dataset", read)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "full"], "the folder full is not empty; choose a new one for the run (--out)"),
        (["--out", "run"], "run already holds a run; resume it (--resume) or choose another folder (--out)"),
        (["--out", "full/x"], "cannot make the folder full/x: "),
        (["--out", "full/x/run"], "cannot make the folder full/x/run: "),
        (["--width", "0"], "the width of a network is above 0"),
        (
            ["--size", "5"],
            "17×17 (--size 17 makes your own pictures as large), and in Python the largest kernel_size for these is 3",
        ),
        (["--size", "24", "--stem", "9"], "a stem halves images 0 to 8 times, not 9"),
        (["--size", "24", "--iterations", "0"], "iterations must be 1 to 100"),
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--devices", "0"], "devices and nodes must be at least 1"),
    ],
)
def test_what_is_wrong_is_told_before_the_pictures_are_read(capsys, folder, unread, tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    capsnet.save(capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2), tmp_path / "run")
    status, out, err = typed(capsys, "train", "--data", folder, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "runs").exists()


def test_shifts_out_of_the_picture_are_refused(capsys, folder, tmp_path):
    capsnet.save(
        capsnet.CapsNet((3, 24, 24), 2, conv_channels=4, primary_types=2), tmp_path / "run", classes=["a", "b"]
    )
    status, _, err = typed(capsys, "evaluate", tmp_path / "run", "--data", folder, "--shifts", 24)
    assert status == 2
    assert err.endswith("capsnet: --shifts must be 0 to 23, or nothing of these images is left; it is 24\n")
    assert typed(capsys, "evaluate", tmp_path / "run", "--data", folder, "--shifts", 1)[0] == 0


@pytest.mark.parametrize("command", ["train", "explore"])
def test_a_flag_that_turns_off_is_explained_as_such(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert {"train": "Without the decoder, ", "explore": "Do not open the page"}[command] in shown
    assert "{None}" not in shown
    assert "(default: None)" not in shown


def test_a_pipe_among_the_pictures_is_passed_over(tmp_path):
    import os

    from capsnet.prediction import find_pictures

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("gone.png")
    (tmp_path / "a.png").touch()
    assert [path.name for path in find_pictures([tmp_path])] == ["a.png", "link.png"]


def test_a_run_that_is_there_is_not_overwritten_by_resuming_nothing(capsys, folder, tmp_path):
    """The check for an empty folder is not for `--resume`."""
    run = tmp_path / "run"
    flags = ("--size", 17, "--width", 0.02, "--epochs", 1, "--batch-size", 8, "--out", run)
    assert typed(capsys, "train", "--data", folder, *flags)[0] == 0
    (run / runs.REPORT).unlink()
    status, out, err = typed(capsys, "train", "--resume", "--out", run)
    assert status == 0, err
    assert "test error" in out


def test_runs_that_start_together_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [train._claimed_folder("mnist-capsnet") for _ in range(3)]
    assert [path.name for path in found] == ["mnist-capsnet-1", "mnist-capsnet-2", "mnist-capsnet-3"]


def test_a_run_that_never_began_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pets", 30, 40, 3, classes=("cats",))
    assert typed(capsys, "train", "--data", tmp_path / "pets")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_too_little_memory_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    def allocate(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(train.Train, "run", allocate)
    status, out, err = typed(capsys, "train")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "not enough memory" in err


def write_split_table(folder):
    """With pictures to validate with."""
    write_folder(folder / "pets", count=8)
    splits = [*["train"] * 4, *["val"] * 2, *["test"] * 2]
    rows = [(f"pets/{name}/{k}.png", name, split) for name in ("cats", "dogs") for k, split in enumerate(splits)]
    return write_table(folder / "pets.csv", rows, header=("path", "label", "split"))


def test_pictures_to_validate_with_are_held_out(tmp_path, capsys):
    table, run = write_split_table(tmp_path), tmp_path / "run"
    status, _, err = typed(capsys, "train", "--data", table, *TINY, "--epochs", 3, "--stop-at-error", 99, "--out", run)
    assert status == 0, err
    assert "8 pictures to train on, 4 pictures to validate with, 4 pictures to test on" in err
    assert "held-out error" in err
    rows = runs.read_metrics(run)
    assert len(rows) == 1  # whatever it is, it is below 99 %
    assert rows[0]["held_out_error"] in (0, 25, 50, 75)
    status, _, err = typed(
        capsys, "train", "--data", table, *TINY, "--held-out", 1, "--limit", 7, "--out", tmp_path / "other"
    )
    assert status == 0, err
    assert runs.read_metrics(tmp_path / "other")[0]["held_out_error"] in (0, 100)


@pytest.mark.parametrize("measured", [True, False])
def test_a_resumed_run_goes_on_with_or_without_a_held_out_error(tmp_path, capsys, monkeypatch, measured):
    """Runs of versions that left the pictures to validate with alone have none in their first lines."""
    table, run = write_split_table(tmp_path), tmp_path / "run"
    command = ("train", "--data", table, *TINY, "--epochs", 3, "--out", run)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "_stop", stop)
        patch.setattr(callbacks.Checkpoints, "_any", lambda self, *flags: [True for _ in flags])
        if not measured:
            patch.setattr(train, "open_validation", lambda *place, **framed: None)
        assert typed(capsys, *command)[0] == 130
    status, out, err = typed(capsys, "train", "--resume", "--out", run)
    assert status == 0, err
    rows = runs.read_metrics(run)
    assert ["held_out_error" in row for row in rows] == [measured] * 3
    seconds = runs.read_json(run / runs.REPORT)["training_seconds"]
    assert seconds == pytest.approx(sum(row["seconds"] for row in rows), abs=0.1)
    assert f"{seconds:,.0f} to train" in out


def stop(self, trainer):
    raise callbacks.TrainingInterruptedError(f"epoch {trainer.current_epoch + 1}")


def test_splits_may_be_called_as_people_call_them(tmp_path):
    table = write_split_table(tmp_path)
    sizes = {split: len(capsnet.open_dataset(table, split)) for split in ("training", "validation", "Valid", "testing")}
    assert sizes == {"training": 8, "validation": 4, "Valid": 4, "testing": 4}
    with pytest.raises(capsnet.InputError, match="unknown split 'rest'; there are: train, test, val, all"):
        capsnet.open_dataset(table, "rest")
    with pytest.raises(capsnet.InputError, match=r"unknown split 'validation'; there are: train, test$"):
        capsnet.open_dataset("mnist", "validation")


def test_a_run_that_does_not_say_its_data_is_not_tested_on_others(tmp_path, capsys):
    """Its classes may be called 0 to 9 and its images be of 28×28 pixels without being MNIST's."""
    sizes = {"conv_channels": 2, "primary_types": 1, "decoder_hidden": (2, 2)}
    capsnet.save(capsnet.CapsNet(in_shape=(1, 28, 28), num_classes=10, **sizes), tmp_path / "run")
    for command in ("evaluate", "figures"):
        status, out, err = typed(capsys, command, tmp_path / "run")
        assert (status, out) == (2, "")
        assert err == "capsnet: the run does not say what it was trained on; name its data set: --data\n"
    assert typed(capsys, "evaluate", tmp_path / "run", "--data", "mnist")[0] == 0
