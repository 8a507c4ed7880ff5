"""Detectors: they learn poses, from images whose poses are known, and say [likelihood, orientation, size]."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import capsnet
from capsnet import cli, runs
from capsnet.batches import Batches
from capsnet.data import PosedSet, to_float
from capsnet.data.faces import make_faces
from capsnet.evaluation import detect
from capsnet.models import CapsuleDetector, CNNDetector, SmallCNN, build_model
from capsnet.models.detector import decode_pose, encode_pose

SHAPE = (1, 32, 32)
TINY = {"conv_channels": 4, "primary_types": 2, "primary_dim": 4, "capsule_dim": 8, "decoder_hidden": (8,)}
QUICK = capsnet.Recipe(epochs=1, batch_size=16, max_shift=0)


def tiny(kind="detector", **config):
    torch.manual_seed(0)
    sizes = TINY if kind == "detector" else {"channels": (4, 4), "dense": 8}
    return build_model(kind, {"in_shape": SHAPE, **sizes, **config})


@pytest.fixture(scope="module")
def faces():
    return make_faces(48)


def test_a_pose_survives_being_encoded(faces):
    poses = faces.poses.clone()
    poses[:3, 2] = torch.tensor([179.0, -179.0, 90.0])
    assert torch.allclose(decode_pose(encode_pose(poses)), poses, atol=1e-4)
    assert encode_pose(faces.poses).abs().mean(0).max() < 3  # about one, so that no number outweighs the others


@pytest.mark.parametrize(
    ("kind", "config", "parts"),
    [
        ("detector", {}, {"margin", "reconstruction", "pose"}),
        ("detector", {"decoder": False}, {"margin", "pose"}),
        ("detector", {"objective": "cross-entropy", "decoder": False}, {"cross_entropy", "pose"}),
        ("cnn-detector", {}, {"cross_entropy", "pose"}),
        ("cnn-detector", {"objective": "margin"}, {"margin", "pose"}),
        ("cnn-detector", {"decoder_hidden": (8,)}, {"cross_entropy", "reconstruction", "pose"}),
    ],
)
def test_a_detector_learns_what_it_should(faces, kind, config, parts):
    model = tiny(kind, **config)
    images = to_float(faces.images)
    loss = model.loss(images, faces.labels, faces.poses)
    assert set(loss.parts) == parts
    loss.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    again = build_model(kind, json.loads(json.dumps(model.config)))
    assert again.config == model.config
    found = model.detect(images)
    assert found.likelihoods.shape == (48,)
    assert torch.allclose(found.likelihoods, model.probabilities(images)[:, 1])
    with pytest.raises(ValueError, match="poses are known"):
        model.loss(images, faces.labels)


def test_the_pose_loss_is_of_faces_alone(faces):
    model = tiny()
    images, elsewhere = to_float(faces.images), faces.poses.clone()
    elsewhere[faces.labels == 0] += 5
    losses = [model.loss(images, faces.labels, poses).total for poses in (faces.poses, elsewhere, faces.poses + 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_pose_is_read_from_the_direction_alone(faces):
    model = tiny()
    capsules = model(to_float(faces.images)).capsules
    assert torch.allclose(model._read(capsules), model._read(0.1 * capsules), atol=1e-5)
    assert model._read(0 * capsules).isfinite().all()


def test_with_a_single_class_routing_has_no_choice(faces):
    """Why there is a capsule for everything else: with one capsule, iterations change nothing."""
    u = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0)) / 4
    for classes, same in ((1, True), (2, False)):
        torch.manual_seed(0)
        layer = capsnet.layers.DenseCapsules(10, 4, classes, 8, iterations=1)
        once = layer(u)
        layer.iterations = 3
        assert torch.allclose(once, layer(u), atol=1e-5) == same


@pytest.mark.parametrize("kind", ["detector", "cnn-detector"])
def test_it_learns_where_a_face_is_and_how_it_is_turned(kind):
    """Training on few faces brings the errors of their poses down."""
    few = make_faces(64, kinds=("face", "missing"))
    sizes = {"conv_channels": 8, "decoder": False} if kind == "detector" else {"channels": (8, 16), "dense": 32}
    model = tiny(kind, **sizes)
    true = few.poses[::2]

    def errors():
        return (detect(model, few.images[::2]).poses - true)[:, :3].abs().mean(0)

    recipe = replace(QUICK, epochs=40, learning_rate=0.004, final_learning_rate=0.001)
    before = true[:, :3].abs().mean(0)  # of always saying "in the middle, upright"
    capsnet.fit(model, few, recipe, progress=False)
    assert (errors() < 0.75 * before).all()


def test_a_shift_in_training_moves_the_pose_along(faces):
    batches = Batches(faces, None, replace(QUICK, max_shift=3))
    batch = batches.train_batch(0, 0)
    plain = Batches(faces, None, QUICK)
    order = batches.order[:16]
    moved = 32 * (batch.targets - faces.poses[order])
    assert moved[:, :2].abs().max() == pytest.approx(3, abs=1e-3)
    assert not moved[:, 2:].any()
    offsets = moved[:, :2].round().int().tolist()
    for image, original, (down, right) in zip(batch.images, faces.images[order], offsets, strict=True):
        rows = slice(max(down, 0), 32 + min(down, 0)), slice(max(right, 0), 32 + min(right, 0))
        source = slice(max(-down, 0), 32 + min(-down, 0)), slice(max(-right, 0), 32 + min(-right, 0))
        assert torch.equal(image[0][rows], to_float(original)[0][source])
    assert torch.equal(plain.train_batch(0, 0).targets, faces.poses[plain.order[:16]])


def test_a_detector_wants_poses_and_other_models_do_without(faces):
    digits = capsnet.ImageSet(faces.images, faces.labels, faces.class_names)
    with pytest.raises(capsnet.InputError, match="poses are known"):
        capsnet.fit(tiny(), digits, QUICK, progress=False)
    for change in ({"rotation": 10.0}, {"elastic": 1.0}):
        with pytest.raises(capsnet.InputError, match="only shifted"):
            capsnet.fit(tiny(), faces, replace(QUICK, **change), progress=False)
    plain = capsnet.CapsNet(SHAPE, 2, **TINY)
    assert capsnet.fit(plain, faces, replace(QUICK, rotation=10.0), progress=False)[0]["train_error"] <= 100


def test_other_poses_are_another_run(faces, tmp_path):
    capsnet.fit(tiny(), faces, QUICK, out=tmp_path / "run", progress=False)
    (tmp_path / "run" / runs.WEIGHTS).unlink()
    other = PosedSet(faces.images, faces.labels, faces.class_names, poses=faces.poses + 1)
    with pytest.raises(capsnet.InputError, match="training set"):
        capsnet.fit(tiny(), other, QUICK, out=tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("wrong", [{"num_classes": 3}, {"pose_weight": -1.0}, {"objective": "hinge"}])
@pytest.mark.parametrize("kind", ["detector", "cnn-detector"])
def test_what_no_detector_can_be_is_told(kind, wrong):
    with pytest.raises(capsnet.InputError):
        tiny(kind, **wrong)


def test_a_small_cnn_is_what_it_says():
    model = SmallCNN((1, 28, 28), 10, channels=(8, 16), dense=32)
    assert sum(p.numel() for p in model.parameters()) == 80 + 8 * 9 * 16 + 16 + 16 * 49 * 32 + 32 + 330
    images = torch.rand(3, 1, 28, 28)
    assert torch.allclose(model(images), model.head(model.hidden(images)))
    with pytest.raises(capsnet.InputError, match="smallest size is 8×8"):
        SmallCNN((1, 7, 28), 10)


def test_predict_prints_likelihood_orientation_size(tmp_path, capsys, faces):
    model = tiny()
    capsnet.save(model, tmp_path / "run", classes=list(faces.class_names))
    picture = tmp_path / "face.png"
    Image.fromarray(faces.images[0, 0].numpy()).save(picture)
    found = detect(model, faces.images[:1])
    _, _, orientation, size, _ = found.poses[0].tolist()
    assert cli.main(["predict", str(tmp_path / "run"), str(picture)]) == 0
    expected = f"[{float(found.likelihoods[0]):.2f}, {orientation:+.0f}°, {size:.2f}]"
    assert capsys.readouterr().out.strip() == f"{picture}  {expected}"
    assert cli.main(["predict", str(tmp_path / "run"), str(picture), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["detections"]
    assert answer["orientation"] == pytest.approx(orientation, abs=0.01)
    assert answer["size"] == pytest.approx(size, abs=1e-4)


def test_detectors_are_trained_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("capsnet.data.faces.SPLITS", {"train": 32, "test": 16})
    for name in ("detector", "cnn-detector"):
        out = tmp_path / name
        words = ["train", "--data", "faces", "--model", name, "--width", "0.02", "--epochs", "1", "--out", str(out)]
        assert cli.main([*words, "--device", "cpu"]) == 0
        assert isinstance(capsnet.load(out), (CapsuleDetector, CNNDetector))
    assert cli.main(["train", "--model", "detector", "--out", str(tmp_path / "no"), "--device", "cpu"]) == 2
    assert "2 classes, not 10" in capsys.readouterr().err
