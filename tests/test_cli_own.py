"""Your own images, as a user types it wrongly: what can be known at once is told before any picture is read."""

import pytest
from PIL import Image

import capsnet
from capsnet import cli, runs
from capsnet.commands import train


def typed(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


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
        (["--size", "5"], "images of 5×5 pixels leave no grid of primary capsules"),
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
