"""ONNX files that answer as the model does, and `capsnet export` as a user types it."""

import errno
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from terminal import typed

import capsnet
from capsnet import data, export, pretrained, runs
from capsnet.data import to_float
from capsnet.data.framing import Framing
from capsnet.models import build_model

TINY = {"conv_channels": 8, "primary_types": 2, "primary_dim": 4, "capsule_dim": 6, "decoder_hidden": (8, 12)}
KINDS = {
    "plain": ("capsnet", {"in_shape": (1, 20, 20), "num_classes": 3, **TINY}),
    "one iteration": ("capsnet", {"in_shape": (2, 17, 19), "num_classes": 4, **TINY, "iterations": 1}),
    "leaky": ("capsnet", {"in_shape": (3, 20, 20), "num_classes": 3, **TINY, "leaky": True, "decoder": False}),
    "large": ("capsnet", {"in_shape": (3, 72, 66), "num_classes": 5, **TINY}),
    "deep": (
        "capsnet",
        {"in_shape": (1, 26, 24), "num_classes": 3, **TINY, "hidden_capsules": ((3, 4, 2), (3, 4, 2, 2), (5, 4))},
    ),
    "cnn": ("cnn", {"in_shape": (1, 10, 10), "num_classes": 3, "width": 0.03}),
    "pooling-cnn": ("pooling-cnn", {"in_shape": (1, 20, 20), "num_classes": 3, "width": 0.02, "padding": False}),
    "small-cnn": ("small-cnn", {"in_shape": (3, 16, 16), "num_classes": 3, "channels": (4, 4), "dense": 8}),
    "detector": ("detector", {"in_shape": (1, 20, 20), "num_classes": 2, **TINY}),
    "cnn-detector": ("cnn-detector", {"in_shape": (1, 16, 16), "num_classes": 2, "channels": (4, 4), "dense": 8}),
}


@cache
def tiny(kind):
    """A run of a model that was not trained."""
    torch.manual_seed(0)
    name, config = KINDS[kind]
    model = build_model(name, config).eval()
    names = tuple(f"klässe {k}" for k in range(config["num_classes"]))
    return runs.Run(model, names, Framing("black", 0.7, (0.5, 0.4)), "mnist")


@cache
def exported(kind):
    """Exporting takes seconds, so that each model is exported once."""
    return export.export_onnx(tiny(kind), decoder=with_decoder(kind))


def with_decoder(kind):
    return kind in ("plain", "large", "deep", "detector")


def noise(count, shape, seed=0):
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def answer(content, images):
    session = export.open_session(content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": images.numpy()})), strict=True))


def wanted(kind, images):
    """By the model's own methods."""
    model = tiny(kind).model
    pixels = to_float(images)
    with torch.inference_mode():
        answers = {"probabilities": model.probabilities(pixels)}
        if isinstance(model, capsnet.CapsNet):
            answers["capsules"] = model(pixels).capsules
        if hasattr(model, "detect"):
            answers["poses"] = model.detect(pixels).poses
        if with_decoder(kind):
            answers["reconstruction"] = model.reconstruct(answers["capsules"])
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_answers_as_the_model_for_any_number_of_images(kind):
    model = tiny(kind).model
    for count in (1, 2, 7):
        images = noise(count, model.config["in_shape"], seed=count)
        ours, theirs = wanted(kind, images), answer(exported(kind), images)
        assert list(theirs) == list(ours)
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)
    images = noise(5, model.config["in_shape"])
    assert export.greatest_difference(model, exported(kind), images, decoder=with_decoder(kind)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_plain_onnx_and_says_nothing_of_the_machine_it_was_made_on(kind):
    described = onnx.load_from_string(exported(kind))
    onnx.checker.check_model(described, full_check=True)
    assert [(used.domain, used.version) for used in described.opset_import] == [("", export.OPSET)]
    assert not described.functions
    used = {node.op_type for node in described.graph.node}
    assert not used & {"Loop", "Scan", "If"}
    iterations = tiny(kind).model.config.get("iterations", 0)
    hidden = len(tiny(kind).model.config.get("hidden_capsules", ()))
    unrolled = iterations * (1 + hidden) + (kind == "cnn")
    assert sum(node.op_type == "Softmax" for node in described.graph.node) == unrolled
    assert "Dropout" not in used
    (entry,) = described.graph.input
    sides = [side.dim_param or side.dim_value for side in entry.type.tensor_type.shape.dim]
    assert (entry.name, entry.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert sides == ["batch", *tiny(kind).model.config["in_shape"]]
    for trace in (str(Path(capsnet.__file__).parent), "site-packages", ".py"):
        assert trace.encode() not in exported(kind)


def test_what_a_program_must_know_stands_in_the_metadata():
    found = export.open_session(exported("detector")).get_modelmeta().custom_metadata_map
    assert json.loads(found["class_names"]) == ["klässe 0", "klässe 1"]
    assert json.loads(found["framing"]) == {
        **{"background": "black", "extent": 0.7, "centre": [0.5, 0.4]},
        **{"whole": None, "pixel_range": None},
    }
    assert json.loads(found["pose"]) == ["down", "right", "orientation", "size", "shear"]
    assert found["model"] == "detector"
    assert found["version"]
    assert "pose" not in export.open_session(exported("plain")).get_modelmeta().custom_metadata_map


def test_the_decoder_is_left_out_unless_asked_for_and_told_where_there_is_none():
    described = onnx.load_from_string(exported("one iteration"))
    assert [output.name for output in described.graph.output] == ["probabilities", "capsules"]
    assert not any("decoder" in entry.name for entry in described.graph.initializer)
    for kind in ("leaky", "cnn", "cnn-detector"):
        with pytest.raises(capsnet.InputError, match="no decoder of capsules to export; leave --decoder out"):
            export.export_onnx(tiny(kind), decoder=True)


def test_a_file_that_answers_otherwise_is_noticed():
    model, images = tiny("plain").model, noise(4, (1, 20, 20))
    for value in (0.5, float("nan")):
        described = onnx.load_from_string(exported("plain"))
        weight = next(entry for entry in described.graph.initializer if entry.name == "model.classes.weight")
        numbers = np.frombuffer(weight.raw_data, np.float32).copy()
        numbers[0] += value
        weight.raw_data = numbers.tobytes()
        difference = export.greatest_difference(model, described.SerializeToString(), images, decoder=True)
        assert not difference <= export.TOLERANCE


def test_orientations_just_left_and_right_of_upside_down_are_close():
    poses = torch.tensor([[0.0, 0.1, 179.9999, 0.7, 0.0], [0.0, 0.1, -179.9999, 0.7, 0.0]])
    first, second = export._comparable(poses)
    assert (first - second).abs().max() < export.TOLERANCE
    other = export._comparable(torch.tensor([[0.0, 0.1, 179.0, 0.7, 0.0]]))
    assert (first - other).abs().max() > export.TOLERANCE


# ------------------------------------------------------------------------------------------- a model that was trained


@pytest.fixture(scope="module")
def mnist():
    """The model inside the package, as float and with 8 bits."""
    run = runs.open_run(pretrained.folder("mnist"))
    content = export.export_onnx(run, decoder=True)
    images = capsnet.open_dataset("mnist").images[:128]
    return run, content, export.quantise(content, images)


def test_real_digits_are_read_as_by_the_model_and_with_8_bits_about_as_well(mnist):
    run, content, small = mnist
    digits = capsnet.open_dataset("mnist", "test").select(slice(1000))
    outcome = capsnet.evaluate(run.model, digits)
    session = export.open_session(content)
    scores, speed = export.answers_of(session, digits.images)
    assert speed > 0
    assert scores.argmax(1).equal(outcome.predictions)
    reduced, _ = export.answers_of(export.open_session(small), digits.images)
    errors = int((reduced.argmax(1) != digits.labels).sum())
    assert abs(errors - outcome.errors) <= 5
    assert 0 < (reduced - scores).abs().mean() < 0.01
    assert export.greatest_difference(run.model, content, digits.images[:20], decoder=True) < 1e-5


def test_of_8_bits_are_weights_and_what_goes_into_convolutions_but_not_routing(mnist):
    _, content, small = mnist
    described = onnx.load_from_string(small)
    onnx.checker.check_model(described)
    kinds = {entry.name: entry.data_type for entry in described.graph.initializer}
    assert kinds["model.primary.conv.weight_quantized"] == onnx.TensorProto.INT8
    assert kinds["model.classes.weight"] == onnx.TensorProto.FLOAT
    made_by = {output: node.op_type for node in described.graph.node for output in node.output}
    for node in described.graph.node:
        fed = {made_by.get(name) for name in node.input}
        if node.op_type in ("Conv", "Gemm"):
            assert fed == {"DequantizeLinear"}
        elif node.op_type in ("MatMul", "Einsum", "Softmax"):
            assert "DequantizeLinear" not in fed
    assert len(small) < 0.6 * len(content)


def test_the_program_in_the_docs_reads_a_digit_without_this_package_and_pytorch(mnist, tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "model.onnx").write_bytes(mnist[1])
    digits = capsnet.open_dataset("mnist", "test")
    Image.fromarray(digits.images[3, 0].numpy()).save(tmp_path / "digit.png")
    alone = "import sys; sys.modules.update(torch=None, capsnet=None)\n"
    command = [sys.executable, "-c", alone + program]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert said.stderr == ""
    assert re.fullmatch(rf"{int(digits.labels[3])} 0\.\d\d\n", said.stdout)


def test_the_read_out_of_a_pose_stays_exact():
    small = export.quantise(exported("cnn-detector"), noise(64, (1, 16, 16)))
    kinds = {entry.name: entry.data_type for entry in onnx.load_from_string(small).graph.initializer}
    assert kinds["model.readout.weight"] == onnx.TensorProto.FLOAT
    assert kinds["model.head.weight_quantized"] == onnx.TensorProto.INT8
    assert set(answer(small, noise(3, (1, 16, 16)))) == {"probabilities", "poses"}


# ------------------------------------------------------------------------------------------------------- as it is typed


@pytest.fixture
def few(monkeypatch):
    """200 digits, so that nothing takes long."""
    load = data.DATASETS["mnist"]
    monkeypatch.setitem(data.DATASETS, "mnist", lambda split: load(split).select(slice(200)))


@pytest.fixture
def run_folder(tmp_path):
    torch.manual_seed(0)
    model = capsnet.CapsNet((1, 28, 28), 10, **TINY)
    capsnet.save(model, tmp_path / "run", command={"data": "mnist"})
    return tmp_path / "run"


@pytest.fixture
def at_once(monkeypatch):
    """Export and quantisation take no time: the file answers as it should, whatever it is."""
    monkeypatch.setattr(export, "export_onnx", lambda *_, **__: b"float")
    monkeypatch.setattr(export, "greatest_difference", lambda *_, **__: 1e-6)
    monkeypatch.setattr(export, "quantise", lambda *_: b"int8")


def test_export_as_json_is_one_object_and_nothing_else(run_folder, few, tmp_path, capfd):
    file = tmp_path / "model.onnx"
    status, out, err = typed(capfd, "export", run_folder, file, "--int8", "--decoder", "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    assert set(report) == {"run", "opset", "difference", "checked_on", "files", "added_error"}
    assert (report["opset"], report["checked_on"]) == (18, "64 test images")
    assert 0 <= report["difference"] < 1e-5
    whole, small = report["files"]
    assert [whole["file"], small["file"]] == [str(file), str(tmp_path / "model-int8.onnx")]
    for entry in (whole, small):
        assert set(entry) == {"file", "bytes", "images", "errors", "images_per_second"}
        assert (entry["bytes"], entry["images"]) == (Path(entry["file"]).stat().st_size, 200)
    digits = capsnet.open_dataset("mnist", "test")
    assert whole["errors"] == capsnet.evaluate(capsnet.load(run_folder), digits).errors
    assert report["added_error"] == pytest.approx((small["errors"] - whole["errors"]) / 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-int8.onnx", "model.onnx", "run"]
    assert answer(file.read_bytes(), digits.images[:3])["reconstruction"].shape == (3, 1, 28, 28)


def test_export_says_what_was_checked_and_what_8_bits_cost(run_folder, few, at_once, tmp_path, capfd, monkeypatch):
    found = {b"float": 4, b"int8": 7}

    def scores(content, images):
        labels = capsnet.open_dataset("mnist", "test").labels.clone()
        labels[: found[content]] += 1
        return torch.nn.functional.one_hot(labels % 10, 10).float(), 1234.5

    monkeypatch.setattr(export, "open_session", lambda content: content)
    monkeypatch.setattr(export, "answers_of", scores)
    status, out, err = typed(capfd, "export", run_folder, tmp_path / "m.onnx", "--int8")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "greatest difference from the model 1.0e-06, on 64 test images; opset 18",
        f"{tmp_path}/m.onnx  5 bytes  error 2.00 % (4 of 200 test images)  1,234 images/s",
        f"{tmp_path}/m-int8.onnx  4 bytes  error 3.50 % (7 of 200 test images)  1,234 images/s",
        "8-bit numbers change the error by +1.50 points",
    ]


def test_a_run_of_unknown_images_is_checked_with_noise_and_says_so(at_once, tmp_path, capfd):
    capsnet.save(tiny("plain").model, tmp_path / "run")
    status, out, err = typed(capfd, "export", tmp_path / "run", tmp_path / "m.onnx")
    assert status == 0
    assert "on 64 images of noise" in out
    assert "8-bit" not in out
    assert re.fullmatch(r"no test images, so noise is used .* name its data set: --data\n", err)
    status, out, err = typed(capfd, "export", tmp_path / "run", tmp_path / "n.onnx", "--int8")
    assert (status, out) == (2, "")
    assert err == "capsnet: the run does not say what it was trained on; name its data set: --data\n"
    status, out, err = typed(capfd, "export", tmp_path / "run", tmp_path / "n.onnx", "--data", "mnist")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "(1, 28, 28)" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "run"]


@pytest.mark.parametrize(
    ("file", "flags", "told"),
    [
        ("model.pt", [], "the name of an ONNX file ends with .onnx, but {}/model.pt does not"),
        ("model", [], "ends with .onnx"),
        ("none/model.onnx", [], "there is no folder {}/none to write model.onnx into"),
        ("model.onnx", ["--data", "mnisst"], "mnisst"),
        ("run", [], "ends with .onnx"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(run_folder, tmp_path, capfd, file, flags, told):
    status, out, err = typed(capfd, "export", run_folder, tmp_path / file, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told.format(tmp_path) in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_run_and_no_decoder_are_told_in_one_line(tmp_path, few, capfd):
    status, out, err = typed(capfd, "export", tmp_path / "run", tmp_path / "model.onnx")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no run folder" in err
    capsnet.save(capsnet.CapsNet((1, 28, 28), 10, **TINY, decoder=False), tmp_path / "run", command={"data": "mnist"})
    status, out, err = typed(capfd, "export", tmp_path / "run", tmp_path / "model.onnx", "--decoder")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no decoder" in err


@pytest.mark.parametrize("library", export.LIBRARIES)
def test_a_missing_library_is_told_before_anything_is_done(library, run_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(runs, "open_run", None)  # takes time, or a download
    status, out, err = typed(capfd, "export", run_folder, tmp_path / "model.onnx")
    assert (status, out) == (2, "")
    assert err == f"capsnet: export needs {library}; install it with: pip install 'capsnet[export]'\n"


def test_a_file_that_answers_otherwise_is_not_written(run_folder, few, at_once, tmp_path, capfd, monkeypatch):
    for difference in (0.01, float("nan")):
        monkeypatch.setattr(export, "greatest_difference", lambda *_, d=difference, **__: d)
        status, out, err = typed(capfd, "export", run_folder, tmp_path / "model.onnx")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "would answer otherwise than the model" in err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_keeps_what_was_there(run_folder, few, at_once, tmp_path, capfd, monkeypatch, number):
    (tmp_path / "model.onnx").write_bytes(b"before")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    status, out, err = typed(capfd, "export", run_folder, tmp_path / "model.onnx")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"cannot write {tmp_path}/model.onnx: {os.strerror(number)}" in err
    assert (tmp_path / "model.onnx").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "run"]


def test_over_a_link_its_target_is_written_and_a_file_keeps_its_permissions(run_folder, few, at_once, tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "kept.onnx", tmp_path / "model.onnx"
    target.write_bytes(b"before")
    target.chmod(0o600)
    link.symlink_to(target)
    assert typed(capfd, "export", run_folder, link)[0] == 0
    assert link.is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"float", 0o600)
    long = "x" * 250 + ".onnx"
    assert typed(capfd, "export", run_folder, tmp_path / long)[0] == 0
    assert (tmp_path / long).read_bytes() == b"float"
    assert [path.name for path in target.parent.iterdir()] == ["kept.onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "model.onnx", "run", long}


def test_of_two_files_none_is_replaced_before_both_are_written(run_folder, few, at_once, tmp_path, capfd, monkeypatch):
    for name in ("model.onnx", "model-int8.onnx"):
        (tmp_path / name).write_bytes(b"before")
    left = [1]

    def fail_at_the_second(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_at_the_second)
    status, _, err = typed(capfd, "export", run_folder, tmp_path / "model.onnx", "--int8")
    assert (status, err.count("\n")) == (2, 1)
    assert [(tmp_path / name).read_bytes() for name in ("model.onnx", "model-int8.onnx")] == [b"before"] * 2


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that nobody may write into")
def test_a_folder_that_may_not_be_written_into_is_told(run_folder, few, at_once, capfd):
    status, out, err = typed(capfd, "export", run_folder, "/proc/self/model.onnx")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot write /proc/self/model.onnx" in err
