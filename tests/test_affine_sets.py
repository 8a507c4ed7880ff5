"""Expanded MNIST and synthetic affNIST."""

import hashlib

import pytest
import torch

import capsnet
from capsnet.data import ImageSet
from capsnet.data.affnist import SCALE, transformed
from capsnet.data.augment import affine
from capsnet.data.expanded import centred, placed

EXPANDED = {
    "train": "1e6c1d7131b495a4432436ddd00607ebf72773fd5e9a518d2b9081aec3561514",
    "test": "aaf9c54481e2ebab04010fff0cc0d9dff39e771e37cd65f4a8900c442cde921b",
}


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test")


@pytest.fixture(scope="module")
def affnist():
    return capsnet.open_dataset("affnist-synthetic", "test")


def digest(image_set):
    return hashlib.sha256(image_set.images[:100].numpy().tobytes()).hexdigest()


def test_expanded_digits_are_whole_and_anywhere(digits):
    expanded = capsnet.open_dataset("expanded-mnist", "test")
    assert expanded.images.shape == (10_000, 1, 40, 40)
    assert expanded.labels.equal(digits.labels)
    windows = expanded.images[:300, 0].unfold(1, 28, 1).unfold(2, 28, 1)  # (N, 13, 13, 28, 28)
    same = (windows == digits.images[:300, :, None]).all(dim=(3, 4))
    assert (same.sum(dim=(1, 2)) == 1).all()
    places = same.nonzero()[:, 1:]
    assert places.min() == 0
    assert places.max() == 12
    assert len(places.unique(dim=0)) > 130  # of 169 places, 300 drawn


def test_the_expanded_splits_are_fixed(digits):
    train = capsnet.open_dataset("expanded-mnist")
    assert train.images.shape == (60_000, 1, 40, 40)
    assert digest(train) == EXPANDED["train"]
    assert digest(capsnet.open_dataset("expanded-mnist", "test")) == EXPANDED["test"]
    assert digest(placed(digits, seed=5)) != EXPANDED["test"]


def test_centred_leaves_the_same_border_everywhere(digits):
    middle = centred(digits.select(slice(5)))
    assert middle.images[:, :, 6:34, 6:34].equal(digits.images[:5])
    assert middle.images.sum() == digits.images[:5].sum()
    with pytest.raises(capsnet.InputError, match="28×28 do not fit on 20×20"):
        centred(digits, 20)


def test_odd_borders_reach_both_edges():
    dot = ImageSet(torch.full((400, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(400).long(), ("dot",))
    images = placed(dot, 5).images
    assert (images.float().sum(dim=(1, 2, 3)) == 4 * 255).all()
    assert images[:, 0].amax(dim=(0, 1)).eq(255).all()
    assert images[:, 0].amax(dim=(0, 2)).eq(255).all()


def test_synthetic_affnist_is_fixed_and_a_test_set_only(affnist, digits):
    assert affnist.images.shape == (10_000, 1, 40, 40)
    assert affnist.labels.equal(digits.labels)
    # Not bit for bit: another processor may round a sum of products the other way.
    ink = affnist.images[:6].float().sum(dim=(1, 2, 3)).tolist()
    assert ink == pytest.approx([17291, 30694, 8325, 33679, 14224, 12305], abs=3)
    with pytest.raises(capsnet.InputError, match="expanded-mnist"):
        capsnet.open_dataset("affnist-synthetic", "train")


def test_no_ink_leaves_the_frame(digits, affnist):
    # The ink of a digit that is scaled by a and b is that of the original times ab, up to rounding.
    ratio = affnist.images.float().sum(dim=(1, 2, 3)) / digits.images.float().sum(dim=(1, 2, 3))
    assert ratio.min() > SCALE[0] ** 2 * 0.98
    assert ratio.max() < SCALE[1] ** 2 * 1.02
    assert ratio.mean().item() == pytest.approx(1, abs=0.01)
    edge = torch.cat([affnist.images[:, 0, [0, -1]], affnist.images[:, 0, :, [0, -1]].mT], dim=1)
    assert (edge > 0).any(dim=2).float().mean() < 0.1  # close to the edge is allowed, and rare


def test_the_ranges_are_those_published(monkeypatch, digits):
    seen = []

    def spy(images, matrices, size):
        seen.append(matrices)
        return affine(images, matrices, size)

    monkeypatch.setattr("capsnet.data.affnist.affine", spy)
    transformed(digits, copies=1)
    matrices = torch.cat(seen).double()
    linear = matrices[:, :, :2]  # rotation @ shear @ scale: undone from the left
    rotation = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1])
    cos, sin = rotation.cos(), rotation.sin()
    turned_back = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) @ linear
    scale = turned_back.diagonal(dim1=1, dim2=2)
    shear = turned_back[:, 1, 0] / scale[:, 0]
    for values, low, high in ((rotation.rad2deg(), -20, 20), (shear, -0.2, 0.2), (scale, 0.8, 1.2)):
        assert values.min().item() == pytest.approx(low, abs=(high - low) / 500)
        assert values.max().item() == pytest.approx(high, abs=(high - low) / 500)
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=(high - low) / 50)
    assert turned_back[:, 0, 1].abs().max() < 1e-6
    assert matrices[:, :, 2].abs().max() > 8  # far out, where the digit is small
    assert torch.corrcoef(torch.stack([rotation, shear, *scale.T])).triu(1).abs().max() < 0.05


def test_copies_come_one_after_the_other(digits):
    few = digits.select(slice(700))  # more than a batch
    three = transformed(few, copies=3)
    assert three.images[:700].equal(transformed(few).images)
    assert three.labels.equal(few.labels.repeat(3))
    assert not three.images[:700].equal(three.images[700:1400])


def test_what_does_not_fit_is_centred_and_blank_images_stay_blank():
    large = ImageSet(torch.full((20, 1, 52, 52), 255, dtype=torch.uint8), torch.zeros(20).long(), ("a",))
    images = transformed(large, size=40).images[:, 0].float()
    middle = (images * torch.arange(40)[:, None]).sum(dim=(1, 2)) / images.sum(dim=(1, 2))
    assert (middle - 19.5).abs().max() < 0.5
    blank = ImageSet(torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.zeros(20).long(), ("a",))
    assert not transformed(blank).images.any()
