"""Nobody has to read what is said on the way; a result that cannot be written is an error, and never status 0."""

import io
import os
import pty
import signal
import subprocess
import sys

import pytest
import terminal
import tiny
import torch

import capsnet
from capsnet import callbacks, cli, runs, signals
from capsnet.batches import Batches

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="wants Linux's /dev/full")

QUICK = (slice(60), {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (16,)})
TRAIN = ("train", "--limit", "40", "--batch-size", "20", "--epochs", "2", "--device", "cpu", "--out", "run")


def without_reader():
    """Where to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def without_terminal():
    """The terminal's other end is gone; writing raises EIO."""
    leader, follower = pty.openpty()
    os.close(leader)
    return open(follower, "w")


def full():
    return open("/dev/full", "w")


DIGIT = capsnet.ImageSet(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1).long(), ("zero",))
RECORDER = callbacks.Recorder(Batches(DIGIT, None, capsnet.Recipe()), None, DIGIT)
GONE = [without_reader, without_terminal, full]


@pytest.fixture
def here(capsys, tmp_path, monkeypatch):
    tiny.shrink(monkeypatch, *QUICK)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: terminal.typed(capsys, *arguments)


def process(arguments, redirected, cwd, **options):
    """The command with its streams as a shell redirects them."""
    program = tiny.program(*QUICK)
    return subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$@" {redirected}', sys.executable, program, *arguments],
        cwd=cwd,
        **options,
    )


def assert_complete(folder):
    names = {path.name for path in folder.iterdir()}
    assert {runs.WEIGHTS, runs.REPORT, runs.METRICS, runs.CHECKPOINT} <= names
    assert runs.load(folder)


@pytest.mark.parametrize("stream", GONE)
def test_training_goes_on_where_nobody_reads_its_progress(here, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    status, out, _ = here(*TRAIN)
    assert status == 0
    assert "test error" in out
    assert_complete(tmp_path / "run")


@pytest.mark.parametrize(
    ("stream", "status", "said"),
    [
        (without_reader, 141, ""),
        (without_terminal, 2, "capsnet: Input/output error\n"),
        (full, 2, "capsnet: No space left on device\n"),
    ],
)
def test_a_result_that_cannot_be_written_is_never_a_success(here, tmp_path, monkeypatch, stream, status, said):
    monkeypatch.setattr(sys, "stdout", stream())
    ended, _, err = here(*TRAIN)
    assert ended == status
    assert err.endswith(said or "testing on 60 images …\n")
    assert_complete(tmp_path / "run")


def test_an_epoch_is_told_when_its_checkpoint_is_there(here, tmp_path, monkeypatch):
    there = {}

    class Listener(io.StringIO):
        def write(self, text):
            if text.startswith("epoch "):
                there[text.split()[1]] = (tmp_path / "run" / runs.CHECKPOINT).exists()
            return len(text)

    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 1e9)  # at the end of an epoch only
    monkeypatch.setattr(sys, "stderr", Listener())
    assert here(*TRAIN)[0] == 0
    assert there == {"1/2": True, "2/2": True}


def test_a_signal_is_remembered_even_if_that_cannot_be_said(monkeypatch):
    class Busy(io.StringIO):
        def write(self, text):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    for stream in (*(make() for make in GONE), Busy(), None):
        checkpoints = callbacks.Checkpoints(RECORDER, None, "")
        monkeypatch.setattr(sys, "stderr", stream)
        checkpoints._on_signal(signal.SIGTERM, None)
        assert checkpoints.interrupted


def test_a_terminals_end_told_twice_still_waits_for_the_step():
    checkpoints = callbacks.Checkpoints(RECORDER, None, "", speaks=False)
    checkpoints._on_signal(signal.SIGHUP, None)
    checkpoints._on_signal(signal.SIGHUP, None)
    with pytest.raises(callbacks.TrainingInterruptedError, match="the middle of a step"):
        checkpoints._on_signal(signal.SIGTERM, None)


def test_nohup_keeps_its_word():
    checkpoints = callbacks.Checkpoints(RECORDER, None, "")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with checkpoints.catching_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == checkpoints._on_signal
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with checkpoints.catching_signals():
            assert signal.getsignal(signal.SIGHUP) == checkpoints._on_signal
        assert signals.HANGUP in signals.ending_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_terminal_a_signal_keeps_a_checkpoint(tmp_path):
    leader, follower = pty.openpty()
    # A session of its own: closing the terminal signals nothing, as after `disown`.
    running = process(
        [*TRAIN, "--epochs", "2000"], "", tmp_path, stdout=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    tiny.wait_for((tmp_path / "run" / runs.METRICS).exists, running)
    os.close(leader)
    told = len((tmp_path / "run" / runs.METRICS).read_bytes())
    tiny.wait_for(lambda: len((tmp_path / "run" / runs.METRICS).read_bytes()) > told + 200, running)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert (tmp_path / "run" / runs.CHECKPOINT).exists()


def test_closed_streams(tmp_path):
    running = process(TRAIN, ">&- 2>&-", tmp_path)
    assert running.wait(120) == 2
    assert_complete(tmp_path / "run")


@pytest.mark.parametrize(
    ("redirected", "status", "out", "err"),
    [
        (">&-", 2, "", "capsnet: standard output is closed\n"),
        (">/dev/full", 2, "", "capsnet: No space left on device\n"),
        ("2>&-", 0, "capsnet ", ""),
        (">&- 2>&-", 2, "", ""),
    ],
)
def test_the_version_without_streams(redirected, status, out, err):
    command = f'exec "$0" -m capsnet --version {redirected}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, err)
    assert done.stdout.startswith(out)


def test_without_a_reader_the_status_is_that_of_sigpipe():
    done = subprocess.run(
        [sys.executable, "-m", "capsnet", "--version"], stdout=without_reader(), stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_who_has_enough_ends_predict_quietly(here, tmp_path, monkeypatch):
    assert here(*TRAIN)[0] == 0
    monkeypatch.setattr(sys, "stdout", without_reader())
    monkeypatch.setattr("capsnet.commands.predict.BATCH", 1)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes((tmp_path / "run" / "reconstructions.png").read_bytes())
    status, _, err = here("predict", "run", "pictures")
    assert (status, err) == (141, "")


def test_help_that_cannot_be_written(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", full())
    assert cli.main(["--help"]) == 2
    assert capsys.readouterr().err == "capsnet: No space left on device\n"
