"""The scripts that results come from."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import fuzz_runs
import kill_runs
import pytest
import scaling
import search_recipe

import capsnet
from capsnet import data
from capsnet.data import PairSet
from capsnet.experiments import rows
from capsnet.experiments.rows import Row

SIZES = {"in_shape": (1, 28, 28), "num_classes": 10, "conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 32)}


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
    monkeypatch.setattr(search_recipe, "fit", None)
    assert search(row, "", limit=64) == tried


def test_an_interrupted_search_goes_on(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(search_recipe, "evaluate", None)  # stops it after training
        with pytest.raises(TypeError):
            search("digits", "")
    monkeypatch.setattr(search_recipe, "fit", None)
    assert len(search("digits", "")) == 1


def test_a_change_that_is_none_is_told(tiny):
    with pytest.raises(capsnet.InputError, match="'lr=3' is no change to a recipe, whose settings are: epochs, "):
        search("digits", "lr=3")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_four_kills_cost_no_more_than_a_step_each(tmp_path):
    script = Path(kill_runs.__file__)
    done = subprocess.run(
        [sys.executable, script, "--kills", "4", "--folder", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 4
    assert "after 4 kills the final weights are bit for bit those of the undisturbed run" in done.stdout


def test_damaged_run_folders_are_refused_in_one_line(tmp_path):
    found = fuzz_runs.fuzz(tmp_path, 150, seed=7)
    assert found["last.ckpt", "refused"] == 30  # every change of a checkpoint is noticed
    assert found["config.json", "refused"] > 10
    assert not found["last.ckpt", "accepted"]


def test_what_is_executed_raised_or_hangs_would_be_found(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        fuzz_runs.refused(lambda: 1 / 0)
    monkeypatch.setattr(fuzz_runs, "SECONDS", 1)
    with pytest.raises(TimeoutError):
        fuzz_runs.refused(lambda: time.sleep(3))
    pickle.loads(pickle.dumps(fuzz_runs.Trap(tmp_path)))
    assert (tmp_path / fuzz_runs.EXECUTED).exists()


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
