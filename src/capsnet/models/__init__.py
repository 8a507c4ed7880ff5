"""The networks, one architecture a file. A model knows its config, its loss and its answer; it can be rebuilt."""

from typing import Any

from capsnet.errors import InputError, gist
from capsnet.models.base import Images, Labels, Loss, Targets, scaled
from capsnet.models.baseline import BaselineCNN
from capsnet.models.capsnet import CapsNet, CapsuleOutput
from capsnet.models.detector import CapsuleDetector, CNNDetector, Detection, Detector
from capsnet.models.ensemble import Ensemble
from capsnet.models.pooling import PoolingCNN
from capsnet.models.small_cnn import SmallCNN

Model = CapsNet | BaselineCNN | PoolingCNN | SmallCNN
MODELS: dict[str, type[Model]] = {
    **{"capsnet": CapsNet, "cnn": BaselineCNN, "pooling-cnn": PoolingCNN},
    **{"small-cnn": SmallCNN, "detector": CapsuleDetector, "cnn-detector": CNNDetector},
}
"""The names by which the command line and a run's config know the models."""

PAPER_SIZES: dict[str, dict[str, Any]] = {
    "mnist": {"in_shape": (1, 28, 28), "num_classes": 10},
    "multimnist": {"in_shape": (1, 36, 36), "num_classes": 10},
    "affnist": {"in_shape": (1, 40, 40), "num_classes": 10},
    "cifar10": {"in_shape": (3, 24, 24), "num_classes": 10, "primary_types": 64, "leaky": True},
    "smallnorb": {"in_shape": (2, 32, 32), "num_classes": 5},
    "svhn": {
        **{"in_shape": (3, 32, 32), "num_classes": 10, "conv_channels": 64},
        **{"primary_types": 16, "primary_dim": 6, "capsule_dim": 8},
    },
}
"""The sizes of the paper's CapsNet for each of its data sets (sections 4 to 7): `CapsNet(**PAPER_SIZES["svhn"])`."""


def sizes(name: str, width: float) -> dict[str, Any]:
    """Arguments for the model of this name that make all its layers `width` times as wide as the paper's.

    Capsules keep their dimensions: of CapsNet, there are fewer channels, capsule types and hidden units.
    """
    if name in ("small-cnn", "cnn-detector"):
        return {"channels": tuple(scaled(size, width) for size in (32, 64, 128)), "dense": scaled(256, width)}
    if name not in ("capsnet", "detector"):
        return {"width": width}
    sizes = {"conv_channels": scaled(256, width), "primary_types": scaled(32, width)}
    return {**sizes, "decoder_hidden": (scaled(512, width), scaled(1024, width))}


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
        return MODELS[name](**{key: _tuples(value) for key, value in config.items()})
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(f"the config does not fit model {name!r}: {gist(error)}") from None


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


__all__ = [
    "MODELS",
    "PAPER_SIZES",
    "BaselineCNN",
    "CNNDetector",
    "CapsNet",
    "CapsuleDetector",
    "CapsuleOutput",
    "Detection",
    "Detector",
    "Ensemble",
    "Images",
    "Labels",
    "Loss",
    "Model",
    "PoolingCNN",
    "SmallCNN",
    "Targets",
    "build_model",
    "model_name",
    "sizes",
]
