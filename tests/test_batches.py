"""What training sees: batches of images and of pairs, by epoch and step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import capsnet
from capsnet.batches import Batches, mix_seed
from capsnet.data import PairSet


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(64))


def epoch_of(batches, number):
    return [batches.train_batch(number, step) for step in range(len(batches.train_dataloader()))]


def test_batches_cover_every_image_once_and_follow_from_seed_and_epoch(digits):
    recipe = capsnet.Recipe(batch_size=24, max_shift=0)

    def epoch(number):
        return torch.cat([batch.images for batch in epoch_of(Batches(digits, None, recipe), number)])

    everything = digits.images.float() / 255
    assert sorted(x.sum().item() for x in epoch(0)) == pytest.approx(sorted(x.sum().item() for x in everything))
    assert epoch(3).equal(epoch(3))
    assert not epoch(3).equal(epoch(4))


def test_pairs_are_new_in_every_epoch_and_come_with_each_digit_alone(digits):
    pairs = PairSet(digits, count=50)
    recipe = capsnet.Recipe(batch_size=20)
    first, again, next_epoch = (epoch_of(Batches(pairs, None, recipe), number) for number in (0, 0, 1))
    assert [len(batch.images) for batch in first] == [20, 20, 10]
    for one, other, new in zip(first, again, next_epoch, strict=True):
        assert one.images.equal(other.images)
        assert one.targets.equal(other.targets)
        assert not one.images.equal(new.images)
        assert one.images.shape[1:] == (1, 36, 36)
        torch.testing.assert_close(one.images, one.targets.sum(dim=1).clamp(max=1))
        assert (one.labels[:, 0] != one.labels[:, 1]).all()
    other_seed = Batches(pairs, None, capsnet.Recipe(batch_size=20, seed=1)).train_batch(0, 0)
    assert not other_seed.images.equal(first[0].images)
    assert not Batches(pairs.reseeded(7), None, recipe).train_batch(0, 0).images.equal(first[0].images)


def test_each_digit_of_a_pair_is_turned_for_itself_and_the_image_is_still_their_sum(digits):
    pairs = PairSet(digits, count=8)
    plain = Batches(pairs, None, capsnet.Recipe(batch_size=8)).train_batch(0, 0)
    turned = Batches(pairs, None, capsnet.Recipe(batch_size=8, rotation=30.0)).train_batch(0, 0)
    assert turned.labels.equal(plain.labels)
    assert (turned.images - turned.targets.sum(dim=1).clamp(max=1)).abs().max() < 1e-6
    moved = (turned.targets - plain.targets).abs().flatten(2).sum(dim=2)
    assert (moved > 1).all()
    # Turning keeps the ink.
    torch.testing.assert_close(turned.targets.sum((2, 3, 4)), plain.targets.sum((2, 3, 4)), rtol=0.05, atol=0)


def test_bending_moves_pixels_by_as_much_as_the_recipe_says_and_leaves_the_rest_as_it_was():
    # A ramp of grey to the right: how much brighter a pixel becomes says how far it was taken from.
    ramp = torch.arange(0, 255, 5, dtype=torch.uint8).expand(500, 1, 51, 51).contiguous()
    data = capsnet.ImageSet(ramp, torch.zeros(500, dtype=torch.long), ("a",))
    recipe = capsnet.Recipe(batch_size=200, max_shift=0, elastic=1.5)
    seen = epoch_of(Batches(data, None, recipe), 0)
    away = (torch.cat([batch.images for batch in seen])[:, 0] * 255 - ramp[:, 0]) / 5
    assert away[:, 8:-8, 8:-8].std().item() == pytest.approx(1.5, rel=0.05)
    moved = replace(recipe, max_shift=2)
    plain, bent = (Batches(data, None, each).train_batch(0, 0) for each in (replace(moved, elastic=0.0), moved))
    difference = (bent.images - plain.images)[:, 0, 12:-12, 12:-12] * 51
    assert difference.std().item() == pytest.approx(1.5, rel=0.05)  # the shifts are those of the recipe without it


def corner(height=9, width=9):
    """A single bright pixel right of the middle, with nothing else."""
    image = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    image[0, 0, height // 2, width // 2 + 3] = 255
    return image


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rotation": 25.0}, "turn"),
        ({"scale": 0.2}, "scale"),
        ({"shear": 0.3}, "shear"),
    ],
)
def test_augmentation_stays_within_its_range_and_uses_it(options, expected):
    # Where the bright pixel goes says what was done to it.
    data = capsnet.ImageSet(corner(41, 41).repeat(400, 1, 1, 1), torch.zeros(400, dtype=torch.long), ("a",))
    data.images[:, 0, 20, 23] = 0
    row = 32 if expected == "shear" else 20  # twelve pixels from the middle: below it for the shear, else to its right
    data.images[:, 0, row, 20 if expected == "shear" else 32] = 255
    images = Batches(data, None, capsnet.Recipe(batch_size=400, max_shift=0, **options)).train_batch(0, 0).images[:, 0]
    mass = images.sum((1, 2)).clamp(min=1e-6)
    at = torch.arange(41).float() - 20
    down = (images.sum(2) * at).sum(1) / mass
    right = (images.sum(1) * at).sum(1) / mass
    if expected == "turn":
        found, limit = torch.atan2(down, right).rad2deg(), 25.0
    elif expected == "scale":
        found, limit = right / 12 - 1, 0.2
    else:
        found, limit = right / 12, 0.3
    assert found.abs().max() < limit * 1.05
    assert found.max() > limit * 0.9
    assert found.min() < -limit * 0.9
    assert abs(found.mean()) < limit * 0.15


def test_crops_are_random_in_training_and_central_in_tests():
    images = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6).repeat(300, 2, 1, 1)
    data = capsnet.ImageSet(images, torch.zeros(300, dtype=torch.long), ("a",))
    batch = Batches(data, None, capsnet.Recipe(batch_size=300, crop=4, max_shift=0)).train_batch(0, 0).images * 255
    corners = batch[:, 0, 0, 0].round().long()
    assert set(corners.tolist()) == {6 * row + column for row in range(3) for column in range(3)}
    expected = corners[:, None, None] + torch.arange(4)[:, None] * 6 + torch.arange(4)
    assert batch[:, 1].round().long().equal(expected)
    assert data.centre(4).images[0, 0, 0].tolist() == [7, 8, 9, 10]
    with pytest.raises(capsnet.InputError, match="cannot cut 7×7 pixels out of images of 6×6"):
        data.centre(7)


def test_seeds_of_neighbouring_steps_differ():
    seeds = {mix_seed(seed, epoch, step) for seed in range(5) for epoch in range(5) for step in range(20)}
    assert len(seeds) == 500


def test_held_out_pairs_share_no_digit_with_the_others(digits):
    rest, held_out = PairSet(digits, count=500).hold_out(20)
    assert (len(rest), len(held_out)) == (500, 20)

    def seen(pairs):
        images = PairSet(pairs.digits, count=len(pairs), max_shift=0).batch(0, 500).digits.flatten(0, 1)
        return {np.ascontiguousarray(image).tobytes() for image in images.numpy()}

    assert not seen(rest) & seen(held_out)
