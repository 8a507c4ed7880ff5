"""The scripts that results come from."""

import json
import math
import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import fuzz_data
import fuzz_runs
import fuzzing
import gpu_floor
import kill_runs
import pytest
import scaling
import search_recipe
import time_rows
import torch
from tiny_rows import SIZES
from torch.utils.flop_counter import FlopCounterMode

import capsnet
from capsnet import data
from capsnet.data import PairSet
from capsnet.experiments import making, reproduce, rows
from capsnet.experiments.rows import Row


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    digits = capsnet.open_dataset("mnist", "test").select(slice(120))
    sets = {"train": digits}  # and nothing else: a search that opened the test set would end here
    monkeypatch.setitem(data.DATASETS, "some-digits", lambda split: sets[split])
    monkeypatch.setitem(data.DATASETS, "some-pairs", lambda split: PairSet(sets[split], 90, max_shift=0))
    recipe = capsnet.Recipe(epochs=9, batch_size=32)
    for name in ("digits", "pairs"):
        monkeypatch.setitem(rows.ROWS, name, Row(name, f"some-{name}", "", "capsnet", SIZES, recipe, 1.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(row, *tries, **options):
    search_recipe.Search(row, tries, **{"epochs": 1, "held_out": 20, "device": "cpu", **options}).run()
    return [json.loads(line) for line in Path("results/search", f"{row}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ["digits", "pairs"])
def test_every_try_is_written_down_once(tiny, capsys, monkeypatch, row):
    tried = search(row, "", "decay=cosine learning_rate=0.002", limit=64)
    assert [entry["changes"] for entry in tried] == ["", "decay=cosine learning_rate=0.002"]
    assert (tried[1]["recipe"]["decay"], tried[1]["recipe"]["learning_rate"]) == ("cosine", 0.002)
    assert tried[0]["curve"][-1]["held_out_error"] == pytest.approx(tried[0]["error"], abs=1e-3)
    assert tried[0]["curve"][-1]["step"] == 2  # of 64 images, or pairs
    out = capsys.readouterr().out
    assert "| 64 | 1 | none | 0 | " in out
    monkeypatch.setattr(making, "fit", None)
    assert search(row, "", limit=64) == tried
    del tried[0]["recipe"]["elastic"]  # as if written down before there was such a setting
    Path("results/search", f"{row}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in tried))
    assert search(row, "", limit=64) == tried


def test_changes_are_told_as_they_are_to_the_recipe_of_today(tiny, capsys, monkeypatch):
    search("digits", "", "batch_size=16")
    row = rows.ROWS["digits"]
    monkeypatch.setitem(rows.ROWS, "digits", replace(row, recipe=replace(row.recipe, batch_size=16)))
    capsys.readouterr()
    search("digits", "")  # was made, by other words
    changes = {line.split("|")[3].strip() for line in capsys.readouterr().out.splitlines()[2:]}
    assert changes == {f"batch_size={row.recipe.batch_size}", "none"}
    entry = json.loads(Path("results/search/digits.jsonl").read_text().splitlines()[1])
    del entry["recipe"]["elastic"]  # as if written down before there was such a setting
    bent = replace(row, recipe=replace(row.recipe, batch_size=16, elastic=1.0))
    assert "| elastic=0.0 |" in search_recipe.as_table([entry], bent)


def test_an_interrupted_search_goes_on(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(search_recipe, "evaluate", None)  # stops it after training
        with pytest.raises(TypeError):
            search("digits", "")
    monkeypatch.setattr(making, "fit", None)
    assert len(search("digits", "")) == 1


def test_two_searches_of_a_row_keep_what_the_other_found(tiny, monkeypatch):
    evaluate = search_recipe.evaluate

    def meanwhile(*arguments):
        monkeypatch.setattr(search_recipe, "evaluate", evaluate)
        search("digits", "seed=2")
        return evaluate(*arguments)

    monkeypatch.setattr(search_recipe, "evaluate", meanwhile)
    assert [entry["changes"] for entry in search("digits", "seed=1")] == ["seed=2", "seed=1"]


def test_held_out_images_are_cut_and_placed_as_in_a_run(tiny, monkeypatch):
    """Cut to what the network takes; and digits that training places anew are placed once, none beyond the edge."""
    cut = replace(rows.ROWS["digits"], config={**SIZES, "in_shape": (1, 24, 24)})
    cut = replace(cut, recipe=replace(cut.recipe, crop=24, max_shift=0, stop_at_error=99.0))
    monkeypatch.setitem(rows.ROWS, "digits", cut)
    (tried,) = search("digits", "", epochs=2)
    assert tried["curve"][-1]["held_out_error"] == pytest.approx(tried["error"], abs=1e-3)
    assert len(tried["curve"]) == 2  # whatever the row stops at
    digits = capsnet.open_dataset("mnist", "test").select(slice(120))
    monkeypatch.setattr(reproduce, "load_mnist", lambda split: digits)
    placed = replace(cut, data="expanded-mnist", config={**SIZES, "in_shape": (1, 40, 40)})
    monkeypatch.setitem(rows.ROWS, "digits", replace(placed, recipe=replace(cut.recipe, crop=0, max_shift=6)))
    _, tried = search("digits", "")
    assert (tried["data"], tried["curve"][-1]["held_out_error"]) == (
        "expanded-mnist",
        pytest.approx(tried["error"], abs=1e-3),
    )


def test_a_change_that_is_none_is_told(tiny):
    with pytest.raises(capsnet.InputError, match="'lr=3' changes nothing; settings are, of the recipe: epochs, "):
        search("digits", "lr=3")


def test_a_try_may_change_the_network(tiny, capsys):
    (tried,) = search("digits", "temperature=3.0 batch_norm=true conv_channels=4 seed=1")
    assert tried["config"] == {**rows_config(), "temperature": 3.0, "batch_norm": True, "conv_channels": 4}
    assert tried["recipe"]["seed"] == 1
    assert "temperature=3.0" in capsys.readouterr().out
    assert len(search("digits", "temperature=3.0 batch_norm=true conv_channels=4 seed=1")) == 1  # was made


def rows_config():
    return rows.ROWS["digits"].definition()["config"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_rows_are_timed_in_turns(tiny, monkeypatch, capsys):
    turns = []
    monkeypatch.setattr(time_rows, "seconds", lambda step: turns.append(step) or step() or 1 + len(turns) % 2)
    monkeypatch.setattr(sys, "argv", ["time_rows.py", "digits", "pairs"])
    time_rows.main()
    assert turns[0] is turns[2] is not turns[1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["| digits |  | 32 | 16 (16–16) |", "| pairs |  | 32 | 32 (32–32) |"]
    monkeypatch.setattr(sys, "argv", ["time_rows.py", "digit"])
    with pytest.raises(SystemExit, match="time_rows: unknown row 'digit'; there are: "):
        time_rows.main()


def test_two_kills_cost_no_more_than_a_step_each(tmp_path):
    script = Path(kill_runs.__file__)
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--folder", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 2
    assert "after 2 kills the final weights are bit for bit those of the undisturbed run" in done.stdout


def test_damaged_run_folders_are_refused_in_one_line(tmp_path):
    found = fuzz_runs.fuzz(tmp_path, 160, seed=7)
    assert found["last.ckpt", "refused"] == 20  # every change of a checkpoint is noticed
    assert found["config.json", "refused"] > 10
    assert not found["last.ckpt", "accepted"]
    assert all(found[name, "refused"] for name in (fuzz_runs.SEALED, fuzz_runs.RECORD, fuzz_runs.SPATIAL))


def test_what_is_executed_raised_or_hangs_would_be_found(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        fuzzing.refused(lambda: 1 / 0)
    with pytest.raises(AssertionError, match="not in one line"):
        fuzzing.refused(lambda: raised(capsnet.InputError("one\ntwo")))
    monkeypatch.setattr(fuzzing, "PATIENCE", 1)
    with pytest.raises(fuzzing.HangError):
        fuzzing.refused(hidden_hang)
    pickle.loads(pickle.dumps(fuzzing.Trap(tmp_path)))
    assert (tmp_path / fuzzing.EXECUTED).exists()


def raised(error):
    raise error


def hidden_hang():
    """As a reader may hang that takes any error for a sign of damage."""
    try:
        time.sleep(3)
    except Exception as error:
        raise capsnet.InputError(str(error)) from None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_damaged_data_is_refused_in_one_line():
    script = Path(fuzz_data.__file__)
    arguments = ("--mutations", "200", "--seed", "7", "--no-bombs")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [line.rsplit(maxsplit=2)[1:] for line in done.stdout.splitlines()[:-1]]
    assert sum(int(count) for _, count in counts) == 200
    assert sum(int(count) for outcome, count in counts if outcome == "refused") > 60


@pytest.mark.parametrize("bomb", ["bomb, idx, many labels", "bomb, affnist, many fields"])
def test_a_small_file_does_not_become_large(tmp_path, bomb):
    used = sum(peak(use) for use in fuzz_data.BOMBS[bomb](random.Random(0), tmp_path))
    assert used < 300 * 2**20


def peak(use):
    """Bytes that Python and NumPy held at a time while the set was refused."""
    tracemalloc.start()
    try:
        assert fuzzing.refused(use)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Each does to the process what no file may.
HARMFUL = """
import os, sys, time
from pathlib import Path
import fuzzing
trap = Path(sys.argv[1]) / fuzzing.EXECUTED
fuzzing.PATIENCE, fuzzing.GRACE, fuzzing.GIGABYTE = 1, 0, 2**17
held = []
crash, hang, grow = lambda: os.kill(os.getpid(), 11), lambda: time.sleep(60), lambda: held.append(b"x" * 2**28)
works = [lambda: None, trap.touch, crash, hang, grow, lambda: None]
def prepare(tell):
    return lambda number: works[number]() or "accepted"
names = ["nothing", "trap", "crash", "hang", "memory", "nothing"]
fuzzing.report(fuzzing.in_children(prepare, names, range(6), trap))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_ends_hangs_grows_or_executes_is_told_and_the_rest_done(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HARMFUL, tmp_path],
        **{"capture_output": True, "text": True, "timeout": 120, "cwd": Path(fuzzing.__file__).parent},
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["nothing", "accepted", "2"]
    told = done.stderr.splitlines()
    assert told[0] == "mutation 1 (trap): executed"
    assert told[1] == "mutation 2 (crash): the process ended with status -11"
    assert told[2] == "mutation 3 (hang): it hangs"
    assert told[3].startswith("mutation 4 (memory): 2.")
    assert told[4] == "4 of 6 mutations failed"


def test_the_ring_sends_each_gradient_almost_twice():
    # By hand: 4 processes pass 4 quarters of 4 MB around, 3 times to add up and 3 times to hand out, at 1 MB/s.
    assert scaling.ring_seconds(1_000_000, 4, 1e6) == pytest.approx(6 * 1.0)
    assert scaling.ring_seconds(1_000_000, 1, 1e6) == 0


def test_a_line_of_the_table_is_measured(monkeypatch):
    monkeypatch.setattr(scaling, "STEPS", 1)
    row = scaling.in_a_process({"batch": 4, "side": 20, "types": 2, "classes": 3})
    assert row["capsules"] == 2 * 2 * 2
    assert row["ms"] > 0
    assert row["parameters"] == (81 + 1) * 64 + (64 * 81 + 1) * 16 + 8 * 3 * 8 * 16


def test_where_the_curve_bends_computing_and_adding_up_take_equally_long():
    count = scaling.bend(1_000_000, 0.3, 1e8)
    assert 0.3 / count == pytest.approx(scaling.ring_seconds(1_000_000, 1, 1e8) + 8e6 * (count - 1) / count / 1e8)


@pytest.mark.parametrize(("name", "things"), [("mnist-r3-rec", 1), ("multimnist-r3-rec", 2)])
def test_operations_of_a_training_step_are_those_that_pytorch_counts(name, things):
    row, batch = rows.ROWS[name], 3
    counted = {stage.name: stage.operations for stage in gpu_floor.stages(row, batch)}
    with torch.device("meta"):
        model = capsnet.CapsNet(**row.config)
        images, capsules = torch.rand(batch, *model.config["in_shape"]), torch.rand(batch * things, 160)
        with FlopCounterMode(display=False) as seen:
            model.primary.conv(model.conv(images)).sum().backward()
        assert seen.get_total_flops() == counted["Conv1"] + counted["PrimaryCaps"]
        with FlopCounterMode(display=False) as seen:
            model.decoder.stages(capsules.requires_grad_()).sum().backward()
        assert seen.get_total_flops() == counted["decoder"]
        votes = batch * math.prod(model.classes.weight.shape)
        assert counted["routing"] == pytest.approx(6 * votes * (1 + 5 / 8))
