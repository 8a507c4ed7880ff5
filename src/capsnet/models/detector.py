"""Detectors: is the thing there, and in what pose? Likelihood from a capsule's length, pose from its direction.

`CapsuleDetector` is the claim of capsule networks built as it is told; `CNNDetector` has the same two answers on top
of the usual network with pooling.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capsnet import functional
from capsnet.checks import shown
from capsnet.errors import InputError
from capsnet.layers import Decoder
from capsnet.models.base import Images, Labels, Loss, sigmoid_loss
from capsnet.models.capsnet import CapsNet
from capsnet.models.settings import checked
from capsnet.models.small_cnn import SmallCNN

Objective = Literal["margin", "cross-entropy"]
Poses = Float[Tensor, "batch pose"]
"""(down, right, orientation, size, shear), as `capsnet.data.posed.POSE` has them."""
THING = 1
"""The class that is looked for; 0 is everything else. Routing needs the choice: with a single capsule the softmax over
capsules is 1 for every vote, and nothing is routed."""
NUMBERS = 6
USUAL = (0.0, 0.0, 1.0, 0.0, -0.5, 0.0)
"""The numbers of a pose that a read-out starts from: in the middle, upright, 70 % as high as the image."""
SCALES = (20.0, 20.0, 4.0, 4.0, 8.0, 8.0)
"""What deviations from it are multiplied by, so that all numbers weigh about the same, and about as much as one."""


class Detection(NamedTuple):
    """What is said of each image: how likely the thing is there, and its pose if it is."""

    likelihoods: Float[Tensor, " batch"]
    poses: Poses


class CapsuleDetector(CapsNet):
    """A CapsNet for a thing and everything else, with a linear read-out of the pose from the thing's capsule.

    The read-out sees the direction of the capsule alone, a vector of length one. Sizes are those of `CapsNet`; poses
    are learnt with `pose_weight` beside the margin loss. With the objective "cross-entropy" lengths are taken for
    probabilities instead, to see what the margin loss is good for.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int = 2,
        iterations: int = 3,
        *,
        pose_weight: float = 0.1,
        objective: Objective = "margin",
        **sizes: Any,
    ) -> None:
        super().__init__(in_shape, num_classes, iterations, **sizes)
        self.config |= _checked(num_classes, pose_weight, objective)
        self.readout = nn.Linear(self.config["capsule_dim"], NUMBERS)

    def loss(self, images: Images, labels: Labels, targets: Poses | None = None) -> Loss:
        """Margin loss, reconstruction loss where there is a decoder, and the squared error of the poses of things.

        `targets` are the poses; those of other images do not count. Raises `ValueError` without.
        """
        capsules, lengths = self(images)
        labels = functional.class_numbers(labels, 2, len(images))
        if self.config["objective"] == "margin":
            parts = {"margin": functional.margin_loss(lengths, labels)}
        else:
            parts = {"cross_entropy": _cross_entropy(lengths.clamp(1e-3, 1 - 1e-3), labels)}
        total = next(iter(parts.values()))
        if self.decoder is not None:
            parts["reconstruction"] = functional.reconstruction_loss(self.reconstruct(capsules, labels), images)
            total = total + functional.RECONSTRUCTION_WEIGHT * parts["reconstruction"]
        parts["pose"] = _pose_loss(self._read(capsules), labels, targets)
        return Loss(total + self.config["pose_weight"] * parts["pose"], parts, lengths)

    def detect(self, images: Images) -> Detection:
        """The length of the thing's capsule, and the pose that is read from its direction."""
        capsules, lengths = self(images)
        return Detection(lengths[:, THING], self.pose(capsules))

    def pose(self, capsules: Float[Tensor, "batch classes dim"]) -> Poses:
        """The pose that the thing's capsule tells."""
        return decode_pose(self._read(capsules))

    def _read(self, capsules: Float[Tensor, "batch classes dim"]) -> Float[Tensor, "batch numbers"]:
        thing = capsules[:, THING]
        return self.readout(nn.functional.normalize(thing, dim=1, eps=torch.finfo(thing.dtype).tiny))


class CNNDetector(SmallCNN):
    """The small CNN with max-pooling for a thing and everything else, and a linear read-out of the pose.

    The read-out sees the last hidden layer, as the classes do. With `decoder_hidden` a decoder of these widths draws
    the image from that layer, and with the objective "margin" the margin loss is taken of the probabilities: both to
    see what the difference to capsules is due to.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int = 2,
        *,
        channels: tuple[int, ...] = (32, 64, 128),
        dense: int = 256,
        pose_weight: float = 0.1,
        objective: Objective = "cross-entropy",
        decoder_hidden: tuple[int, ...] = (),
    ) -> None:
        super().__init__(in_shape, num_classes, channels=channels, dense=dense)
        self.config |= _checked(num_classes, pose_weight, objective) | checked({"decoder_hidden": decoder_hidden})
        self.readout = nn.Linear(dense, NUMBERS)
        self.decoder = Decoder(1, dense, in_shape, decoder_hidden) if decoder_hidden else None

    def loss(self, images: Images, labels: Labels, targets: Poses | None = None) -> Loss:
        """Sigmoid cross-entropy, summed over the classes, and the rest as `CapsuleDetector.loss` has it."""
        hidden = self.hidden(images)
        labels = functional.class_numbers(labels, 2, len(images))
        logits = self.head(hidden)
        if self.config["objective"] == "margin":
            parts = {"margin": functional.margin_loss(logits.sigmoid(), labels)}
        else:
            parts = {"cross_entropy": sigmoid_loss(logits, labels)}
        total = next(iter(parts.values()))
        if self.decoder is not None:
            drawn = self.decoder(hidden[:, None], torch.zeros_like(labels))
            parts["reconstruction"] = functional.reconstruction_loss(drawn, images)
            total = total + functional.RECONSTRUCTION_WEIGHT * parts["reconstruction"]
        parts["pose"] = _pose_loss(self.readout(hidden), labels, targets)
        return Loss(total + self.config["pose_weight"] * parts["pose"], parts, logits)

    def detect(self, images: Images) -> Detection:
        """The probability of the thing, and the pose that is read from the last hidden layer."""
        hidden = self.hidden(images)
        return Detection(self.head(hidden)[:, THING].sigmoid(), decode_pose(self.readout(hidden)))


Detector = CapsuleDetector | CNNDetector


def encode_pose(poses: Poses) -> Float[Tensor, "batch numbers"]:
    """What the read-outs learn: place, cosine and sine of the orientation, logarithm of the size, shear."""
    down, right, orientation, size, shear = poses.unbind(1)
    angle = orientation.deg2rad()
    numbers = torch.stack([down, right, angle.cos(), angle.sin(), size.log2(), shear], 1)
    return (numbers - poses.new_tensor(USUAL)) * poses.new_tensor(SCALES)


def decode_pose(numbers: Float[Tensor, "batch numbers"]) -> Poses:
    down, right, cos, sin, size, shear = (numbers / numbers.new_tensor(SCALES) + numbers.new_tensor(USUAL)).unbind(1)
    # Before anything is learnt the numbers may be anything; no thing is a thousand times as high as its image.
    return torch.stack([down, right, torch.atan2(sin, cos).rad2deg(), size.clamp(-10, 10).exp2(), shear], 1)


def _checked(num_classes: int, pose_weight: float, objective: str) -> dict[str, Any]:
    if num_classes != 2:
        raise InputError(f"a detector tells one thing from everything else: 2 classes, not {num_classes}")
    if objective not in get_args(Objective):
        raise InputError(f"unknown objective {shown(objective)}; there are: {', '.join(get_args(Objective))}")
    return {**checked({"pose_weight": pose_weight}), "objective": objective}


def _cross_entropy(probabilities: Tensor, labels: Int[Tensor, " batch"]) -> Tensor:
    """Of each class for itself, summed over the classes and averaged over the images."""
    present = functional.multi_hot(labels, probabilities.shape[1])
    return nn.functional.binary_cross_entropy(probabilities, present, reduction="sum") / len(labels)


def _pose_loss(numbers: Tensor, labels: Int[Tensor, " batch"], poses: Poses | None) -> Tensor:
    """Squared errors summed over the numbers of a pose, for the images that show the thing, averaged over all."""
    if poses is None:
        raise ValueError("a detector learns from images whose poses are known: targets=…")
    errors = (numbers - encode_pose(poses)).square().sum(1)
    return (errors * (labels == THING)).mean()
