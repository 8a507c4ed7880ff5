"""Models on the Hugging Face hub: the real library, against a small hub of our own on this machine."""

import json
import os
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import yaml
from fake_hub import serving_hub

import capsnet
from capsnet import cli, pretrained, runs
from capsnet.card import model_card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def model():
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 12, 12), 3, conv_channels=4, primary_types=2, kernel_size=3, decoder=False)


def in_process(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_model_goes_to_the_hub_and_comes_back(hub, model):
    capsnet.save(model, "hub:someone/digits", classes=["a", "b", "c"])
    _, files = hub.files("someone/digits")
    assert set(files) == {runs.CONFIG, runs.WEIGHTS, runs.CARD}
    assert same(capsnet.load("hub:someone/digits"), model)
    assert runs.open_run("hub:someone/digits").class_names == ("a", "b", "c")


def test_a_revision_can_be_pinned(hub, model):
    capsnet.save(model, "hub:someone/digits")
    first, _ = hub.files("someone/digits")
    other = capsnet.CapsNet((1, 12, 12), 3, conv_channels=2, primary_types=2, kernel_size=3)
    capsnet.save(other, "hub:someone/digits")
    assert same(capsnet.load("hub:someone/digits"), other)
    assert same(capsnet.load(f"hub:someone/digits@{first}"), model)
    capsnet.save(model, "hub:someone/digits@small")
    assert same(capsnet.load("hub:someone/digits@small"), model)
    assert same(capsnet.load("hub:someone/digits"), other)
    with pytest.raises(capsnet.InputError, match="the model has no such revision"):
        capsnet.load("hub:someone/digits@large")


def test_only_the_files_of_a_run_are_fetched(hub, model):
    capsnet.save(model, "hub:someone/digits")
    hub.models["someone/digits"]["main"][-1] |= {"evil.py": b"raise SystemExit", "model.pkl": b"x", "last.ckpt": b"x"}
    folder = runs.locate("hub:someone/digits")
    assert {path.name for path in folder.iterdir()} == {runs.CONFIG, runs.WEIGHTS}
    assert not any("evil" in request or "ckpt" in request for request in hub.requests)


def test_what_was_fetched_is_there_without_a_network(hub, model):
    capsnet.save(model, "hub:someone/digits")
    capsnet.load("hub:someone/digits")
    hub.shutdown()
    hub.server_close()
    assert same(capsnet.load("hub:someone/digits"), model)
    with pytest.raises(capsnet.InputError, match="the hub cannot be reached") as told:
        capsnet.load("hub:someone/letters")
    assert "\n" not in str(told.value)
    with pytest.raises(
        capsnet.InputError, match="cannot push to hub:someone/digits: the hub cannot be reached"
    ) as told:
        capsnet.save(model, "hub:someone/digits")
    assert "copy" not in str(told.value)


def test_push_and_the_commands_that_take_a_run(hub, capsys, tmp_path, monkeypatch):
    run = pretrained.folder("mnist")
    status, out, err = in_process(capsys, "push", run, "hub:someone/mnist", "--private")
    assert (status, out, err) == (0, f"{hub.address}/someone/mnist\n", "")
    assert hub.private == {"someone/mnist"}
    _, files = hub.files("someone/mnist")
    assert {name: content for name, content in files.items() if name != runs.CARD} == {
        path.name: path.read_bytes() for path in run.iterdir()
    }
    monkeypatch.chdir(tmp_path)
    digit = capsnet.open_dataset("mnist", "test").images[0, 0].numpy()
    from PIL import Image

    Image.fromarray(digit).save("digit.png")
    status, out, err = in_process(capsys, "predict", "hub:someone/mnist", "digit.png")
    assert (status, out.split()[1], err) == (0, "7", "")
    assert in_process(capsys, "push", run, "someone/mnist")[2].startswith("capsnet: someone/mnist names no model")


def test_the_card_says_what_the_report_says(hub, capsys):
    in_process(capsys, "push", pretrained.folder("mnist"), "hub:someone/mnist")
    _, files = hub.files("someone/mnist")
    _, front, body = files[runs.CARD].decode().split("---\n", 2)
    described = yaml.safe_load(front)
    assert described["library_name"] == "capsnet"
    assert "capsule-network" in described["tags"]
    (result,) = described["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": 0.9948}
    assert result["dataset"]["name"] == "mnist"
    assert 'capsnet.load("hub:someone/mnist")' in body
    assert "| Test error | 0.52 % (52 of 10,000 images) |" in body
    assert "| Epochs | 7 |" in body
    assert "| Seed | 0 |" in body
    assert "AMD EPYC" in body
    assert huggingface_hub.ModelCard(files[runs.CARD].decode()).data.library_name == "capsnet"


def test_the_card_of_a_model_without_a_report_promises_nothing():
    config = {"model": {"name": "cnn", "config": {"in_shape": [3, 8, 8]}}, "classes": ["a|b", "c\nd"]}
    card = model_card(config, {}, "hub:me/mine@main")
    assert "| Classes | a\\|b, c d |" in card
    assert "8×8 pixels, 3 channels" in card
    assert "error" not in card
    assert "metrics" not in card


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("/home/jane/private/shapes", "shapes"),
        ("~/shapes/", "shapes"),
        ("../../jane/table.csv", "table.csv"),
        ("idx:/home/jane/fashion", "idx:fashion"),
        ("hub:/home/jane/saved", "hub:saved"),
        ("hub:uoft-cs/cifar10:plain", "hub:uoft-cs/cifar10:plain"),
        ("C:\\Users\\jane\\shapes", "shapes"),
        ("mnist", "mnist"),
    ],
)
def test_where_a_users_files_lie_is_not_published(hub, model, tmp_path, data, shown):
    capsnet.save(model, tmp_path / "run", command={"data": data, "width": 1.0})
    runs.write_json(tmp_path / "run" / runs.REPORT, {"test_error": 2.0, "test_errors": 1, "test_images": 50})
    runs.push(tmp_path / "run", "hub:someone/shapes")
    _, files = hub.files("someone/shapes")
    published = b"".join(files.values()).decode(errors="replace")
    assert "jane" not in published
    assert json.loads(files[runs.CONFIG])["command"] == {"data": shown, "width": 1.0}
    assert f"| Data | {shown} |" in published
    assert runs.read_config(tmp_path / "run")["command"]["data"] == data


def test_a_page_of_ones_own_is_kept(hub, model, tmp_path):
    capsnet.save(model, tmp_path / "run")
    (tmp_path / "run" / runs.CARD).write_text("mine")
    runs.push(tmp_path / "run", "hub:someone/digits")
    assert hub.files("someone/digits")[1][runs.CARD] == b"mine"


def test_who_may_not_is_told_in_one_line(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(capsnet.InputError, match="hf auth login") as told:
        capsnet.save(model, "hub:someone/digits")
    assert "\n" not in str(told.value)
    with pytest.raises(capsnet.InputError, match="there is no such model, or it is not yours to see"):
        capsnet.load("hub:someone/digits")


def test_what_is_no_run_of_ours_is_told(hub):
    hub.models["someone/else"] = {"main": [{"pytorch_model.bin": b"x"}]}
    with pytest.raises(capsnet.InputError, match=r"is no model of capsnet: it has no config\.json"):
        capsnet.load("hub:someone/else")
    hub.models["someone/else"]["main"].append({"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(capsnet.InputError, match="has no section 'model'"):
        capsnet.load("hub:someone/else")


@pytest.mark.parametrize("place", ["hub:", "hub:digits", "hub:a/b/c", "hub:/b", "hub:a/"])
def test_a_name_that_is_none_is_told(place, model):
    with pytest.raises(capsnet.InputError, match="that is hub:OWNER/NAME"):
        capsnet.load(place)
    with pytest.raises(capsnet.InputError, match="that is hub:OWNER/NAME"):
        capsnet.save(model, place)


def test_an_unfinished_run_is_not_pushed(hub, model, tmp_path):
    runs.make_folder(tmp_path / "run")
    runs.write_config(tmp_path / "run", model)
    with pytest.raises(capsnet.InputError, match="is not complete"):
        runs.push(tmp_path / "run", "hub:someone/digits")
    assert not hub.models


def test_a_process_without_a_network_says_so_in_one_line(tmp_path):
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "capsnet", "evaluate", "hub:someone/digits"],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("capsnet: cannot fetch hub:someone/digits: the hub cannot be reached")
    assert done.stderr.count("\n") == 1


def test_what_was_typed_is_not_published(hub, model, tmp_path):
    typed = {"reproduce": "smallnorb", "command": "capsnet reproduce --smallnorb /home/jane/files", "data": "own/study"}
    capsnet.save(model, tmp_path / "run", command=typed)
    runs.push(tmp_path / "run", "hub:jane/norb")
    published = runs.read_config(runs.locate("hub:jane/norb"))["command"]
    assert published == {"reproduce": "smallnorb", "data": "study"}


def test_a_damaged_report_is_told(hub, model, tmp_path):
    capsnet.save(model, tmp_path / "run")
    (tmp_path / "run" / runs.REPORT).write_text('{"test_error": "low"}')
    with pytest.raises(capsnet.InputError, match=r"report\.json is damaged"):
        runs.push(tmp_path / "run", "hub:jane/it")
