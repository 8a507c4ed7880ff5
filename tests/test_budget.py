"""Runs within a budget of seconds, on tiny networks and sets."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_rows import PAIRS, TINY, TWO_SETS, add_rows, command, record_of

from capsnet import training
from capsnet.experiments import budget, making
from capsnet.experiments.budget import Pace, measure, plan
from capsnet.experiments.reproduce import TableSettings


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    return add_rows(monkeypatch, tmp_path)


def pace(row, seeds=1, start=0.0, epoch=1.0, test=0.0):
    return Pace(row, seeds, float(start), float(epoch), float(test))


LONG, SHORT = (replace(TINY, recipe=replace(TINY.recipe, epochs=epochs)) for epochs in (50, 10))


@pytest.mark.parametrize(
    ("paces", "seconds", "epochs"),
    [
        ([pace(LONG)], 1000, [50]),  # its own, and no more
        ([pace(LONG)], 25.9, [25]),
        ([pace(LONG, start=3, test=2)], 25.9, [20]),
        ([pace(LONG, seeds=3, start=3, test=2)], 45, [10]),
        ([pace(LONG), pace(SHORT, epoch=5)], 50, [25, 5]),  # half of each
        ([pace(LONG), pace(SHORT, start=4, epoch=5)], 54, [25, 5]),
        ([pace(LONG), pace(SHORT, epoch=5)], 5, [5]),  # a twentieth would be none of the second one's
        ([pace(LONG), pace(SHORT, epoch=5)], 0.9, []),
        ([pace(LONG, start=9)], 5, []),
        ([], 5, []),
    ],
)
def test_all_rows_get_the_same_share_of_their_epochs(paces, seconds, epochs):
    assert plan(paces, float(seconds)) == epochs
    assert sum(p.seeds * p.run(n) for p, n in zip(paces, epochs, strict=False)) <= seconds


def test_a_run_takes_as_long_as_was_measured(tiny):
    rows, settings = [replace(TINY, recipe=replace(TINY.recipe, ema_decay=0.9)), TWO_SETS, PAIRS], TableSettings()
    measure(TINY, 1, settings)  # what only the first one takes
    for row in rows:
        found = measure(row, 2, settings)
        assert (found.row, found.seeds) == (row, 2)
        assert min(found.start, found.epoch, found.test) > 0
    assert not list(tiny.iterdir())


def test_steps_are_timed_as_they_will_be_done(tiny, monkeypatch):
    """At their batch size, and as many in all as decide whether they are taken at once; a pause in each is seen."""
    sizes, asked = [], []
    monkeypatch.setattr(budget, "TIMED", 1)
    loss_and_sums = training.TrainingModule.loss_and_sums

    def slow(self, batch, part):
        time.sleep(0.2)
        sizes.append(len(batch.images))
        return loss_and_sums(self, batch, part)

    monkeypatch.setattr(training.TrainingModule, "loss_and_sums", slow)
    monkeypatch.setattr(training, "worth_at_once", lambda device, steps: asked.append(steps) or 1)
    row = replace(TINY, recipe=replace(TINY.recipe, epochs=50))
    found = measure(row, 1, TableSettings())
    assert 0.6 <= found.epoch < 3
    assert found.start >= 0.2
    assert set(sizes) == {32}
    assert min(asked) >= 50 * 3


def test_a_budget_chooses_the_epochs_and_all_seeds_of_a_row_have_the_same(tiny, capsys, monkeypatch):
    asked = []

    def measured(row, seeds, settings):
        asked.append((row.name, seeds))
        return pace(row, seeds, epoch={"tiny": 50.0, "two-sets": 20.0}[row.name])

    monkeypatch.setattr(budget, "measure", measured)
    status, out, err = command(capsys, "tiny", "two-sets", "--seeds", 2, "--budget", 230)
    assert asked == [("tiny", 2), ("two-sets", 2)]
    assert status == 0
    assert [record_of(tiny, f"tiny-1-epochs-seed-{seed}")["epochs"] for seed in (0, 1)] == [1, 1]
    assert record_of(tiny, "tiny-1-epochs-seed-1")["recipe"]["epochs"] == 1
    # The first row has left all but a second or so of its share.
    assert record_of(tiny, "two-sets-3-epochs-seed-0")["epochs"] == 3
    assert "| 1 instead of 2 | 2 " in out
    assert "tiny with seed 0: " in err
    assert " planned 50.0 s" in err


def test_rows_that_there_is_no_time_for_are_left_out_and_told(tiny, capsys, monkeypatch):
    monkeypatch.setattr(budget, "measure", lambda row, seeds, settings: pace(row, seeds, epoch=50.0))
    status, _, err = command(capsys, "tiny", "two-sets", "tiny-pairs", "--seeds", 1, "--budget", 60)
    assert status == 0
    assert [path.stem for path in Path("results/runs").iterdir()] == ["tiny-1-epochs-seed-0"]
    for name in ("two-sets", "tiny-pairs"):
        assert f"{name} left out: there is no time for an epoch of it" in err
    status, _, err = command(capsys, "tiny", "two-sets", "--seeds", 1, "--budget", 9, "--out", "none")
    assert (status, "tiny left out" in err, Path("none").exists()) == (0, True, False)


def test_a_row_that_takes_longer_than_planned_is_not_begun_again_without_the_time(tiny, capsys, monkeypatch):
    monkeypatch.setattr(budget, "measure", lambda row, seeds, settings: pace(row, seeds, epoch=0.001))

    def slow(row, seed, epochs, settings):
        time.sleep(0.5)

    monkeypatch.setattr(budget, "reproduce", slow)
    status, _, err = command(capsys, "tiny", "--seeds", 3, "--budget", 0.8)
    assert status == 0
    assert "tiny with seed 0: 0.5 s, planned 0.0 s" in err
    assert "tiny with seed 1 left out: it wants 1 s, and 0 s are left" in err
    assert "tiny with seed 2 left out" in err


def test_timing_does_not_use_up_the_budget(tiny, capsys, monkeypatch):
    def slow(row, seeds, settings):
        time.sleep(0.5)
        return pace(row, seeds, epoch=0.1)

    monkeypatch.setattr(budget, "measure", slow)
    monkeypatch.setattr(budget, "reproduce", lambda *_: None)
    _, _, err = command(capsys, "tiny", "two-sets", "--budget", 1.2)
    assert "two-sets left out: to time it would take what the others need" in err
    assert "tiny with seed 2: " in err


@pytest.mark.parametrize("moment", ["timed", "run"])
def test_what_fails_is_told_and_the_next_row_follows(tiny, capsys, monkeypatch, moment):
    fit = making.fit

    def failing(model, train_set, *arguments, **options):
        if len(train_set) == 96:  # of tiny
            raise RuntimeError("an illegal memory access")
        return fit(model, train_set, *arguments, **options)

    monkeypatch.setattr(budget if moment == "timed" else making, "fit", failing)
    status, out, err = command(capsys, "tiny", "two-sets", "--seeds", 1, "--budget", 100)
    assert status == 1
    assert "an illegal memory access" in err
    assert ("tiny failed" if moment == "timed" else "tiny with seed 0 failed") in err
    assert [path.stem for path in Path("results/runs").iterdir()] == ["two-sets-3-epochs-seed-0"]
    assert "| two-sets |" in out


def test_what_is_cut_off_leaves_no_record(tiny, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt("terminated")

    monkeypatch.setattr(making, "fit", interrupted)
    status, _, err = command(capsys, "tiny", "two-sets", "--seeds", 1, "--budget", 100)
    assert (status, "terminated" in err) == (130, True)
    assert not list(tiny.glob("results/runs/*"))


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_is_a_number_of_seconds(tiny, capsys, budget):
    status, out, err = command(capsys, "tiny", f"--budget={budget}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "a budget is a number of seconds above 0" in err


def test_a_budget_chooses_the_epochs_itself_and_is_none_of_the_claims(tiny, capsys):
    assert "leave --epochs out" in command(capsys, "tiny", "--budget", 9, "--epochs", 1)[2]
    assert "--budget belongs to: the paper's tables" in command(capsys, "spatial", "--budget", 9)[2]
