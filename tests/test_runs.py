import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import capsnet
from capsnet import callbacks, cli, runs
from capsnet.evaluation import detect
from capsnet.models import CapsuleDetector, CNNDetector, Detector, SmallCNN


def small():
    return capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2, decoder_hidden=(8,))


@pytest.fixture
def run(tmp_path):
    capsnet.save(small(), tmp_path / "run")
    return tmp_path / "run"


def test_what_is_saved_is_loaded(tmp_path):
    model = small()
    capsnet.save(model, tmp_path / "deep" / "run")
    loaded = capsnet.load(tmp_path / "deep" / "run")
    assert loaded.config == model.config
    assert all(loaded.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())
    images = torch.rand(2, 1, 17, 17)
    assert loaded(images).capsules.equal(model.eval()(images).capsules)


def test_missing_folders_and_files_are_named(tmp_path, run):
    with pytest.raises(capsnet.InputError, match="there is no run folder"):
        capsnet.load(tmp_path / "none")
    with pytest.raises(capsnet.InputError, match="is not a run folder"):
        capsnet.load(tmp_path)
    with pytest.raises(capsnet.InputError, match="is a file"):
        capsnet.load(run / runs.CONFIG)
    (run / runs.WEIGHTS).unlink()
    with pytest.raises(capsnet.InputError, match="not complete"):
        capsnet.load(run)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 1000, -1])
def test_truncated_weights_are_refused(run, keep):
    whole = (run / runs.WEIGHTS).read_bytes()
    (run / runs.WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(capsnet.InputError, match=r"model\.safetensors is damaged"):
        capsnet.load(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"model": 3}', '{"model": {"name": "capsnet"}}'])
def test_damaged_configs_are_refused(run, content):
    (run / runs.CONFIG).write_text(content)
    with pytest.raises(capsnet.InputError, match=r"config\.json is damaged"):
        capsnet.load(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 3),
        ("in_shape", [1, 9999999, 9999999]),
        ("in_shape", "x"),
        ("in_shape", [1, 28]),
        ("capsule_dim", -1),
        ("iterations", 10**30),
        ("iterations", 1.5),
        ("kernel_size", 0),
        ("conv_channels", True),
    ],
)
def test_configs_that_do_not_fit_the_weights_are_refused(run, key, value):
    config = json.loads((run / runs.CONFIG).read_text())
    config["model"]["config"][key] = value
    (run / runs.CONFIG).write_text(json.dumps(config))
    with pytest.raises(capsnet.InputError):
        capsnet.load(run)


def test_weights_that_are_not_finite_are_refused(run):
    state = {name: torch.full(tensor.shape, float("nan")) for name, tensor in small().state_dict().items()}
    (run / runs.WEIGHTS).write_bytes(safetensors.torch.save(state))
    with pytest.raises(capsnet.InputError, match="not finite"):
        capsnet.load(run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded_as_float32(run, dtype):
    weights = capsnet.load(run).state_dict()
    written = {name: tensor.to(dtype) for name, tensor in weights.items()}
    (run / runs.WEIGHTS).write_bytes(safetensors.torch.save(written))
    assert all(tensor.equal(written[name].float()) for name, tensor in capsnet.load(run).state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to(torch.complex64), "is torch.complex64, not torch.float32"),
        (lambda tensor: tensor.int(), "is torch.int32, not torch.float32"),
        (lambda tensor: tensor > 0, "is torch.bool, not torch.float32"),
        (lambda tensor: tensor.double() + 1e300, "not finite"),
        (lambda tensor: tensor[None], "size mismatch"),
    ],
)
def test_weights_of_no_use_are_refused(run, change, said):
    written = {name: change(tensor).contiguous() for name, tensor in small().state_dict().items()}
    (run / runs.WEIGHTS).write_bytes(safetensors.torch.save(written))
    with pytest.raises(capsnet.InputError, match=said):
        capsnet.load(run)


def overflowing(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3e38)
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight[:, ::2] *= -1  # infinite features then cancel out to NaN
    return model


@pytest.mark.parametrize(
    "model",
    [
        small(),
        capsnet.BaselineCNN((1, 17, 17), 2, width=0.05),
        capsnet.PoolingCNN((1, 17, 17), 2, width=0.05),
        SmallCNN((1, 17, 17), 2, channels=(4,), dense=4),
        CapsuleDetector((1, 17, 17), conv_channels=4, primary_types=2, decoder=False),
        CNNDetector((1, 17, 17), channels=(4,), dense=4),
    ],
)
def test_no_answer_is_given_by_weights_that_overflow(tmp_path, capsys, model):
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    Image.fromarray(np.full((17, 17), 200, np.uint8)).save(picture)
    capsnet.save(overflowing(model), run)
    for words in (["predict", run, picture, "--json"], ["evaluate", run, "--json"], ["export", run, "x.onnx"]):
        assert cli.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "give no finite answer" in err
    images = torch.full((3, 1, 17, 17), 200, dtype=torch.uint8)
    if isinstance(model, Detector):
        with pytest.raises(capsnet.InputError, match="no finite answer"):
            detect(model, images)
    test_set = capsnet.ImageSet(images, torch.tensor([0, 1, 0]), ("a", "b"))
    with pytest.raises(capsnet.InputError, match="no finite answer"):
        capsnet.evaluate(model, test_set)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = small()
    with torch.no_grad():
        model.classes.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(capsnet.InputError, match="weights are not finite"):
        capsnet.save(model, tmp_path / "run")
    assert not (tmp_path / "run" / runs.CONFIG).exists()


def test_foreign_weights_are_refused(run):
    (run / runs.WEIGHTS).write_bytes(safetensors.torch.save({"conv.weight": torch.zeros(3)}))
    with pytest.raises(capsnet.InputError, match="not this model's"):
        capsnet.load(run)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_nothing_that_is_loaded_can_execute_code(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    (run / runs.WEIGHTS).write_bytes(bomb)
    with pytest.raises(capsnet.InputError):
        capsnet.load(run)
    from capsnet.checkpoints import SafeCheckpointIO

    for content in (bomb, b"", b"PK\x03\x04"):
        (run / runs.CHECKPOINT).write_bytes(content)
        with pytest.raises(capsnet.InputError, match=r"last\.ckpt is damaged"):
            SafeCheckpointIO("ours").load_checkpoint(run / runs.CHECKPOINT)
    torch.save({"model": Bomb()}, run / runs.CHECKPOINT)
    with pytest.raises(capsnet.InputError, match=r"last\.ckpt is damaged"):
        SafeCheckpointIO("ours").load_checkpoint(run / runs.CHECKPOINT)
    assert not (tmp_path / "exploded").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    runs.write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(capsnet.InputError, match="No space left on device; what was saved before is intact"):
        runs.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".last.ckpt.123.partial").write_bytes(b"half")
    with runs.locked(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "file"
    runs.write_atomically(path, b"old")
    usual = path.stat().st_mode & 0o777
    for mode in (0o600, 0o640, 0o444, usual):
        path.chmod(mode)
        runs.write_atomically(path, b"new")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)
        path.chmod(0o600)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 199, "x" * 200])
def test_names_as_long_as_file_systems_take_can_be_written(tmp_path, name):
    for content in (b"old", b"new"):
        runs.write_atomically(tmp_path / name, content)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, content)]
    (tmp_path / runs._partial(tmp_path / name).name).write_bytes(b"half")
    with runs.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("below", ["", "deep/run"])
def test_a_link_that_leads_nowhere_is_told(tmp_path, below):
    (tmp_path / "link").symlink_to("gone")
    folder = tmp_path / "link" / below
    told = "link is a link to gone, which is not there"
    with pytest.raises(capsnet.InputError, match=told):
        capsnet.save(small(), folder)
    with pytest.raises(capsnet.InputError, match=told):
        runs.require_free(folder)
    (tmp_path / "gone").mkdir()
    capsnet.save(small(), folder)
    capsnet.load(tmp_path / "gone" / below)


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(capsnet.InputError, match="cannot open the folder"), runs.locked(tmp_path / "gone"):
        pass


def test_only_our_models_are_saved(tmp_path):
    class Mine(capsnet.CapsNet):
        pass

    with pytest.raises(capsnet.InputError, match="cannot save or train a Mine"):
        capsnet.save(Mine((1, 17, 17), 2, conv_channels=4, primary_types=2), tmp_path / "run")


@pytest.mark.parametrize(
    "content",
    [
        *("", "epoch\n1\n", "epoch,seconds,images_per_second\n1,0,3\n", "a,b\n1\n", '"' + "x" * 200_000),
        *("epoch,seconds,images_per_second\n1,inf,3\n", "epoch,seconds,images_per_second,loss_mean\n1,1,3,nan\n"),
    ],
)
def test_damaged_logs_are_refused(run, content):
    (run / runs.METRICS).write_text(content)
    if content:
        with pytest.raises(capsnet.InputError, match=r"metrics\.csv (is damaged|cannot be read)"):
            runs.read_metrics(run)
    else:
        assert runs.read_metrics(run) == []


def test_a_run_that_a_later_version_went_on_with_has_its_later_figures_in_later_lines(run):
    rows = [
        {"epoch": 1, "seconds": 2.5, "images_per_second": 7.0},
        {"epoch": 2, "seconds": 2.5, "images_per_second": 7.0},
    ]
    rows[1]["logit_std"] = 0.25
    (run / runs.METRICS).write_bytes(callbacks._as_csv(rows))
    assert runs.read_metrics(run) == rows


@pytest.mark.parametrize("figure", ["NaN", "-Infinity", "1e999", "-1", "101", "true", '"5"', "[5]", "1" + "0" * 400])
def test_a_report_of_impossible_figures_is_refused(run, figure):
    (run / runs.REPORT).write_text(f'{{"test_error": {figure}, "test_images": 8}}')
    with pytest.raises(capsnet.InputError, match=r"report\.json is damaged"):
        runs.read_report(run)
    (run / runs.REPORT).write_text(f'{{"test_error": 12.5, "test_images": {figure}}}')
    if figure != "101":
        with pytest.raises(capsnet.InputError, match=r"report\.json is damaged"):
            runs.read_report(run)


@pytest.mark.parametrize(
    "framing",
    [
        *({"extent": value} for value in (float("nan"), "x", True, 10**400, [1], 0, -1)),
        *({"centre": value} for value in (None, "ab", [0.5], [0.5, "x"], [0.5, True], [0.5, [0.5]], 1)),
        *({"background": value} for value in ("red", ["black"], 1)),
        *([], None, 1, {"extent": 1.0, "other": 2}),
    ],
)
def test_framing_that_is_none_is_refused(run, framing):
    config = json.loads((run / runs.CONFIG).read_text())
    (run / runs.CONFIG).write_text(json.dumps({**config, "framing": framing}))
    with pytest.raises(capsnet.InputError, match=r"config\.json is damaged"):
        runs.open_run(run)


def test_what_is_no_json_is_never_written(tmp_path):
    with pytest.raises(capsnet.InputError, match="cannot be recorded"):
        capsnet.save(small(), tmp_path / "run", notes={"loss": float("nan")})


def test_a_model_saved_over_a_run_is_not_what_the_runs_report_tells_of(run):
    for name in (runs.METRICS, runs.REPORT, runs.CHECKPOINT):
        (run / name).write_text("of another model")
    capsnet.save(small(), run)
    assert {path.name for path in run.iterdir()} == {runs.CONFIG, runs.WEIGHTS, runs.METRICS, runs.CHECKPOINT}


def test_names_that_are_numbers_or_no_text_are_recorded(tmp_path):
    names = [np.int64(3), "caf\udce9"]
    capsnet.save(capsnet.CapsNet((1, 17, 17), 2, conv_channels=4, primary_types=2), tmp_path / "run", classes=names)
    assert runs.open_run(tmp_path / "run").class_names == ("3", r"caf\xe9")
    with pytest.raises(TypeError, match="object cannot be recorded"):
        capsnet.save(small(), tmp_path / "other", classes=[object()])


def test_of_two_processes_that_begin_in_one_folder_one_does(tmp_path):
    """The second finds the lock, and changes nothing."""
    train = capsnet.ImageSet(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    folder = tmp_path / "run"
    folder.mkdir()
    with runs.locked(folder), pytest.raises(capsnet.InputError, match="another process is training"):
        capsnet.fit(capsnet.CapsNet((1, 28, 28), 2, conv_channels=4, primary_types=2), train, out=folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_shape", shape) for shape in ([1, 28], [1, 2, 28], [1, 10**9, 28], ["1", 28, 28], [True] * 3, 7)),
        *(("classes", names) for names in (10, "ab", [["a"], {}], [None, None], {"a": 1, "b": 2})),
    ],
)
def test_what_is_damaged_beside_the_model_is_told(run, name, value):
    config = json.loads((run / runs.CONFIG).read_text())
    (run / runs.CONFIG).write_text(json.dumps({**config, name: value}))
    with pytest.raises(capsnet.InputError, match=r"config\.json is damaged"):
        runs.open_run(run)
    with pytest.raises(capsnet.InputError, match=r"config\.json is damaged"):
        runs.open_split(run, "mnist")


class KilledError(BaseException):
    """As nothing catches it, the process is gone as after SIGKILL."""


def kill_after(monkeypatch, count):
    """End at the first change of a file after `count` of them: what is removed counts as what is renamed."""
    left = [count]

    def counted(function):
        def step(*arguments, **options):
            if function.__name__ == "replace" or "partial" not in str(arguments[0]):
                if not left[0]:
                    raise KilledError
                left[0] -= 1
            return function(*arguments, **options)

        return step

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(runs.Path, "unlink", counted(runs.Path.unlink))


def of_old(run):
    """Weights of a version that did not name the config."""
    runs.write_atomically(run / runs.WEIGHTS, safetensors.torch.save(safetensors.torch.load_file(run / runs.WEIGHTS)))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("alike", [False, True])
def test_saving_over_a_model_never_mixes_two(run, monkeypatch, steps, old, alike):
    """Names of classes fit any weights; a report is that of the weights beside it."""
    before = capsnet.load(run)
    if old:
        of_old(run)
    (run / runs.REPORT).write_text("{}")
    after, names = small(), {} if alike else {"classes": ["new", "names"]}
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        if steps < 3:
            with pytest.raises(KilledError):
                capsnet.save(after, run, **names)
        else:
            capsnet.save(after, run, **names)
    try:
        opened = runs.open_run(run)
    except capsnet.InputError:
        assert not alike
        assert steps == 2
        with pytest.raises(capsnet.InputError, match="was saved with another"):
            capsnet.load(run)
        with pytest.raises(capsnet.InputError, match="was saved with another"):
            runs.open_split(run, "mnist")
    else:
        is_new = opened.model.state_dict()["conv.weight"].equal(after.state_dict()["conv.weight"])
        assert is_new or opened.model.state_dict()["conv.weight"].equal(before.state_dict()["conv.weight"])
        assert alike or opened.class_names == (("new", "names") if is_new else ("0", "1"))
        assert is_new == (steps > 1)
        assert not (is_new and (run / runs.REPORT).exists())
    capsnet.save(after, run, classes=["saved", "again"])
    assert runs.open_run(run).class_names == ("saved", "again")


@pytest.mark.parametrize("section", ["classes", "framing", "image_shape", "recipe", "model"])
def test_weights_name_all_of_the_config_that_decides(run, section):
    framing = {"background": "black", "extent": 0.7, "centre": [0.5, 0.5], "whole": None}
    capsnet.save(small(), run, classes=["a", "b"], framing=framing, image_shape=[1, 20, 20], recipe={"crop": 17})
    runs.open_run(run)
    config = json.loads((run / runs.CONFIG).read_text())
    (run / runs.CONFIG).write_text(json.dumps({**config, "command": {"data": "elsewhere"}}))
    runs.open_run(run)  # of which nothing follows
    other = {"classes": ["b", "a"], "framing": {**framing, "extent": 0.5}, "image_shape": [1, 21, 21], "recipe": {}}
    other["model"] = {**config["model"], "config": {**config["model"]["config"], "iterations": 2}}
    (run / runs.CONFIG).write_text(json.dumps({**config, section: other[section]}))
    with pytest.raises(capsnet.InputError, match="was saved with another config"):
        runs.open_run(run)
    of_old(run)
    runs.open_run(run)


def test_a_trained_run_names_its_config(tmp_path):
    train = capsnet.ImageSet(torch.zeros(4, 1, 17, 17, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    capsnet.fit(small(), train, capsnet.Recipe(epochs=1, max_shift=0), out=tmp_path / "run", progress=False)
    assert runs.open_run(tmp_path / "run").class_names == ("a", "b")
    config = json.loads((tmp_path / "run" / runs.CONFIG).read_text())
    (tmp_path / "run" / runs.CONFIG).write_text(json.dumps({**config, "classes": ["b", "a"]}))
    with pytest.raises(capsnet.InputError, match="was saved with another config"):
        runs.open_run(tmp_path / "run")


def test_what_is_saved_while_it_is_opened_is_not_mixed(run, monkeypatch):
    """Whoever opens a run reads its config, and then weights that somebody else has saved in between."""
    read = runs.read_config

    def then_saved(folder):
        config = read(folder)
        monkeypatch.setattr(runs, "read_config", read)
        capsnet.save(small(), folder, classes=["new", "names"])
        return config

    monkeypatch.setattr(runs, "read_config", then_saved)
    with pytest.raises(capsnet.InputError, match="was saved with another config"):
        runs.open_run(run)
    assert runs.open_run(run).class_names == ("new", "names")
