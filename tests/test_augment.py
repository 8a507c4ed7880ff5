import numpy as np
import pytest
import torch
from scipy import ndimage

import capsnet
from capsnet.data.augment import KNOTS, affine, bend, pose_matrices


def digits(count=8):
    return capsnet.open_dataset("mnist", "test").images[:count]


def poses(count, rotation=0.0, shear=0.0, scale=(1.0, 1.0), offset=(0.0, 0.0)):
    every = torch.ones(count, 1)
    return pose_matrices(
        torch.full((count,), rotation),
        torch.full((count,), shear),
        every * torch.tensor(scale),
        every * torch.tensor(offset),
    )


def by_scipy(image, matrix, size):
    """Bilinear, zeros outside; scipy maps output indices to input indices."""
    old, new = (np.array(image.shape) - 1) / 2, (np.array(size) - 1) / 2
    back = np.linalg.inv(matrix[:, :2])
    start = old - back @ (new + matrix[:, 2])
    return ndimage.affine_transform(image.astype(float), back, start, size, order=1, mode="grid-constant")


@pytest.mark.parametrize("size", [(28, 28), (40, 40), (31, 20)])
def test_affine_agrees_with_scipy_where_nothing_shrinks(size):
    generator = torch.Generator().manual_seed(0)
    images, count = digits(), 8

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    rotations = pose_matrices(uniform(-180, 180), torch.zeros(count), torch.ones(count, 2), uniform(-5, 5, 2))
    larger = pose_matrices(uniform(-30, 30), torch.zeros(count), uniform(1, 1.6, 2), uniform(-5, 5, 2))
    for matrices in (rotations, larger):
        moved = affine(images, matrices, size)
        for image, matrix, result in zip(images[:, 0].numpy(), matrices.numpy(), moved[:, 0].numpy(), strict=True):
            assert np.abs(by_scipy(image, matrix, size) - result).max() <= 0.51  # rounded


def test_the_identity_leaves_every_pixel_as_it_is():
    noise = torch.randint(256, (5, 3, 17, 24), dtype=torch.uint8)
    assert affine(noise, poses(5)).equal(noise)


def test_whole_pixels_are_shifted_down_and_right():
    images = digits()
    moved = affine(images, poses(8, offset=(2.0, -3.0)))
    assert moved[:, :, 2:, :-3].equal(images[:, :, :-2, 3:])
    assert not moved[:, :, :2].any()


def test_rotation_is_counter_clockwise_and_shear_leans_lower_rows_to_the_right():
    images = torch.randint(256, (2, 1, 9, 9), dtype=torch.uint8)
    assert affine(images, poses(2, rotation=90.0)).equal(torch.rot90(images, 1, (2, 3)))
    column = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    column[..., 4] = 255
    assert affine(column, poses(1, shear=1.0))[0, 0].argmax(dim=1).tolist() == list(range(9))


def test_scale_is_down_then_right():
    square = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    square[..., 8:12, 8:12] = 255
    tall = affine(square, poses(1, scale=(3.0, 1.0)))[0, 0].float() / 255
    assert tall[:, 9].sum().item() == pytest.approx(12, abs=0.1)
    assert tall[9].sum().item() == pytest.approx(4, abs=0.1)


def test_shrinking_averages_instead_of_skipping():
    # Stripes of one pixel: every second line taken alone would give black or white, depending on where it starts.
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    for shift in (0.0, 0.5, 1.0):
        half = affine(stripes, poses(1, scale=(0.5, 1.0), offset=(shift, 0.0)), (16, 32))[0, 0, 3:-3, 3:-3].float()
        assert (half - 127.5).abs().max() < 2


def test_bending_agrees_with_scipy():
    images, matrices = digits(), poses(8, rotation=20.0, scale=(1.2, 1.1), offset=(1.0, -2.0))
    knots = torch.randn(8, 2, KNOTS, KNOTS, generator=torch.Generator().manual_seed(0))
    field = bend(knots, (28, 28))
    bent = affine(images, matrices, field=field)
    # The field anew, as a sum over knots for each pixel.
    places = (np.arange(28) + 0.5) / 4
    near = np.exp(-((places[:, None] - (np.arange(KNOTS) - 0.5)) ** 2) / 2)
    near /= np.sqrt((near**2).sum(axis=1, keepdims=True))
    fields = np.einsum("yk,xl,ndkl->ndyx", near, near, knots.double().numpy())
    for image, matrix, away, result in zip(images[:, 0].numpy(), matrices.double().numpy(), fields, bent, strict=True):
        seen = np.indices((28, 28)) - 13.5 + away - matrix[:, 2, None, None]
        sources = np.einsum("ij,jyx->iyx", np.linalg.inv(matrix[:, :2]), seen) + 13.5
        expected = ndimage.map_coordinates(image.astype(float), sources, order=1, mode="grid-constant")
        assert np.abs(expected - result[0].numpy()).max() <= 0.51  # rounded


@pytest.mark.parametrize("size", [(28, 28), (20, 60)])
def test_a_field_is_smooth_and_as_strong_everywhere(size):
    knots = 1.5 * torch.randn(4000, 2, KNOTS, KNOTS, generator=torch.Generator().manual_seed(0))
    field = bend(knots, size).unflatten(1, size)
    assert field.std(dim=0).sub(1.5).abs().max() < 0.1
    assert field.mean(dim=0).abs().max() < 0.12
    # Derivative of such a field: its standard deviation over √2 widths of the Gaussian, a seventh of the image each.
    for axis in (1, 2):
        steps = field.diff(dim=axis).std().item() * size[axis - 1] / 7
        assert steps == pytest.approx(1.5 / 2**0.5, rel=0.15)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.2])
def test_ink_is_neither_lost_nor_made(scale):
    images = digits()
    scaled = affine(images, poses(8, rotation=20.0, scale=(scale, 1.1)), (60, 60))
    before, after = (ink.float().sum(dim=(1, 2, 3)) for ink in (images, scaled))
    assert (after / before / (scale * 1.1) - 1).abs().max() < 0.02


def test_what_one_image_becomes_does_not_depend_on_its_batch():
    images = digits(2)
    matrices = torch.cat([poses(1, rotation=33.0, offset=(0.3, 0.2)), poses(1, scale=(0.6, 0.7))])
    together = affine(images, matrices)
    for k in range(2):
        assert affine(images[k : k + 1], matrices[k : k + 1]).equal(together[k : k + 1])
