"""CapsNet and the CNN that it is compared with. A model knows its own config and can be rebuilt from it."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capsnet import functional
from capsnet.convolution import Conv2d
from capsnet.errors import InputError
from capsnet.layers import Decoder, DenseCapsules, PrimaryCapsules

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
MAX_ITERATIONS = 100


class CapsuleOutput(NamedTuple):
    capsules: Float[Tensor, "batch classes dim"]
    lengths: Float[Tensor, "batch classes"]


class Loss(NamedTuple):
    """What training minimises, the parts worth logging by name, and the scores that came out on the way."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    scores: Float[Tensor, "batch classes"]


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
        channels, height, width = _checked(in_shape, num_classes)
        _check_sizes(conv_channels, primary_types, primary_dim, capsule_dim, kernel_size, *decoder_hidden)
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
        self.conv = Conv2d(channels, conv_channels, kernel_size)
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
        return torch.relu(self.conv(images))

    def reconstruct(self, capsules: Float[Tensor, "batch classes dim"], classes: Labels | None = None) -> Images:
        """Decode the capsule of one class for each image; by default the longest. Pixels are 0 to 1.

        Raises `InputError` for a model without a decoder.
        """
        if self.decoder is None:
            raise InputError("this model was built without a decoder (decoder=False), so it cannot reconstruct")
        if classes is None:
            classes = functional.lengths(capsules).argmax(dim=1)
        return self.decoder(capsules, classes)

    def loss(self, images: Images, labels: Labels) -> Loss:
        """Margin loss, plus the scaled reconstruction loss where there is a decoder (paper, sections 3 and 4.1)."""
        capsules, lengths = self(images)
        margin = functional.margin_loss(lengths, labels)
        if self.decoder is None:
            return Loss(margin, {"margin": margin}, lengths)
        reconstruction = functional.reconstruction_loss(self.reconstruct(capsules, labels), images)
        total = margin + functional.RECONSTRUCTION_WEIGHT * reconstruction
        return Loss(total, {"margin": margin, "reconstruction": reconstruction}, lengths)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """How likely each class is present: the capsules' lengths. They need not sum to one."""
        return self(images).lengths


class BaselineCNN(nn.Module):
    """The paper's CNN for MNIST (section 5): three 5×5 convolutions, two dense layers, dropout, softmax.

    35,445,522 parameters at 28×28×1 and ten classes. `forward` gives logits.
    """

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = _checked(in_shape, num_classes)
        self.config: dict[str, Any] = {"in_shape": tuple(in_shape), "num_classes": num_classes}
        self.features = nn.Sequential(
            Conv2d(channels, 256, 5, padding=2),
            nn.ReLU(),
            Conv2d(256, 256, 5, padding=2),
            nn.ReLU(),
            Conv2d(256, 128, 5, padding=2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * height * width, 328),
            nn.ReLU(),
            nn.Linear(328, 192),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(192, num_classes),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # As for CapsNet's first layer: PyTorch's default shrinks the signal at each of the six layers.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(images))

    def loss(self, images: Images, labels: Labels) -> Loss:
        """Cross-entropy."""
        logits = self(images)
        return Loss(nn.functional.cross_entropy(logits, labels), {}, logits)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Softmax of the logits."""
        return self(images).softmax(dim=1)


def _checked(in_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int, int]:
    if len(in_shape) != 3:
        raise InputError(f"in_shape is (channels, height, width), not {in_shape}")
    _check_sizes(num_classes, *in_shape)
    return in_shape


def _check_sizes(*sizes: int) -> None:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"sizes of a model are whole numbers from 1, not {size!r}")


Model = CapsNet | BaselineCNN
MODELS: dict[str, type[Model]] = {"capsnet": CapsNet, "cnn": BaselineCNN}
"""The names by which the command line and a run's config know the models."""


def model_name(model: Model) -> str:
    """The name under which `MODELS` lists the class of this model."""
    for name, kind in MODELS.items():
        if type(model) is kind:
            return name
    raise InputError(f"cannot save or train a {type(model).__name__}; a run folder holds: {', '.join(MODELS)}")


def build_model(name: str, config: dict[str, Any]) -> Model:
    """A fresh model from its name and config, as `model.config` or a JSON file holds it.

    Raises `InputError` if either does not fit.
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; there are: {', '.join(MODELS)}")
    try:
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return MODELS[name](**arguments)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise InputError(f"the config does not fit model {name!r}: {str(error).splitlines()[0]}") from None
