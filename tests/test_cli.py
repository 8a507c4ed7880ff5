"""The commands as a user types them, good and bad input. `user` starts a real process; `here` saves its start."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import terminal
import tiny
import torch
from PIL import Image

import capsnet
from capsnet import cli, runs

# Few images and a small network, so that a run takes seconds, and a checkpoint after every step, so that a kill at any
# moment finds one. Everything else is what a user gets.
QUICK = (slice(400), {"conv_channels": 32, "primary_types": 4, "decoder_hidden": (64, 128)})


def user(*arguments, cwd, **options):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", tiny.program(*QUICK), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def started(*arguments, cwd, **options):
    process = user(*arguments, cwd=cwd, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(path: Path, process):
    for _ in range(600):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not appear")


@pytest.fixture
def here(capsys, tmp_path, monkeypatch):
    """The same in the process of the test, where nothing is to be killed."""
    tiny.shrink(monkeypatch, *QUICK)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: terminal.typed(capsys, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained by the command, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    status, out, err = started(
        *("train", "--epochs", 8, "--batch-size", 25, "--learning-rate", 0.003, "--limit", 350, "--held-out", 50),
        *("--max-shift", 0, "--out", "run"),
        cwd=folder,
    )
    assert status == 0, err
    return folder / "run", out, err


def test_train_prints_a_table_and_leaves_a_run_folder(run):
    folder, out, err = run
    assert re.search(r"test error +\d+\.\d\d %", out)
    assert re.search(r"training +[\d,]+ images/s", out)
    assert "reconstructions.png" in out
    assert "epoch 8/8  loss 0." in err  # progress goes to standard error
    assert "held-out error" in err
    assert {path.name for path in folder.iterdir()} == {
        *(runs.CONFIG, runs.WEIGHTS, runs.METRICS, runs.REPORT, runs.CHECKPOINT),
        "reconstructions.png",
    }
    report = json.loads((folder / runs.REPORT).read_text())
    assert report["epochs"] == 8
    assert report["test_images"] == 400
    assert report["test_error"] < 30  # 90 is chance
    assert Image.open(folder / "reconstructions.png").width > 1000
    assert "lightning" not in err.lower()


def test_evaluate(run, capsys):
    status, out, err = terminal.typed(capsys, "evaluate", run[0], "--json")
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert answer["images"] == 10_000
    assert answer["error"] == pytest.approx(answer["errors"] / 100)
    assert answer["error"] < 40
    _, out, _ = terminal.typed(capsys, "evaluate", run[0])
    assert f"test error {answer['error']:.2f} %" in out
    low, high = answer["interval"]
    assert low < answer["error"] < high
    assert f"95 % interval {low:.2f} to {high:.2f} %" in out


def test_predict(run, capsys, tmp_path):
    test_set = capsnet.open_dataset("mnist", "test")
    model = capsnet.load(run[0])
    predictions = capsnet.evaluate(model, test_set.select(slice(50))).predictions
    right = torch.nonzero(predictions == test_set.labels[:50])[:3, 0]
    for index in right.tolist():
        ink = Image.fromarray(255 - test_set.images[index, 0].numpy())
        ink.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in right.tolist()]
    status, out, _ = terminal.typed(capsys, "predict", run[0], *paths, "--json")
    answer = json.loads(out)
    assert status == 0
    assert [p["class"] for p in answer["predictions"]] == [str(int(test_set.labels[k])) for k in right]
    first = answer["predictions"][0]
    assert first["probability"] == max(first["probabilities"].values())
    status, out, _ = terminal.typed(capsys, "predict", run[0], paths[0])
    assert out.split() == [str(paths[0]), first["class"], f"{first['probability']:.3f}"]


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, here):
    arguments = ("train", "--limit", 128, "--batch-size", 16, "--epochs", 3, "--ema-decay", 0.9)
    assert here(*arguments, "--out", "whole")[0] == 0
    process = user(*arguments, "--out", "cut", cwd=tmp_path)
    wait_for(tmp_path / "cut" / runs.CHECKPOINT, process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut" / runs.WEIGHTS).exists(), "killed too late to prove anything"
    status, out, err = here("train", "--resume", "--out", "cut")
    assert status == 0, err
    assert (tmp_path / "cut" / runs.WEIGHTS).read_bytes() == (tmp_path / "whole" / runs.WEIGHTS).read_bytes()
    assert "3 epochs" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_the_checkpoint_and_says_how_to_resume(tmp_path, number):
    process = user("train", "--epochs", 200, "--out", "run", cwd=tmp_path)
    wait_for(tmp_path / "run" / runs.CHECKPOINT, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    told = r"interrupted in epoch \d+, step \d+; the checkpoint is kept; go on with: .*train --resume"
    assert re.search(told, err)
    assert "Traceback" not in err
    step = int(re.search(r"step (\d+)", err)[1])
    assert torch.load(tmp_path / "run" / runs.CHECKPOINT, weights_only=True)["global_step"] == step


def test_a_second_interrupt_stops_at_once_and_still_says_how_to_resume(tmp_path):
    process = user("train", "--epochs", 200, "--out", "run", cwd=tmp_path)
    wait_for(tmp_path / "run" / runs.CHECKPOINT, process)
    process.send_signal(signal.SIGSTOP)  # so that both are there when it goes on
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: " in err
    assert "Traceback" not in err


def test_a_run_stopped_before_its_report_makes_it_when_resumed(tmp_path, here):
    assert here("train", "--limit", 32, "--batch-size", 16, "--epochs", 1, "--out", "run")[0] == 0
    (tmp_path / "run" / runs.REPORT).rename(tmp_path / "report.json")
    status, out, err = here("train", "--resume", "--out", "run")
    assert status == 0, err
    again, before = (
        (json.loads(path.read_text())) for path in (tmp_path / "run" / runs.REPORT, tmp_path / "report.json")
    )
    assert again["test_error"] == before["test_error"]
    assert "test error" in out


def test_a_resumed_run_keeps_its_settings(here):
    assert here("train", "--limit", 32, "--batch-size", 16, "--epochs", 1, "--out", "run")[0] == 0
    flags = [("--batch-size", 8), ("--no-decoder",), ("--held-out", 3), ("--recipe", "best"), ("--epochs", 9)]
    for flag in flags:
        status, _, err = here("train", "--resume", "--out", "run", *flag)
        assert status == 2
        assert f"a resumed run keeps its settings, and {flag[0]} would change them; leave it out" in err
    status, out, err = here("train", "--resume", "--out", "run")
    assert (status, out) == (2, "")
    assert "the run run is complete; there is nothing to resume" in err


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX's")
def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # config fits, a checkpoint does not

    status, out, err = started(
        "train", "--limit", 64, "--batch-size", 64, "--out", "run", cwd=tmp_path, preexec_fn=small_disk
    )
    assert (status, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("capsnet: cannot write run/last.ckpt: File too large")
    assert "Traceback" not in err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {runs.CONFIG, runs.METRICS}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--data", "mnits"], "unknown data set 'mnits'; there are: mnist"),
        (["train", "--data", "idx:nowhere"], "there is no IDX file nowhere-train-images-idx3-ubyte(.gz)"),
        (
            ["train", "--data", "affnist-synthetic"],
            "is a test set; the training set that goes with it is expanded-mnist",
        ),
        (["train", "--epoch", "3"], "Perhaps you meant: --epochs"),
        (["train", "--epochs", "three"], "--epochs"),
        (["train", "--epochs", "0"], "epochs must be 1 to 1,000,000, not 0"),
        (["train", "--limit", "0"], "--limit must be at least 1"),
        (["train", "--held-out", "60000"], "cannot hold out 60000 of 60000"),
        (["train", "--iterations", "0"], "iterations must be 1 to 100, not 0"),
        (["train", "--model", "resnet"], "'capsnet', 'cnn'"),
        (["train", "--device", "cuda"], "no device 'cuda'"),
        (["train", "--resume"], "--out RUN"),
        (["train", "--resume", "--out", "none"], "there is no run folder none"),
        (["evaluate", "none"], "there is no run folder none"),
        (["evaluate", "."], "is not a run folder"),
        (["predict", "none", "x.png"], "there is no run folder none"),
        (["predict"], "RUN"),
        (["trian"], "train, evaluate, predict"),
        ([], "train, evaluate, predict"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has what the test wants missing")
    status, out, err = terminal.typed(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("capsnet: ")
    assert told in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing may be half-written"


def test_a_mistyped_command_is_told_in_one_line_on_a_terminal_too(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "capsnet", "train", "--bogus"], stdout=follower, stderr=follower, cwd=tmp_path
    )
    assert process.wait(timeout=60) == 2
    os.close(follower)
    said = os.read(leader, 10_000).decode()
    os.close(leader)
    assert said.startswith("capsnet: Unrecognized options: --bogus")
    assert "\x1b" not in said
    assert said.count("\n") == 1


def test_output_that_cannot_be_written_is_told_in_one_line(run):
    if not Path("/dev/full").exists():
        pytest.skip("wants Linux's /dev/full")
    picture = run[0] / "reconstructions.png"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "capsnet", "predict", run[0], picture],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (2, "capsnet: No space left on device\n")


def test_bad_pictures_are_told_in_one_line(run, capsys, tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    status, out, err = terminal.typed(capsys, "predict", run[0], tmp_path / "x.png")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"capsnet: .*x\.png is not a picture that can be read .*\n", err)
    status, _, err = terminal.typed(capsys, "predict", run[0])
    assert status == 2
    assert "IMAGE" in err


def test_a_model_for_other_images_is_told_in_one_line(capsys, tmp_path):
    capsnet.save(capsnet.CapsNet((3, 20, 20), 10, conv_channels=4, primary_types=2), tmp_path / "run")
    status, out, err = terminal.typed(capsys, "evaluate", tmp_path / "run", "--data", "mnist")
    assert (status, out) == (2, "")
    assert "takes images of (channels, height, width) (3, 20, 20), but those of this set are (1, 28, 28)" in err


def test_help_names_every_flag(capsys):
    named = {
        "train": ["--data", "smallnorb:FOLDER", "--epochs", "--resume"],
        "evaluate": ["RUN", "--json"],
        "predict": ["RUN", "IMAGE"],
    }
    for command, flags in named.items():
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in flags)


@pytest.mark.parametrize(
    ("field", "value"),
    [("data", 3), ("width", "x"), ("limit", 1.5), ("model", "resnet"), ("decoder", 1), ("held_out", True), ("x", 1)],
)
def test_a_run_whose_config_was_edited_is_not_resumed(capsys, tmp_path, field, value):
    saved = {**cli.as_json(cli.Train()), field: value}
    model = capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2)
    capsnet.save(model, tmp_path / "run", command=saved)
    status, out, err = terminal.typed(capsys, "train", "--resume", "--out", tmp_path / "run")
    assert (status, out) == (2, "")
    assert "config.json is damaged or of another version: " in err
    assert field in err
    assert err.count("\n") == 1


def test_how_to_resume_a_run_of_a_program_is_told(capsys, tmp_path):
    capsnet.save(capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2), tmp_path / "run")
    status, _, err = terminal.typed(capsys, "train", "--resume", "--out", tmp_path / "run")
    assert status == 2
    assert f"capsnet.fit(…, out='{tmp_path / 'run'}', resume=True)" in err
