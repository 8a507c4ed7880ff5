"""Rows of tables that take a second each, and what tests ask of them."""

import json

import capsnet
from capsnet import cli, data
from capsnet.data import PairSet
from capsnet.experiments import rows
from capsnet.experiments.rows import Row

SIZES = {"in_shape": (1, 28, 28), "num_classes": 10, "conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 32)}
QUICK = capsnet.Recipe(epochs=2, batch_size=32)
TINY = Row("tiny", "some-digits", "a tiny CapsNet", "capsnet", SIZES, QUICK, paper=1.5, paper_std=0.25)
PAIRS = Row(
    *("tiny-pairs", "some-pairs", "a tiny CapsNet", "capsnet", {**SIZES, "in_shape": (1, 36, 36)}, QUICK),
    paper=5.0,
)
TWO_SETS = Row(
    *("two-sets", "some-digits", "stopped early", "capsnet", SIZES, capsnet.Recipe(epochs=3, stop_at_error=99.0)),
    **{"paper": 20.0, "test": "other-digits", "held_out": 20},
)
SEVEN = Row("seven", "some-digits", "two, really", "capsnet", SIZES, QUICK, paper=10.6, members=2, shifts=1)


def add_rows(monkeypatch, tmp_path):
    """Rows that take a second, in a folder of their own."""
    mnist = capsnet.open_dataset("mnist", "test")
    parts = {"train": mnist.select(slice(96)), "test": mnist.select(slice(96, 200))}
    monkeypatch.setitem(data.DATASETS, "some-digits", lambda split: parts[split])
    monkeypatch.setitem(data.DATASETS, "other-digits", lambda split: mnist.select(slice(200, 250)))
    monkeypatch.setitem(data.DATASETS, "some-pairs", lambda split: PairSet(parts[split], 60))
    for row in (TINY, PAIRS, TWO_SETS, SEVEN):
        monkeypatch.setitem(rows.ROWS, row.name, row)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys, *arguments):
    status = cli.main(["reproduce", *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def record_of(folder, name):
    return json.loads((folder / "results" / "runs" / f"{name}.json").read_text())


def made(row, seed, error, epochs=None, **changes):
    """A record as a run would leave it."""
    recipe = row.run_recipe(seed, epochs)
    content = {
        **{"row": row.name, "seed": seed, "epochs": recipe.epochs, "final": {"error": error}, "curve": []},
        **{"definition": row.definition(), "environment": {}, "recipe": json.loads(json.dumps(recipe.__dict__))},
    }
    return {**content, **changes}
