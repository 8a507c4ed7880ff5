"""The commands on pairs of digits, on crops, and with named recipes; in this process, with tiny networks."""

import json
import re

import pytest
from terminal import typed

import capsnet
from capsnet import cli, data, runs
from capsnet.commands import train
from capsnet.data import PairSet
from capsnet.models import build_model
from capsnet.recipe import BEST, PAPER


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    digits = capsnet.open_dataset("mnist", "test").select(slice(100))
    monkeypatch.setitem(data.DATASETS, "mnist", lambda split: digits)
    monkeypatch.setitem(data.DATASETS, "multimnist", lambda split: PairSet(digits, 80))

    def build(name, config):
        sizes = {"conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 32)} if name == "capsnet" else {}
        return build_model(name, {**config, **sizes})

    monkeypatch.setattr(train, "build_model", build)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(capsys, *arguments):
    status, out, err = typed(capsys, *arguments)
    assert status == 0, err
    return out


def test_pairs_are_trained_tested_and_evaluated(tiny, capsys):
    options = ("--epochs", 1, "--batch-size", 40, "--limit", 60, "--held-out", 20, "--device", "cpu")
    out = done(capsys, "train", "--data", "multimnist", *options, "--out", "run")
    assert re.search(r"test error +\d+\.\d\d % +\(\d+ of 80 images\)", out)
    assert re.search(r"by digit +\d+\.\d\d % +\(\d+ of 160\)", out)
    report = json.loads((tiny / "run" / runs.REPORT).read_text())
    answer = json.loads(done(capsys, "evaluate", "run", "--data", "multimnist", "--json"))
    assert answer["error"] == pytest.approx(report["test_error"])
    assert answer["digit_error"] == pytest.approx(report["test_digit_error"])
    assert answer["digit_error"] <= answer["error"] <= 2 * answer["digit_error"]
    assert f"by digit {answer['digit_error']:.2f} %" in done(capsys, "evaluate", "run", "--data", "multimnist")
    curve = runs.read_metrics(tiny / "run")
    assert curve[0]["step"] == 2
    assert "held_out_error" in curve[0]
    (tiny / "run" / runs.REPORT).unlink()
    assert "by digit" in done(capsys, "train", "--resume", "--out", "run")


def test_an_interrupt_in_the_test_says_how_to_go_on_too(tiny, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        assert cli.main(["train", "--epochs", "1", "--limit", "20", "--out", "run"]) == 130
    assert "train --resume --out run" in capsys.readouterr().err
    assert "test error" in done(capsys, "train", "--resume", "--out", "run")


@pytest.mark.parametrize(("name", "picture"), [("mnist", "reconstructions.png"), ("multimnist", "overlap.png")])
def test_a_run_stopped_before_its_picture_draws_it_when_resumed(tiny, capsys, monkeypatch, name, picture):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    flags = ("--data", name, "--epochs", 1, "--limit", 20, "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_picture", interrupted)
        assert typed(capsys, "train", *flags)[0] == 130
    run = tiny / "run"
    assert (run / runs.REPORT).exists()
    assert not (run / picture).exists()
    (run / ".report.json.123.partial").write_bytes(b"half")  # of a process that was killed there before
    assert picture in done(capsys, "train", "--resume", "--out", "run")
    assert (run / picture).exists()
    assert not list(run.glob(".*"))
    status, _, err = typed(capsys, "train", "--resume", "--out", "run")
    assert (status, err) == (2, "capsnet: the run run is complete; there is nothing to resume\n")


def test_answers_averaged_over_shifts_are_stated_as_such(tiny, capsys):
    done(capsys, "train", "--epochs", 1, "--limit", 50, "--out", "run")
    plain, shifted = (
        json.loads(done(capsys, "evaluate", "run", *options, "--json")) for options in ((), ("--shifts", 1))
    )
    assert "shifts" not in plain
    assert shifted["shifts"] == 1
    expected = capsnet.evaluate(capsnet.load("run"), capsnet.open_dataset("mnist", "test"), shifts=1).errors
    assert shifted["errors"] == expected
    assert "digit_error" not in plain
    assert cli.main(["evaluate", "run", "--shifts", "-1"]) == 2


def test_crops_are_trained_on_and_their_middle_is_tested(tiny, capsys):
    done(capsys, "train", "--epochs", 1, "--crop", 20, "--max-shift", 0, "--out", "run")
    assert capsnet.load("run").config["in_shape"] == (1, 20, 20)
    report = json.loads((tiny / "run" / runs.REPORT).read_text())
    assert json.loads(done(capsys, "evaluate", "run", "--json"))["errors"] == report["test_errors"]


def test_the_cnn_with_max_pooling_by_its_name(capsys):
    out = done(capsys, "train", "--model", "pooling-cnn", "--epochs", 1, "--limit", 8, "--out", "run")
    assert "pooling-cnn on mnist, 1 epoch, 16,1" in out  # 41,984 + 3,277,056 + (256·49 + 1)·1024 + 1025·10 = 16,175,…


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "paper"], PAPER),
        (["--recipe=best"], BEST),
        (["--learning-rate", "0.00002", "--recipe", "best"], {"learning_rate": 0.00002}),
        (["--recipe", "best", "--epochs", "3", "--rotation", "0"], {"epochs": 3, "rotation": 0.0}),
        (["--decay", "linear"], {"decay": "linear"}),
    ],
)
def test_a_named_recipe_is_what_the_flags_change(monkeypatch, arguments, expected):
    started = []
    monkeypatch.setattr(train.Train, "run", lambda command: started.append(command))
    assert cli.main(["train", *arguments]) == 0
    base = BEST if any("best" in word for word in arguments) else capsnet.Recipe()
    wanted = capsnet.Recipe(**{**base.__dict__, **expected}) if isinstance(expected, dict) else expected
    assert started[0].recipe == wanted


def test_a_run_with_a_named_recipe_resumes_with_it(tiny, capsys):
    options = ("--recipe", "best", "--epochs", 1, "--batch-size", 50, "--out", "run")
    done(capsys, "train", *options)
    (tiny / "run" / runs.REPORT).unlink()
    assert "test error" in done(capsys, "train", "--resume", "--out", "run")
    assert cli.main(["train", "--resume", "--recipe", "paper", "--out", "run"]) == 2
    assert "keeps its settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "worst"], "invalid choice 'worst' for argument '--recipe'"),
        (["--decay", "never"], "invalid choice 'never' for argument '--decay'"),
        (["--stop-at-error", "0.7"], "--held-out N"),
        (["--crop", "30"], "cannot cut 30×30 pixels out of images of 28×28"),
        (["--warmup", "1"], "warmup must be at least 0 and below 1, not 1"),
        (["--max-shift", "99999999999999999999"], "max shift must be 0 to 10,000"),
        (["--max-shift", "28", "--out", "run"], "a shift by 28 pixels leaves nothing"),
        (["--data", "multimnist", "--crop", "20"], "pairs are not cropped"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(tiny, capsys, arguments, told):
    assert cli.main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not list(tiny.iterdir())
