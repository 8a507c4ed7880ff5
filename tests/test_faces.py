"""Faces and non-faces: the poses are those that are drawn, the kinds are what they say, and sequences hold together."""

import pytest
import torch

import capsnet
from capsnet.data import PosedSet
from capsnet.data.augment import affine, pose_matrices
from capsnet.data.face_parts import PARTS, SHAPES, library
from capsnet.data.faces import KINDS, SLOTS, Poses, _disorders, arrange, make_faces, mixed, render
from capsnet.data.painting import circle, ellipse, line, outline, paint, rounded


def test_the_named_set_is_what_it_says(monkeypatch):
    monkeypatch.setattr("capsnet.data.faces.SPLITS", {"train": 24, "test": 12})
    train, test = (capsnet.open_dataset("faces", split) for split in ("train", "test"))
    assert isinstance(train, PosedSet)
    assert train.image_shape == (1, 32, 32)
    assert train.class_names == ("no face", "face")
    assert train.labels.tolist() == [1, 0] * 12
    assert not torch.equal(train.images[:12], test.images)


def test_an_image_depends_on_its_position_alone():
    whole = make_faces(150, kinds=("face",), seed=3)
    assert torch.equal(make_faces(140, kinds=("face",), seed=3).images, whole.images[:140])
    assert torch.equal(make_faces(150, kinds=("face", "scrambled"), seed=3).images[::2], whole.images[::2])
    assert not torch.equal(make_faces(150, kinds=("face",), seed=4).images, whole.images)


def test_splits_share_no_shape_of_any_part():
    ranges = [set(range(*span)) for span in SHAPES.values()]
    assert sum(map(len, ranges)) == len(set.union(*ranges)) == 100
    for part in PARTS:
        assert len(library(part).unique(dim=0)) == 100


@pytest.mark.parametrize(
    ("reach", "column", "low", "high"),
    [
        (Poses(position=(0.1, 0.2)), slice(0, 2), 0.1, 0.2),
        (Poses(orientation=(60.0, 90.0)), slice(2, 3), 60, 90),
        (Poses(size=(0.4, 0.5)), slice(3, 4), 0.4, 0.5),
        (Poses(shear=(0.1, 0.3)), slice(4, 5), 0.1, 0.3),
    ],
)
def test_poses_are_drawn_from_their_ranges(reach, column, low, high):
    far = make_faces(300, kinds=("face",), size=8, poses=reach).poses[:, column].abs().amax(1)
    assert low <= far.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < far.max() <= high


def test_positions_fill_the_square_evenly():
    down, right = make_faces(4000, kinds=("face",), size=8, poses=Poses(position=(0.0, 0.1))).poses[:, :2].T
    for axis in (down, right):
        assert axis.std() == pytest.approx(0.1 / 3**0.5, rel=0.03)
        assert axis.mean() == pytest.approx(0, abs=0.004)
    assert float((down * right).mean()) == pytest.approx(0, abs=3e-4)


def sketch(count=12, kind=0, painted=False):
    uniform = torch.rand(count, 58, generator=torch.Generator().manual_seed(1))
    return arrange(uniform, "train", torch.full((count,), kind), 1, painted)


UPRIGHT = torch.tensor([[0.0, 0.0, 0.0, 0.4, 0.0]]).expand(12, 5)


@pytest.mark.parametrize(
    "pose",
    [[0.1, 0.0, 0.0, 0.4, 0.0], [0.0, -0.1, 0.0, 0.4, 0.0], [0, 0, 40, 0.4, 0], [0, 0, 0, 0.6, 0], [0, 0, 0, 0.4, 0.3]],
)
def test_a_pose_is_the_transformation_of_the_picture_that_it_says(pose):
    """Drawn under a pose, a face is what `augment.affine` makes of the upright one, but for interpolation."""
    faces, size = sketch(), 96
    upright = render(faces, UPRIGHT, size)
    down, right, turn, height, shear = torch.tensor([pose], dtype=torch.float32).expand(12, 5).unbind(1)
    matrices = pose_matrices(turn, shear, (height / 0.4)[:, None].expand(-1, 2), torch.stack([down, right], 1) * size)
    ground = upright[:, :, :1, :1].float()
    moved = affine((upright.float() - ground).abs().byte(), matrices).float()
    drawn = (render(faces, torch.tensor([pose], dtype=torch.float32).expand(12, 5), size).float() - ground).abs()
    shifted = affine((upright.float() - ground).abs().byte(), matrices + torch.tensor([[0, 0, 4.0], [0, 0, 0]])).float()
    assert (moved - drawn).abs().mean() < 6.0
    assert (shifted - drawn).abs().mean() > 2 * (moved - drawn).abs().mean()


def test_scrambled_parts_are_nowhere_that_one_of_their_kind_belongs():
    ways = _disorders()
    kinds = [slot.split()[-1] for slot in SLOTS]
    assert len(ways) == len(ways.unique(dim=0)) > 50
    for way in ways.tolist():
        assert sorted(way) == list(range(6))
        assert all(kinds[part] != kinds[place] for part, place in enumerate(way))
    places, natural = sketch(kind=1).centres[:, :6], sketch(kind=0).centres[:, :6]
    assert not (places == natural).all(2).any()
    assert torch.equal(places.sort(1).values, natural.sort(1).values)  # the same places, otherwise filled


def test_misoriented_parts_are_turned_each_on_its_own_and_stay():
    turned, face = sketch(kind=2), sketch(kind=0)
    assert turned.turns[:, :6].abs().min() >= 60
    assert turned.turns[:, :6].abs().max() <= 120
    assert not face.turns.any()
    assert torch.equal(turned.centres, face.centres)


def test_parts_are_missing_or_doubled_but_never_neither():
    counts = sketch(kind=3, count=500).visible.sum(1)
    assert set(counts.tolist()) == {2, 4, 5, 7}
    assert (sketch(kind=0).visible.sum(1) == 6).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_non_face_differs_from_its_face(kind):
    face, other = (make_faces(200, kinds=(name,)) for name in ("face", kind))
    differing = ((face.images.float() - other.images.float()).abs() > 20).sum((1, 2, 3))
    assert differing.min() >= 2
    assert torch.equal(face.poses, other.poses)
    assert face.labels.all()
    assert not other.labels.any()


def test_any_size_grey_or_in_colour():
    assert make_faces(3, size=17).image_shape == (1, 17, 17)
    colour, grey = (make_faces(4, size=48, channels=channels, painted=True).images.float() for channels in (3, 1))
    light = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert (light - grey).abs().max() <= 2
    drawn = make_faces(20, size=48).images
    assert (drawn == 0).float().mean() > 0.5  # light strokes on black
    assert (drawn > 200).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"kinds": ("ghost",)}, "unknown kind of face 'ghost'"),
        ({"kinds": ()}, "at least one"),
        ({"count": 0}, "at least one"),
        ({"size": 4}, "8×8"),
        ({"channels": 2}, r"grey \(1\) or colour \(3\)"),
    ],
)
def test_what_cannot_be_drawn_is_told(wrong, told):
    with pytest.raises(capsnet.InputError, match=told):
        make_faces(**{"count": 2, **wrong})


def test_poses_stay_with_their_images():
    faces = make_faces(30)
    few = faces.select(torch.tensor([7, 3]))
    assert torch.equal(few.poses, faces.poses[[7, 3]])
    rest, held_out = faces.hold_out(5)
    assert isinstance(held_out, PosedSet)
    assert isinstance(rest, PosedSet)
    for image, pose in zip(held_out.images, held_out.poses, strict=True):
        place = (faces.images == image).flatten(1).all(1).nonzero()[0, 0]
        assert torch.equal(faces.poses[place], pose)
    assert isinstance(faces.first(3), PosedSet)
    with pytest.raises(capsnet.InputError, match="poses must be float32 of shape"):
        PosedSet(faces.images, faces.labels, faces.class_names, poses=faces.poses[:, :3])


def grid(side):
    axis = (torch.arange(side) - (side - 1) / 2) / (side / 4)
    return torch.cartesian_prod(axis, axis).T[None]


def test_distances_are_right_on_and_near_the_edge():
    points = grid(80)
    one = torch.ones(1)
    exact = points.norm(dim=1) - 1
    near = exact.abs() < 0.1
    two = torch.full((1,), 2.0)
    for distance in (
        ellipse(points, torch.ones(1, 2)),
        circle(points, torch.zeros(1, 2), one),
        rounded(points, one, two, 0 * one)[0],
    ):
        assert torch.allclose(distance[near], exact[near], atol=0.01)
    segment = line(points, torch.tensor([[[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]]]))
    expected = torch.hypot(points[:, 0], (points[:, 1].abs() - 1).clamp_min(0))
    assert torch.allclose(segment, expected, atol=1e-5)


def test_what_is_painted_covers_as_many_pixels_as_it_has_area():
    side = 80
    disc = circle(grid(side), torch.zeros(1, 2), torch.ones(1))
    unit = torch.full((1,), side / 4)
    drawn = paint(torch.zeros(1, 1, side * side), disc, torch.ones(1, 1), unit)
    assert float(drawn.sum()) == pytest.approx(torch.pi * (side / 4) ** 2, rel=0.002)
    ring = paint(torch.zeros(1, 1, side * side), outline(disc, torch.full((1,), 0.1)), torch.ones(1, 1), unit)
    assert float(ring.sum()) == pytest.approx(2 * torch.pi * 0.1 * (side / 4) ** 2, rel=0.01)


def test_mixed_has_a_face_for_every_non_face():
    assert mixed("scrambled", "missing") == ("face", "scrambled", "face", "missing")
    assert mixed().count("face") == 3
