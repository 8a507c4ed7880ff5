"""Pictures in folders, however many, and `capsnet predict` as a user types it."""

import contextlib
import gc
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from terminal import typed

import capsnet
from capsnet import prediction, runs
from capsnet.prediction import BATCH, find_pictures, predict


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Of a small model that was not trained, for pictures of 12×12."""
    torch.manual_seed(0)
    model = capsnet.CapsNet((1, 12, 12), 3, conv_channels=4, primary_types=2, kernel_size=3, decoder=False)
    folder = tmp_path_factory.mktemp("model") / "run"
    capsnet.save(model, folder, classes=["a", "b", "c"])
    return folder


@pytest.fixture
def run(run_folder):
    return runs.open_run(run_folder)


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """300 pictures in two folders, one of them damaged, and what is none."""
    for number in range(300):
        draw(tmp_path / "set" / ("first" if number < 150 else "second") / f"{number:03}.png", number)
    (tmp_path / "set" / "first" / "010.png").write_bytes(b"no picture")
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    return tmp_path / "set"


def test_pictures_are_found_in_order(tmp_path):
    for name in ("b/2.png", "b/10.JPEG", "b/a/1.gif", "c.png", "a.tiff", "b/.hidden.png", ".git/x.png", "b/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "c.png")
    found = [str(path.relative_to(tmp_path)) for path in find_pictures([tmp_path])]
    assert found == ["a.tiff", "c.png", "b/10.JPEG", "b/2.png", "b/link.png", "b/a/1.gif"]
    assert list(find_pictures([Path("x.txt"), tmp_path / "b" / "a"])) == [Path("x.txt"), tmp_path / "b" / "a" / "1.gif"]


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path):
    deepest = str(tmp_path) + "/d" * 1100
    os.makedirs(str(tmp_path) + "/d" * 550)
    os.makedirs(deepest)
    Path(deepest, "x.png").touch()
    try:
        assert list(find_pictures([tmp_path])) == [Path(deepest, "x.png")]
    finally:
        os.unlink(f"{deepest}/x.png")
        os.removedirs(deepest)  # pytest's own clearing up recurses


def test_answers_are_those_of_the_pictures_one_by_one(run, folder):
    answers = list(predict(run, [folder]))
    assert [answer.path.name for answer in answers] == [f"{number:03}.png" for number in range(300)]
    assert [answer.path.name for answer in answers if answer.probabilities is None] == ["010.png"]
    assert "is not a picture" in answers[10].error
    for index in (0, 9, 11, BATCH, 299):
        image = prediction.read_picture(answers[index].path, (1, 12, 12), run.framing)
        alone = run.model.probabilities(image[None].float() / 255)[0]
        torch.testing.assert_close(answers[index].probabilities, alone, rtol=0, atol=1e-5)


def test_no_more_is_read_than_is_about_to_be_answered(run, monkeypatch):
    reads = itertools.count()

    def read(path, shape, framing):
        next(reads)
        return torch.zeros(1, 12, 12, dtype=torch.uint8)

    monkeypatch.setattr(prediction, "read_picture", read)
    with contextlib.closing(predict(run, itertools.repeat(Path("no folder.png")))) as endless:
        for _ in range(1000):
            next(endless)
    assert next(reads) < 1000 + 5 * BATCH


def test_memory_does_not_grow_with_the_number_of_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "read_picture", lambda path, shape, framing: torch.zeros(shape, dtype=torch.uint8))
    for number in range(3600):
        place = tmp_path / ("many" if number >= 600 else "few") / str(number // 100)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").touch()

    def peak(name, count):
        gc.collect()
        tracemalloc.start()
        assert sum(1 for _ in predict(run, [tmp_path / name])) == count
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak("few", 600)  # warms up
    least = peak("few", 600)
    # Once of three times no other thread is counted with it; a list of the paths alone would have 500,000 more.
    assert any(peak("many", 3000) < 1.3 * least + 50_000 for _ in range(3))


def test_a_folder_is_answered_a_line_a_picture(run_folder, folder, capsys):
    status, out, err = typed(capsys, "predict", run_folder, folder, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert err == "1 of 300 pictures could not be read\n"
    assert len(answers) == 300
    assert set(answers[10]) == {"picture", "error"}
    first = answers[0]
    assert set(first) == {"picture", "class", "probability", "probabilities"}
    assert first["picture"] == str(folder / "first" / "000.png")
    assert first["probability"] == max(first["probabilities"].values())
    assert list(first["probabilities"]) == ["a", "b", "c"]
    (folder / "first" / "010.png").unlink()
    status, out, err = typed(capsys, "predict", run_folder, folder)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{first['picture']}  {first['class']}  {first['probability']:.3f}"


def test_files_and_folders_may_be_mixed(run_folder, folder, capsys):
    status, out, _ = typed(capsys, "predict", run_folder, folder / "second" / "299.png", folder / "first", "none.png")
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith(str(folder / "second" / "299.png"))
    assert lines[-1] == "none.png  error: there is no picture none.png"
    assert len(lines) == 152


def test_files_alone_are_answered_by_one_object_or_not_at_all(run_folder, folder, capsys):
    names = [folder / "first" / f"{number:03}.png" for number in range(10)]
    status, out, err = typed(capsys, "predict", run_folder, *names, "--json")
    assert (status, err) == (0, "")
    assert [answer["picture"] for answer in json.loads(out)["predictions"]] == list(map(str, names))
    status, out, err = typed(capsys, "predict", run_folder, *names, folder / "first" / "010.png", "--json")
    assert (status, out) == (2, "")
    assert err.startswith("capsnet: ")


def test_a_folder_without_pictures_is_told_in_one_line(run_folder, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    status, out, err = typed(capsys, "predict", run_folder, tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"capsnet: there are no pictures in {tmp_path}; they are files with .apng .avif")


def start(*arguments, **options):
    command = [sys.executable, "-m", "capsnet", "predict", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_and_a_closed_pipe(run_folder, folder, tmp_path):
    """Many folders named again and again, so that it does not end before."""
    with open(tmp_path / "out.jsonl", "w+") as out:
        process = start(run_folder, *[folder] * 500, "--json", stdout=out)
        while not out.tell() and process.poll() is None:
            time.sleep(0.05)
            out.seek(0, os.SEEK_END)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        out.seek(0)
        lines = out.read().splitlines()
    assert process.returncode == 130
    said = re.search(r"^capsnet: interrupted after ([\d,]+) pictures$", err, re.MULTILINE)
    assert said, err
    # The answer that was being printed when it came may be there and not be counted yet.
    assert len(lines) - int(said[1].replace(",", "")) in (0, 1)
    assert "Traceback" not in err
    assert all("picture" in json.loads(line) for line in lines)

    process = start(run_folder, *[folder] * 500, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_progress_is_shown_on_a_terminal_only(tmp_path, folder, run_folder):
    leader, follower = pty.openpty()
    with open(tmp_path / "out.txt", "w") as out:
        command = [sys.executable, "-m", "capsnet", "predict", run_folder, *[folder] * 5]
        process = subprocess.Popen(command, stdout=out, stderr=follower)
        os.close(follower)
        said = b""
        with contextlib.suppress(OSError):  # the terminal's end
            while part := os.read(leader, 10_000):
                said += part
        assert process.wait(timeout=60) == 1
    os.close(leader)
    assert b" pictures, " in said
    assert said.decode().replace("\r\n", "\n").endswith("\x1b[K5 of 1,500 pictures could not be read\n")
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 1500


def test_a_link_to_itself_hides_no_picture(tmp_path):
    for name in ("a.png", "b.avif", "c.JFIF"):
        (tmp_path / name).touch()
    (tmp_path / "z.png").symlink_to("z.png")
    assert [path.name for path in find_pictures([tmp_path])] == ["a.png", "b.avif", "c.JFIF", "z.png"]


def test_pictures_that_cannot_be_read_at_all_are_answered_too(run_folder, tmp_path, capsys):
    """Nobody shall think that a telephone's pictures were looked at."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "inbox" / "notes.txt").touch()
    status, out, err = typed(capsys, "predict", run_folder, tmp_path / "inbox")
    assert status == 1
    told = f"{tmp_path}/inbox/a.HEIC is a HEIC picture, which cannot be read; convert it to JPEG or PNG"
    assert out == f"{tmp_path}/inbox/a.HEIC  error: {told}\n"
    assert err == "1 of 1 pictures could not be read\n"
