"""Whatever names hold, terminals do not obey it, and figures, JSON and ONNX files can hold it."""

import json
import os
import subprocess
import sys
import unicodedata
import warnings

import pytest
import terminal
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_sets import draw, write_folder

import capsnet
from capsnet import export, prediction, runs
from capsnet.explorer.markup import bars
from capsnet.insight.agreement import agree, draw_agreement
from capsnet.insight.style import as_bytes
from capsnet.streams import tell
from capsnet.text import printable

HOSTILE = "\x1b]0;pwned\x07\ncat\u202e"
SHOWN = r"\x1b]0;pwned\x07\ncat\u202e"
QUICK = (slice(60), {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (16,)})


@pytest.fixture
def here(capsys, tmp_path, monkeypatch):
    tiny.shrink(monkeypatch, *QUICK)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: terminal.typed(capsys, *arguments)


def assert_printable(text):
    text.encode()
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char != "\n"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Katze, 猫, \\x1b, 👩\u200d🔬", "Katze, 猫, \\x1b, 👩\u200d🔬"),
        (HOSTILE, SHOWN),
        (os.fsdecode(b"\xff\xfe"), r"\xff\xfe"),
        ("\ud800\t\x9b\u2028", r"\ud800\t\x9b\u2028"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text, shown):
    assert printable(text) == shown


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None)))
def test_any_text_becomes_printable_and_stays_so(text):
    shown = printable(text)
    assert_printable(shown)
    assert "\n" not in shown
    assert printable(shown) == shown


def test_a_line_is_one_line(capsys):
    tell(HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN}\n"


def test_classes_of_any_name_are_trained_shown_and_exported(here, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "set", 20, 20, classes=("a", "b"))
    os.rename(folder / "a", os.fsencode(folder) + b"/\xff\xfe")
    os.rename(folder / "b", folder / HOSTILE)
    status, out, err = here("train", "--data", "./set", "--epochs", "1", "--out", "run")
    assert status == 0, err
    assert (tmp_path / "run" / "reconstructions.png").stat().st_size > 1000
    assert json.loads((tmp_path / "run" / runs.CONFIG).read_text(encoding="utf-8"))["classes"] == [SHOWN, r"\xff\xfe"]
    again = [here("evaluate", "run"), here("predict", "run", "set"), here("predict", "run", "set", "--json")]
    assert [each[0] for each in again] == [0, 0, 0]
    for said in (out, err, *(text for each in again for text in each[1:])):
        assert_printable(said)
    assert {json.loads(line)["class"] for line in again[2][1].splitlines()} <= {SHOWN, r"\xff\xfe"}


def test_classes_of_a_config_are_no_commands(here, tmp_path):
    names = [HOSTILE, "\ud800", "<b>"]
    capsnet.save(capsnet.CapsNet((1, 17, 17), 3, conv_channels=4, primary_types=2), tmp_path / "run", classes=names)
    draw(tmp_path / f"{HOSTILE}.png", 17, 17)
    status, out, err = here("predict", "run", tmp_path / f"{HOSTILE}.png")
    assert (status, err) == (0, "")
    assert_printable(out)
    assert out.count("\n") == 1
    run = runs.open_run(tmp_path / "run")
    assert run.class_names == (SHOWN, r"\ud800", "<b>")
    assert json.loads(export._metadata(run)["class_names"].encode().decode()) == list(run.class_names)
    assert_printable(bars(run.class_names, {"score": torch.ones(3)}, []))
    figure = draw_agreement(agree(run.model, torch.zeros(1, 17, 17, dtype=torch.uint8), run.class_names))
    assert as_bytes(figure, "svg").decode()


def test_names_that_would_look_alike_are_refused():
    images, labels = torch.zeros(2, 1, 20, 20, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(capsnet.InputError, match="differ only in characters that cannot be shown"):
        capsnet.ImageSet(images, labels, ("\n", r"\n"))


def test_pillows_warnings_are_not_for_those_who_predict(here, tmp_path, monkeypatch):
    capsnet.save(capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2), tmp_path / "run")
    write_folder(tmp_path / "set", 17, 17)
    read = prediction.read_picture

    def warning(*arguments, **options):
        warnings.warn("Truncated File Read", UserWarning, stacklevel=1)
        return read(*arguments, **options)

    monkeypatch.setattr(prediction, "read_picture", warning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert here("predict", "run", "set")[0] == 0
    assert not seen


def test_a_home_that_cannot_be_used_is_not_ours_to_tell():
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    program = "import capsnet.insight.reconstructions"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
