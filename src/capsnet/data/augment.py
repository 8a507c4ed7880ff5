"""Augmentation of whole batches, on the device where they lie."""

import torch
from jaxtyping import Float, Float32, Int, Shaped, UInt8
from torch import Tensor

KNOTS = 9
"""Random vectors a side from which an image is bent: one every seventh of it, the outermost just beyond its edges."""


def shift(
    images: Shaped[Tensor, "batch channels height width"], offsets: Int[Tensor, "batch 2"], reach: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Move each image by its (down, right) offset in pixels, filling with zeros (paper, section 5).

    No offset may exceed `reach` in size.
    """
    count, _, height, width = images.shape
    # With `reach` zeros after every row, what leaves a row on either side is zeros, and so is what enters it. An image
    # is then one line of pixels, and a shift by rows and columns is one by pixels: each image is copied in one piece.
    stride = width + reach
    margin = reach * stride + reach
    lines = torch.nn.functional.pad(images, (0, reach)).flatten(2)
    windows = torch.nn.functional.pad(lines, (margin, margin)).unfold(2, height * stride, 1)
    starts = margin - offsets[:, 0] * stride - offsets[:, 1]
    moved = windows[torch.arange(count, device=images.device), :, starts]
    return moved.unflatten(2, (height, stride))[..., :width]


def crop(
    images: Shaped[Tensor, "batch channels height width"], corners: Int[Tensor, "batch 2"], size: int
) -> Shaped[Tensor, "batch channels {size} {size}"]:
    """Cut a square of `size` pixels a side out of each image, with its upper left at (down, right) `corners`."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # a view: (B, C, rows, columns, size, size)
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def affine(
    images: UInt8[Tensor, "batch channels height width"],
    matrices: Float[Tensor, "batch 2 3"],
    size: tuple[int, int] | None = None,
    field: Float[Tensor, "batch points 2"] | None = None,
) -> UInt8[Tensor, "batch channels new_height new_width"]:
    """Move each image by its affine matrix `(A, t)`: what was at `p` comes to `A p + t`.

    Points are (down, right), in pixels from the middle of the image. The result has `size` (height, width), by default
    that of the images, around the same middle; what lies outside an image is zero. Between pixels the image is
    interpolated linearly. Where it shrinks, an output pixel averages over what it covers, so that nothing is skipped;
    the identity leaves every pixel as it is. With a `field`, as by `bend`, each pixel of the result, row by row, shows
    what would be so far (down, right) of it.
    """
    old, new = images.shape[2:], size or tuple(images.shape[2:])
    matrices = matrices.to(images.device, torch.float32)
    back = torch.linalg.inv(matrices[:, :, :2])
    middles = [torch.arange(n, device=images.device, dtype=torch.float32) - (n - 1) / 2 for n in new]
    grid = torch.cartesian_prod(*middles)  # (points, 2)
    shown = grid if field is None else grid + field.to(images.device)
    sources = (shown - matrices[:, None, :, 2]) @ back.mT  # (batch, points, 2)
    half = torch.tensor(old, device=images.device) / 2
    pixels, spread = images.float(), _spread(back)
    total = torch.zeros(1, device=images.device)
    for offset in spread:
        places = ((sources + offset[:, None]) / half).unflatten(1, new).flip(-1)  # grid_sample wants (right, down)
        total = total + torch.nn.functional.grid_sample(pixels, places, align_corners=False)
    return (total / len(spread)).round().byte()


def pose_matrices(
    rotation: Float[Tensor, " batch"],
    shear: Float[Tensor, " batch"],
    scale: Float[Tensor, "batch 2"],
    offset: Float[Tensor, "batch 2"],
) -> Float32[Tensor, "batch 2 3"]:
    """Matrices for `affine`: scale (down, right), then shear, then rotate, then move by `offset` (down, right).

    `rotation` is counter-clockwise in degrees; `shear` is by how many pixels each row moves right of the one above.
    """
    cos, sin = rotation.deg2rad().cos(), rotation.deg2rad().sin()
    rotate = torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    lean = torch.stack([one, zero, shear, one], dim=1).unflatten(1, (2, 2))
    return torch.cat([rotate @ lean * scale[:, None, :], offset[:, :, None]], dim=2).float()


def bend(knots: Float[Tensor, "batch 2 knots knots"], size: tuple[int, int]) -> Float[Tensor, "batch points 2"]:
    """A smooth field of vectors (down, right) for each pixel of `size` (height, width), for `affine`.

    `knots` are the vectors that it is made of by a Gaussian as wide as the distance between them: a seventh of the
    image, as in Simard, Steinkraus and Platt, "Best practices for convolutional neural networks" (2003), which has 4 of
    29 pixels. If they are independent and of one variance, each pixel's vector has that variance too.
    """
    down, right = (_weights(side, knots) for side in size)
    return (down @ knots @ right.mT).flatten(2).mT


def _weights(side: int, knots: Tensor) -> Float[Tensor, "{side} knots"]:
    """What each knot gives to each pixel along one axis; of squares that add up to 1."""
    pixels = (torch.arange(side) + 0.5) * ((KNOTS - 2) / side)
    distances = pixels[:, None] - torch.arange(-0.5, KNOTS - 1)
    return torch.nn.functional.normalize((-(distances**2) / 2).exp(), dim=1).to(knots)


def _spread(back: Float32[Tensor, "batch 2 2"]) -> list[Float32[Tensor, "batch 2"]]:
    """Where an output pixel looks, in source pixels around the middle of what it covers.

    An output pixel covers the image of a unit square under `back`, which has the covariance `back backᵀ / 12`.
    Interpolation already averages over one source pixel. What is left to average over are the directions in which the
    output pixel is longer than that, and four points have just that covariance. Without any, one point is enough.
    """
    # The symmetric matrix (a b; b c) of what an output pixel covers beyond one source pixel, its eigenvalues, and the
    # angle of the first eigenvector. `torch.linalg.eigh` would take longer than all the rest, and a GPU would wait.
    covered = back @ back.mT
    a, b, c = covered[:, 0, 0] - 1, covered[:, 0, 1], covered[:, 1, 1] - 1
    middle, half = (a + c) / 2, torch.hypot((a - c) / 2, b)
    squares = torch.stack([middle + half, middle - half], dim=1)
    excess = torch.where(squares > 1e-4, squares, 0)  # a rotation has none but rounding errors
    if not back.is_cuda and not excess.any():  # a GPU would have to be asked; there four times the same does no harm
        return [torch.zeros_like(squares)]
    angle = torch.atan2(2 * b, a - c) / 2
    reach = (excess / 12).sqrt()
    first = torch.stack([angle.cos(), angle.sin()], dim=1) * reach[:, :1]
    second = torch.stack([-angle.sin(), angle.cos()], dim=1) * reach[:, 1:]
    return [first + second, first - second, second - first, -first - second]
