"""CapsNet, the capsule network of the paper."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from capsnet import functional
from capsnet.convolution import Conv2d
from capsnet.errors import InputError
from capsnet.layers import Decoder, DenseCapsules, PrimaryCapsules
from capsnet.models.base import Images, Labels, Loss, Targets, check_sizes, checked_shape

MAX_ITERATIONS = 100


class CapsuleOutput(NamedTuple):
    capsules: Float[Tensor, "batch classes dim"]
    lengths: Float[Tensor, "batch classes"]


class CapsNet(nn.Module):
    """The capsule network of the paper's figure 1, for any image that leaves a grid of primary capsules.

    `in_shape` is (channels, height, width); pixels are 0 to 1. With the defaults and 28×28×1 the sizes are the
    paper's: 8,215,568 parameters, 6,804,224 without the decoder.
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
    ) -> None:
        super().__init__()
        channels, height, width = checked_shape(in_shape, num_classes)
        check_sizes(conv_channels, primary_types, primary_dim, capsule_dim, kernel_size, *decoder_hidden)
        if not 1 <= iterations <= MAX_ITERATIONS:
            raise InputError(f"routing iterations must be 1 to {MAX_ITERATIONS}, not {iterations}")
        grid = [(side - 2 * (kernel_size - 1) - 1) // 2 + 1 for side in (height, width)]
        if min(grid) < 1:
            smallest = 2 * kernel_size - 1
            raise InputError(
                f"images of {height}×{width} pixels leave no grid of primary capsules; "
                f"with {kernel_size}×{kernel_size} kernels the smallest size is {smallest}×{smallest}"
            )
        self.config: dict[str, Any] = {
            "in_shape": tuple(in_shape),
            "num_classes": num_classes,
            "iterations": iterations,
            "conv_channels": conv_channels,
            "primary_types": primary_types,
            "primary_dim": primary_dim,
            "capsule_dim": capsule_dim,
            "kernel_size": kernel_size,
            "decoder": decoder,
            "decoder_hidden": tuple(decoder_hidden),
            "leaky": leaky,
        }
        self.conv = Conv2d(channels, conv_channels, kernel_size, relu=True)
        # He et al. 2015: keeps the scale of activations through a ReLU; see PrimaryCapsules for why scale matters.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.primary = PrimaryCapsules(conv_channels, primary_types, primary_dim, kernel_size)
        self.classes = DenseCapsules(
            primary_types * grid[0] * grid[1], primary_dim, num_classes, capsule_dim, iterations, leaky=leaky
        )
        self.decoder = Decoder(num_classes, capsule_dim, in_shape, decoder_hidden) if decoder else None

    def forward(self, images: Images) -> CapsuleOutput:
        capsules = self.classes(self.primary(self.features(images)))
        return CapsuleOutput(capsules, functional.lengths(capsules))

    def features(self, images: Images) -> Float[Tensor, "batch features rows columns"]:
        """Conv1: what the primary capsules look at."""
        return self.conv(images)

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

        Where several classes are on an image, `labels` is `(B, K)` and the capsule of each is decoded alone, against
        its own target (section 6); their reconstruction losses add up. Otherwise the target is the image.
        Raises `ValueError` if a decoder has several labels and no targets.
        """
        capsules, lengths = self(images)
        margin = functional.margin_loss(lengths, functional.multi_hot(labels, lengths.shape[1]))
        if self.decoder is None:
            return Loss(margin, {"margin": margin}, lengths)
        if labels.ndim > 1 and targets is None:
            raise ValueError("where several classes are on an image, the decoder needs a target for each: targets=…")
        decoded = self.reconstruct(capsules, labels)
        reconstruction = functional.reconstruction_loss(decoded, images if targets is None else targets)
        total = margin + functional.RECONSTRUCTION_WEIGHT * reconstruction
        return Loss(total, {"margin": margin, "reconstruction": reconstruction}, lengths)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """How likely each class is present: the capsules' lengths. They need not sum to one."""
        return self(images).lengths
