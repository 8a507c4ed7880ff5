"""The scripts that results come from."""

import json
from pathlib import Path

import pytest
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
