"""Augmentation of whole batches, on the device where they lie."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def shift(
    images: Shaped[Tensor, "batch channels height width"], offsets: Int[Tensor, "batch 2"], reach: int
) -> Shaped[Tensor, "batch channels height width"]:
    """Move each image by its (down, right) offset in pixels, filling with zeros (paper, section 5).

    No offset may exceed `reach` in size.
    """
    _, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (reach, reach, reach, reach))
    start = reach - offsets
    rows = start[:, 0, None] + torch.arange(height, device=images.device)
    columns = start[:, 1, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices around the sliced channel dimension put that dimension last: (B, H, W, C).
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
