"""Images of things whose pose is known."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

POSE = ("down", "right", "orientation", "size", "shear")
"""What a pose says: how far the middle of the thing is below and right of that of the image, and how high it is, in
shares of the image's height; how far it is turned counter-clockwise, in degrees; and by how many pixels each of its
rows lies right of the one above."""


@dataclass(frozen=True)
class PosedSet(ImageSet):
    """Labelled images, and for each the pose of what is on it. Raises `InputError` if the parts do not fit together."""

    poses: Float32[Tensor, "count numbers"] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poses.dtype != torch.float32 or self.poses.shape != (len(self.images), len(POSE)):
            raise InputError(
                f"poses must be float32 of shape ({len(self.images)}, {len(POSE)}): {', '.join(POSE)} of each image, "
                f"not {self.poses.dtype} of shape {tuple(self.poses.shape)}"
            )

    def to(self, device: torch.device | str) -> "PosedSet":
        images, labels, poses = (part.to(device) for part in (self.images, self.labels, self.poses))
        return PosedSet(images, labels, self.class_names, self.framing, poses=poses)

    def select(self, indices: Tensor | slice) -> "PosedSet":
        chosen = super().select(indices)
        return PosedSet(chosen.images, chosen.labels, self.class_names, self.framing, poses=self.poses[indices])

    def hold_out(self, count: int, seed: int = 0) -> tuple["PosedSet", "PosedSet"]:
        """As that of any set, with copies: of these the poses are wanted too, and there are never many."""
        rest, held_out = self._draw(count, seed)
        return self.select(rest), self.select(held_out)
