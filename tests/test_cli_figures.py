"""`capsnet figures`, and `--width`, as a user types them."""

import shutil

import pytest
from terminal import typed

import capsnet
from capsnet import data, pretrained, runs
from capsnet.insight import gallery

FIGURES = ("agreement", "equivariance", "health", "perturbations", "reconstructions", "robustness")


@pytest.fixture(autouse=True)
def fewer_images(monkeypatch):
    whole = data.DATASETS["mnist"]
    monkeypatch.setitem(data.DATASETS, "mnist", lambda split: whole(split).first(200))


def files(*names):
    return {f"{name}{dark}.{kind}" for name in names for dark in ("", "-dark") for kind in ("png", "svg")}


def test_all_figures_that_apply_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "ROBUSTNESS_IMAGES", 20)
    run = shutil.copytree(pretrained.folder("mnist"), tmp_path / "run")
    status, out, err = typed(capsys, "figures", run, "--beside", pretrained.folder("mnist-cnn"), "--image", 3)
    assert status == 0, err
    assert {path.name for path in (run / "figures").iterdir()} == files(*FIGURES)
    assert sorted(out.split()) == sorted(str(run / "figures" / f"{name}.png") for name in FIGURES)


def test_of_a_run_on_pairs_overlaps_are_drawn(tmp_path, capsys):
    status, _, err = typed(capsys, "figures", pretrained.folder("multimnist"), "--out", tmp_path / "out")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == files("overlap", "agreement", "health")


def test_of_a_run_that_is_not_complete_the_health_is_drawn(tmp_path, capsys):
    run = shutil.copytree(pretrained.folder("mnist"), tmp_path / "run")
    (run / runs.WEIGHTS).unlink()
    status, _, err = typed(capsys, "figures", run)
    assert (status, "not complete: only its health" in err) == (0, True)
    assert {path.name for path in (run / "figures").iterdir()} == files("health")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none"], "no run folder none"),
        (["run", "--image", 200], "no test image 200; they are numbered 0 to 199"),
        (["run", "--data", "multimnist"], "(1, 28, 28), but those of this set are (1, 36, 36)"),
        (["run", "--data", "nothing"], "unknown data set 'nothing'"),
        (["run", "--beside", "none"], "no run folder none"),
        (["run", "--beside", "other"], "(1, 20, 20)"),
        (["bare"], "nothing to draw"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, arguments, told
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained.folder("mnist"), tmp_path / "run")
    sizes = {"conv_channels": 4, "primary_types": 2}
    capsnet.save(capsnet.CapsNet((1, 20, 20), 10, **sizes), tmp_path / "other")
    capsnet.save(capsnet.BaselineCNN((1, 28, 28), 10, width=0.02), tmp_path / "bare")
    status, out, err = typed(capsys, "figures", *arguments, "--out", "out")
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["capsnet", "cnn", "pooling-cnn"])
def test_a_narrow_network_is_trained_and_loaded(tmp_path, capsys, model):
    run = tmp_path / "run"
    arguments = ("--width", 0.05, "--limit", 64, "--batch-size", 32, "--epochs", 1, "--out", run, "--model", model)
    status, _, err = typed(capsys, "train", *arguments)
    assert status == 0, err
    narrow = capsnet.load(run)
    shapes = [tuple(parameter.shape) for parameter in narrow.parameters()]
    assert shapes[0][0] == {"capsnet": 13, "cnn": 13, "pooling-cnn": 26}[model]  # a twentieth of 256 or 512, rounded
    if model == "capsnet":
        assert narrow.config["primary_types"] == 2
        assert narrow.config["decoder_hidden"] == (26, 51)


def test_a_width_that_is_none_is_told(tmp_path, capsys):
    status, _, err = typed(capsys, "train", "--width", 0, "--out", tmp_path / "run")
    assert (status, not (tmp_path / "run").exists()) == (2, True)
    assert "the width of a network is above 0" in err
