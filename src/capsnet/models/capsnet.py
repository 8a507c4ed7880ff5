"""CapsNet, the capsule network of the paper."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from capsnet import functional
from capsnet.convolution import Conv2d
from capsnet.errors import InputError
from capsnet.layers import ROUTED_LENGTH, Decoder, DenseCapsules, PrimaryCapsules
from capsnet.models.base import Images, Labels, Loss, Targets, check_images
from capsnet.models.hidden import hidden_layers
from capsnet.models.settings import checked
from capsnet.stem import build_stem, stem_depth


class CapsuleOutput(NamedTuple):
    capsules: Float[Tensor, "batch classes dim"]
    lengths: Float[Tensor, "batch classes"]


class CapsNet(nn.Module):
    """The capsule network of the paper's figure 1, for any image that leaves a grid of primary capsules.

    `in_shape` is (channels, height, width); pixels are 0 to 1. With the defaults and 28×28×1 the sizes are the
    paper's: 8,215,568 parameters, 6,804,224 without the decoder.

    `stem` is what stands before Conv1: how often it halves the image (`capsnet.stem.Stem`; by default until the image
    has no more pixels than the paper's largest, 40×40), or any module that turns images into features `(B, C, H, W)`, a
    pretrained network for instance. `hidden_capsules` are the layers between the primary capsules and those of the
    classes, from below: `(capsules, dim)` for `DenseCapsules`, `(types, dim, kernel_size)` or
    `(types, dim, kernel_size, stride)` for `ConvCapsules`, which need a grid below them.

    `batch_norm` normalises what the primary capsules squash while the network is trained, and `temperature` multiplies
    the logits of routing. The paper has neither; with them lengths of primary capsules vary, and routing decides.
    `fold_batch_norm` ends the training: the network is then the paper's but for the temperature, and computes the same.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        iterations: int = 3,
        *,
        conv_channels: int = 256,
        primary_types: int = 32,
        primary_dim: int = 8,
        capsule_dim: int = 16,
        kernel_size: int = 9,
        decoder: bool = True,
        decoder_hidden: tuple[int, ...] = (512, 1024),
        leaky: bool = False,
        batch_norm: bool = False,
        temperature: float = 1.0,
        stem: int | nn.Module | str | None = None,
        hidden_capsules: Sequence[tuple[int, ...]] = (),
    ) -> None:
        super().__init__()
        settings = {
            "in_shape": in_shape,
            "num_classes": num_classes,
            "iterations": iterations,
            "conv_channels": conv_channels,
            "primary_types": primary_types,
            "primary_dim": primary_dim,
            "capsule_dim": capsule_dim,
            "kernel_size": kernel_size,
            "decoder": decoder,
            "decoder_hidden": decoder_hidden,
            "leaky": leaky,
        }
        if batch_norm:
            settings["batch_norm"] = batch_norm
        if temperature != 1:
            settings["temperature"] = temperature
        self.config: dict[str, Any] = checked(settings)
        self.stem, described, features = build_stem(stem, in_shape, conv_channels // 4)
        self.grid = _grid(features[1:], kernel_size, in_shape[1:])
        if described or stem_depth(*in_shape[1:]):
            self.config["stem"] = described
        hidden = checked({"hidden_capsules": hidden_capsules})
        if hidden_capsules:
            self.config |= hidden
        self.conv = Conv2d(features[0], conv_channels, kernel_size, relu=True)
        # He et al. 2015: keeps the scale of activations through a ReLU; see PrimaryCapsules for why scale matters.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.primary = PrimaryCapsules(conv_channels, primary_types, primary_dim, kernel_size, batch_norm=batch_norm)
        routing: dict[str, Any] = {"iterations": iterations, "leaky": leaky, "temperature": temperature}
        self.hidden, self.voter_grid, self.voter_types, dim = hidden_layers(
            hidden_capsules, self.grid, primary_types, primary_dim, **routing
        )
        voters = math.prod(self.voter_grid) * self.voter_types
        length = ROUTED_LENGTH if hidden_capsules else 1.0
        self.classes = DenseCapsules(voters, dim, num_classes, capsule_dim, **routing, input_length=length)
        self.decoder = Decoder(num_classes, capsule_dim, in_shape, decoder_hidden) if decoder else None

    def forward(self, images: Images) -> CapsuleOutput:
        capsules = self.classes(self.voters(self.primary(self.features(images))))
        return CapsuleOutput(capsules, functional.lengths(capsules))

    def features(self, images: Images) -> Float[Tensor, "batch features rows columns"]:
        """Stem and Conv1: what the primary capsules look at. Raises `ValueError` for images that are none of its."""
        check_images(images, self.config["in_shape"])
        return self.conv(self.stem(images))

    def voters(self, primary: Float[Tensor, "batch primary primary_dim"]) -> Float[Tensor, "batch capsules dim"]:
        """The capsules that vote for the classes: the primary ones, or those of the last hidden layer.

        They are ordered by position on `voter_grid`, then by type (`voter_types`); a dense layer has one position.
        """
        capsules = primary.unflatten(1, (*self.grid, -1))
        for layer in self.hidden:
            capsules = layer(capsules.flatten(1, -2) if isinstance(layer, DenseCapsules) else capsules)
        return capsules.flatten(1, -2)

    def fold_batch_norm(self) -> None:
        """Move the normalisation into the primary capsules' convolution: the end of training."""
        self.primary.fold_batch_norm()
        self.config.pop("batch_norm", None)

    def reconstruct(
        self, capsules: Float[Tensor, "batch classes dim"], classes: Labels | None = None
    ) -> Float[Tensor, "batch *present channels height width"]:
        """Decode the capsule of one class for each image; by default the longest. Pixels are 0 to 1.

        With several classes for each image, `(B, K)`, each one's capsule is decoded alone, `(B, K, C, H, W)`.
        Raises `InputError` for a model without a decoder.
        """
        if self.decoder is None:
            raise InputError("this model was built without a decoder (decoder=False), so it cannot reconstruct")
        if classes is None:
            classes = functional.lengths(capsules).argmax(dim=1)
        if classes.ndim == 1:
            return self.decoder(capsules, classes)
        each = self.decoder(capsules.repeat_interleave(classes.shape[1], dim=0), classes.flatten())
        return each.unflatten(0, classes.shape)

    def loss(self, images: Images, labels: Labels, targets: Targets | None = None) -> Loss:
        """Margin loss, plus the scaled reconstruction loss where there is a decoder (paper, sections 3 and 4.1).

        `labels` are class numbers `(B,)`. Where several classes are on an image they are `(B, K)`, and the capsule of
        each is decoded alone, against its own target (section 6); their reconstruction losses add up. Otherwise the
        target is the image. Raises `ValueError` for other labels (`functional.class_numbers`), and if a decoder has
        several and no targets.
        """
        capsules, lengths = self(images)
        labels = functional.class_numbers(labels, lengths.shape[1], len(images))
        margin = functional.margin_loss(lengths, functional.multi_hot(labels, lengths.shape[1]))
        if self.decoder is None:
            return Loss(margin, {"margin": margin}, lengths)
        if labels.ndim > 1 and targets is None:
            raise ValueError("where several classes are on an image, the decoder needs a target for each: targets=…")
        decoded = self.reconstruct(capsules, labels)
        reconstruction = functional.reconstruction_loss(decoded, images if targets is None else targets)
        total = margin + functional.reconstruction_weight(*self.config["in_shape"]) * reconstruction
        return Loss(total, {"margin": margin, "reconstruction": reconstruction}, lengths)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """How likely each class is present: the capsules' lengths. They need not sum to one."""
        return self(images).lengths


def _grid(features: tuple[int, int], kernel_size: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of primary capsules. Raises `InputError` if there are none."""
    rows, columns = ((side - 2 * (kernel_size - 1) - 1) // 2 + 1 for side in features)
    if min(rows, columns) > 0:
        return rows, columns
    smallest = 2 * kernel_size - 1
    behind = f" behind a stem that makes them {features[0]}×{features[1]}" if features != image else ""
    larger = "" if behind else f" (--size {smallest} makes your own pictures as large)"
    raise InputError(
        f"images of {image[0]}×{image[1]} pixels leave no grid of primary capsules{behind}; with "
        f"{kernel_size}×{kernel_size} kernels the smallest size is {smallest}×{smallest}{larger}, "
        f"and in Python the largest kernel_size for these is {(min(features) + 1) // 2}"
    )
