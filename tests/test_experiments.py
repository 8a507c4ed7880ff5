"""The paper's tables: rows, and the runs and records that come of them; on tiny networks and sets."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_rows import TINY, TWO_SETS, add_rows, command, made, record_of

import capsnet
from capsnet import cli, data, runs
from capsnet.batches import Batches
from capsnet.commands import reproduce as reproduce_command
from capsnet.data import multimnist
from capsnet.experiments import making, records, reproduce, rows
from capsnet.experiments.reproduce import TableSettings
from capsnet.experiments.rows import ROWS
from capsnet.experiments.table import make_table
from capsnet.models import build_model


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    return add_rows(monkeypatch, tmp_path)


def test_the_papers_tables_are_all_there():
    papers = {name: (row.paper, row.paper_std) for name, row in ROWS.items()}
    assert papers["mnist-cnn"] == (0.39, None)
    assert papers["mnist-r1"] == (0.34, 0.032)
    assert papers["mnist-r1-rec"] == (0.29, 0.011)
    assert papers["mnist-r3"] == (0.35, 0.036)
    assert papers["mnist-r3-rec"] == (0.25, 0.005)
    assert [papers[f"multimnist-{name}"][0] for name in ("cnn", "r1-rec", "r3-rec")] == [8.1, 7.5, 5.2]
    for recipe in ("", "-best"):  # accuracies of 66 and 79 %
        assert [papers[name + recipe][0] for name in ("affnist-cnn", "affnist-r3-rec")] == [34, 21]
    assert [papers[name][0] for name in ("cifar10", "smallnorb", "svhn")] == [10.6, 2.7, 4.3]
    assert ROWS["cifar10"].members == 7


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_it_says(name):
    row = ROWS[name]
    with torch.device("meta"):
        model = build_model(row.model, row.config)
    if row.model == "capsnet":
        assert f"r={model.config['iterations']}" in row.about
        assert model.config["decoder"] != ("no reconstruction" in row.about)
        assert model.config["leaky"] == ("leaky" in row.about)
    else:
        assert "CNN" in row.about
    affine = ("rotation", "scale", "shear")
    own = {"expanded-mnist": (*affine, "stop_at_error"), "multimnist": affine}
    of_the_set = ("max_shift", *own.get(row.data, ()), *(["batch_size"] if row.config.get("batch_norm") else []))
    otherwise = replace(row.recipe, **{part: getattr(rows.BEST, part) for part in of_the_set})
    assert ("best" in name) == (otherwise == rows.BEST)
    assert ("best recipe" in row.about) == ("best" in name)
    assert row.data != "multimnist" or row.recipe.max_shift == 0  # the set shifts its digits itself
    json.dumps(row.definition())


def test_a_run_leaves_a_record_with_all_that_is_needed_to_judge_it(tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/capsnet", "reproduce", "tiny", "--seeds", "2"])
    status, out, err = command(capsys, "tiny", "--seeds", 2)
    assert status == 0
    record = record_of(tiny, "tiny-2-epochs-seed-1")
    assert (record["row"], record["seed"], record["epochs"]) == ("tiny", 1, 2)
    assert [point["epoch"] for point in record["curve"]] == [1, 2]
    assert record["curve"][0]["loss_mean"] > record["curve"][1]["loss_mean"]
    model = capsnet.load("runs/reproduce/tiny-2-epochs-seed-1")
    assert record["final"]["error"] == pytest.approx(
        capsnet.evaluate(model, capsnet.open_dataset("some-digits", "test")).error, abs=1e-4
    )
    assert record["final"]["images"] == 104
    low, high = record["final"]["interval"]
    assert low < record["final"]["error"] < high
    assert record["environment"]["torch"] == torch.__version__
    assert record["seconds"]["training"] > 0
    assert record["command"] == "capsnet reproduce tiny --seeds 2"
    assert record["commit"] == records.current_commit()
    assert record["recipe"]["seed"] == 1
    errors = [record_of(tiny, f"tiny-2-epochs-seed-{seed}")["final"]["error"] for seed in (0, 1)]
    assert errors[0] != errors[1] or record_of(tiny, "tiny-2-epochs-seed-0")["curve"] != record["curve"]
    assert f"{sum(errors) / 2:.3f} ± " in out
    assert "| 1.500 ± 0.250 |" in out
    assert "epoch 2/2" in err


def test_what_was_run_is_not_run_again_and_what_is_missing_is(tiny, capsys, monkeypatch):
    command(capsys, "tiny", "--seeds", 1)
    before = (tiny / "results" / "runs" / "tiny-2-epochs-seed-0.json").read_bytes()
    tested = []
    evaluate = reproduce.evaluate
    monkeypatch.setattr(reproduce, "evaluate", lambda *a, **k: tested.append(1) or evaluate(*a, **k))
    assert command(capsys, "tiny", "--seeds", 2)[0] == 0
    assert (tiny / "results" / "runs" / "tiny-2-epochs-seed-0.json").read_bytes() == before
    assert len(tested) == 1  # the test set is used once a run


class PullThePlug(BaseException):
    pass


def timeless(record):
    curve = [{k: v for k, v in point.items() if "second" not in k} for point in record["curve"]]
    return {**{k: record[k] for k in ("row", "seed", "epochs", "final", "recipe", "definition")}, "curve": curve}


@pytest.mark.parametrize("moment", ["in training", "before the test"])
def test_an_interrupted_run_goes_on_to_the_same_result(tiny, capsys, monkeypatch, moment):
    command(capsys, "tiny", "--seeds", 1, "--out", "whole")
    Path("runs").rename("runs-of-whole")
    with monkeypatch.context() as patch:
        if moment == "in training":
            batch = Batches.train_batch

            def stop(self, epoch, step):
                if (epoch, step) == (1, 1):
                    raise PullThePlug
                return batch(self, epoch, step)

            patch.setattr(Batches, "train_batch", stop)
        else:

            def pull(*_):
                raise PullThePlug

            patch.setattr(reproduce, "evaluate", pull)
        with pytest.raises(PullThePlug):
            command(capsys, "tiny", "--seeds", 1)
    assert not list(tiny.glob("results/**/*.json"))
    if moment == "before the test":
        monkeypatch.setattr(making, "fit", None)  # nothing is left to train
    assert command(capsys, "tiny", "--seeds", 1)[0] == 0
    name = "runs/tiny-2-epochs-seed-0.json"
    resumed, whole = (json.loads((tiny / folder / name).read_text()) for folder in ("results", "whole"))
    assert timeless(resumed) == timeless(whole)


def test_an_interrupt_says_how_to_go_on(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/capsnet", "reproduce", "tiny", "--seeds", "1"])

    def interrupted(*_, **__):
        raise KeyboardInterrupt("interrupted in epoch 2, step 5; the checkpoint is kept")

    monkeypatch.setattr(making, "fit", interrupted)
    status, _, err = command(capsys, "tiny", "--seeds", 1)
    assert status == 130
    assert "the checkpoint is kept; go on with: capsnet reproduce tiny --seeds 1" in err


def test_pairs_are_reported_by_pair_and_by_digit_and_tested_in_full_when_asked(tiny, capsys, monkeypatch):
    _, out, _ = command(capsys, "tiny-pairs", "--seeds", 1)
    final = record_of(tiny, "tiny-pairs-2-epochs-seed-0")["final"]
    assert final["images"] == 60
    assert final["thing_error"] == pytest.approx(100 * final["thing_errors"] / 120, abs=1e-4)
    assert final["errors"] / 2 <= final["thing_errors"] <= 2 * final["errors"]
    assert f"by digit {final['thing_error']:.2f}" in out
    monkeypatch.setattr(reproduce, "FULL_TEST_PAIRS", 90)
    monkeypatch.setattr(making, "fit", None)  # the model is there
    first = record_of(tiny, "tiny-pairs-2-epochs-seed-0")
    with monkeypatch.context() as patch:  # elsewhere, and later
        patch.setattr(reproduce_command, "current_commit", lambda: "another")
        patch.setattr(torch, "get_num_threads", lambda: 96)
        patch.setattr("sys.argv", ["capsnet", "reproduce", "tiny-pairs", "--full"])
        assert command(capsys, "tiny-pairs", "--seeds", 1, "--full")[0] == 0
    again = record_of(tiny, "tiny-pairs-2-epochs-seed-0")
    assert again["final"]["images"] == 90
    assert {name: again[name] for name in again["finished"]} == {name: first[name] for name in again["finished"]}
    assert again["finished"] == {
        **{"commit": "another", "command": "capsnet reproduce tiny-pairs --full"},
        "environment": {**first["environment"], "threads": 96},
    }
    assert command(capsys, "tiny-pairs", "--seeds", 1)[0] == 0  # and stays
    assert record_of(tiny, "tiny-pairs-2-epochs-seed-0")["final"]["images"] == 90


def test_a_row_that_is_tested_elsewhere_is_tested_on_its_own_set_too_and_stops_early(tiny, capsys):
    _, out, _ = command(capsys, "two-sets", "--seeds", 1)
    record = record_of(tiny, "two-sets-3-epochs-seed-0")
    assert record["final"]["epochs_trained"] == 1 == len(record["curve"])
    assert (record["final"]["data"], record["final"]["images"]) == ("other-digits", 50)
    assert record["final"]["clean_images"] == 104
    assert record["curve"][0]["held_out_error"] <= 99
    assert f"clean {record['final']['clean_error']:.2f}; " in out
    assert "; stopped after epoch 1 |" in out


def test_a_run_that_was_to_stop_at_an_error_says_whether_it_came_so_far(tiny):
    def run(seed, *held_out):
        curve = [{"held_out_error": error} for error in held_out]
        return made(TWO_SETS, seed, 30.0, final={"error": 30.0, "clean_error": 1.5}, curve=curve)

    def told(*found):
        return make_table([TWO_SETS], found)[0].also

    assert told(run(0, 99.5, 98.5)) == "clean 1.50; stopped after epoch 2"
    assert told(run(0, 99.9, 99.5, 99.0)) == "clean 1.50"  # in the last epoch
    assert told(run(0, 99.9, 99.5, 99.2)) == "clean 1.50; 99 % not reached by 1 of 1: held-out error 99.20"
    assert told(run(0, 98.0), run(1, 99.9, 99.5, 99.2)) == (
        "clean 1.50; stopped after epoch 1, 3; 99 % not reached by 1 of 2: held-out error 98.00, 99.20"
    )


def test_the_code_of_a_run_is_that_which_the_process_began_with(tiny, capsys, monkeypatch):
    commits = iter(["first", "second"])
    monkeypatch.setattr(reproduce_command, "current_commit", lambda: next(commits))
    assert command(capsys, "tiny", "--seeds", 2)[0] == 0
    for seed in (0, 1):
        record = record_of(tiny, f"tiny-2-epochs-seed-{seed}")
        assert (record["commit"], "finished" in record) == ("first", False)


def test_an_ensemble_answers_with_the_mean_of_its_members_over_shifts(tiny, capsys):
    command(capsys, "seven", "--seeds", 1)
    record = record_of(tiny, "seven-2-epochs-seed-0")
    folder = tiny / "runs" / "reproduce" / "seven-2-epochs-seed-0"
    members = [capsnet.load(folder / f"member-{number}") for number in range(2)]
    test_set = capsnet.open_dataset("some-digits", "test")
    answers = [capsnet.evaluation.probabilities(member, test_set.images, shifts=1) for member in members]
    wrong = int((sum(answers).argmax(dim=1) != test_set.labels).sum())
    assert record["final"]["errors"] == wrong
    assert not torch.equal(*answers)
    assert [(point["member"], point["epoch"]) for point in record["curve"]] == [(0, 1), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mnist-r4"], "unknown row 'mnist-r4'; there are: mnist-cnn, "),
        (["tiny", "--seeds", "0"], "--seeds must be 1 to 10,000, not 0"),
        (["tiny", "--epochs", str(10**20)], "--epochs must be 1 to 1,000,000"),
        (["smallnorb"], "needs the published files of smallNORB: --smallnorb FOLDER"),
        (["smallnorb", "--smallnorb", "nowhere"], "nowhere"),
        (["tiny", "--affnist", "nowhere"], "there is no file or folder nowhere"),
    ],
)
def test_bad_input_is_told_in_one_line(tiny, capsys, arguments, told):
    status, out, err = command(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not list(tiny.iterdir())


def test_rows_whose_data_is_not_at_hand_are_left_out_unless_named(tiny, capsys, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", {name: ROWS[name] for name in ("tiny", "smallnorb")})
    status, out, err = command(capsys, "--seeds", 1, "--smallnorb", "mistyped")
    assert (status, out) == (2, "")
    assert "mistyped" in err
    assert not list(tiny.iterdir())  # told before anything ran
    status, out, err = command(capsys, "--seeds", 1)
    assert status == 0
    assert "smallnorb left out: the row smallnorb needs the published files" in err
    assert "needs the published files: --smallnorb FOLDER" in out
    assert record_of(tiny, "tiny-2-epochs-seed-0")


def test_what_goes_wrong_after_data_was_opened_is_not_left_out(tiny, capsys, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", {"tiny": replace(TINY, needs="a file")})

    def full(*_, **__):
        raise capsnet.InputError("the disk is full")

    monkeypatch.setattr(making, "fit", full)
    status, _, err = command(capsys, "--seeds", 1)
    assert status == 2
    assert "capsnet: the disk is full" in err


def test_the_smallnorb_row_reads_the_folder_that_it_is_given(monkeypatch):
    digits = capsnet.open_dataset("mnist", "test").select(slice(5))
    places = {("some/where", "train"): digits}
    monkeypatch.setitem(data.READERS, "smallnorb", lambda *asked: places[asked])
    assert reproduce._open(rows.SMALLNORB, "train", TableSettings(smallnorb=Path("some/where"))) is digits


def test_rows_of_affnist_are_tested_on_the_published_set_if_it_is_given(tiny, capsys, monkeypatch):
    digits = capsnet.open_dataset("mnist", "test")
    monkeypatch.setitem(data.DATASETS, "affnist-synthetic", lambda split: digits.select(slice(200, 250)))
    monkeypatch.setitem(data.READERS, "affnist", lambda place, split: {("here", "test"): digits}[place, split])
    row = replace(TWO_SETS, name="shifted", test="affnist-synthetic")
    monkeypatch.setitem(rows.ROWS, "shifted", row)
    arguments = ("shifted", "two-sets", "--seeds", 1)
    status, out, _ = command(capsys, *arguments)
    assert status == 0
    assert "published" not in out
    before = record_of(tiny, "shifted-3-epochs-seed-0")
    status, out, _ = command(capsys, *arguments, "--affnist", "here")
    assert status == 0
    after = record_of(tiny, "shifted-3-epochs-seed-0")
    assert after["final"] == before["final"] | {
        **{"published_images": 10_000, "published_errors": after["final"]["published_errors"]},
        **{"published_error": after["final"]["published_errors"] / 100},
    }
    assert after["curve"] == before["curve"]  # tested again, not trained
    assert f"published affNIST {after['final']['published_error']:.2f}" in out
    assert "published_error" not in record_of(tiny, "two-sets-3-epochs-seed-0")["final"]
    assert command(capsys, *arguments)[0] == 0
    assert record_of(tiny, "shifted-3-epochs-seed-0") == after  # and stays
    untested = made(row, 1, 9.0, epochs=3, final={"error": 9.0, "clean_error": 1.0}, curve=after["curve"])
    also = make_table([row], [after, untested])[0].also
    assert "clean" in also
    assert "published" not in also  # no mean of what only some runs have


def test_digits_of_expanded_mnist_are_placed_anew_and_never_cut_off():
    row = ROWS["affnist-r3-rec"]
    train, held_out = reproduce.training_sets(row, row.held_out, TableSettings())
    assert (len(train), len(held_out)) == (55_000, 5_000)
    batches = Batches(train.select(slice(300)), None, row.recipe)
    first, second = (torch.cat([batches.train_batch(epoch, step).images for step in range(3)]) for epoch in (0, 1))
    whole = train.images[:300].sum((1, 2, 3)).float() / 255
    assert sorted(first.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(whole.tolist()), rel=1e-4)
    assert not first.equal(second)
    spread = first[:, 0].amax(2).argmax(1)  # the first row with ink
    assert spread.float().std() > 2


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("affnist")])
def test_affnist_is_learned_from_shifted_digits_only(name):
    recipe = ROWS[name].recipe
    assert (recipe.max_shift, recipe.rotation, recipe.scale, recipe.shear) == (6, 0, 0, 0)
    assert recipe.stop_at_error == 0.77


def test_runs_of_the_tables_are_not_resumed_by_train(tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["capsnet", "reproduce", "tiny", "--seeds", "1"])
    command(capsys, "tiny", "--seeds", 1)
    folder = "runs/reproduce/tiny-2-epochs-seed-0"
    Path(folder, runs.WEIGHTS).unlink()
    status = cli.main(["train", "--resume", "--out", folder])
    assert status == 2
    assert "go on with: capsnet reproduce tiny --seeds 1\n" in capsys.readouterr().err


def test_multimnist_is_tested_on_the_papers_number_of_pairs_in_full():
    assert reproduce.FULL_TEST_PAIRS == 10_000_000
    test_sets = reproduce.test_sets(ROWS["multimnist-r3-rec"], TableSettings(full=True))
    assert len(test_sets["multimnist"]) == 10_000_000
    assert len(reproduce.test_sets(ROWS["multimnist-r3-rec"], TableSettings())["multimnist"]) == multimnist.TEST_PAIRS
