"""Capsule networks that people can use: CapsNet with dynamic routing, exact and reproducible."""

from typing import TYPE_CHECKING, Any

from capsnet import functional, layers
from capsnet.allocator import tune_allocator
from capsnet.data import ImageSet, PairSet, open_dataset
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.models import BaselineCNN, CapsNet, CapsuleOutput, PoolingCNN
from capsnet.recipe import Recipe
from capsnet.runs import load, save

if TYPE_CHECKING:
    from capsnet.training import fit

__all__ = [
    "BaselineCNN",
    "CapsNet",
    "CapsuleOutput",
    "ImageSet",
    "InputError",
    "PairSet",
    "PoolingCNN",
    "Recipe",
    "evaluate",
    "fit",
    "functional",
    "layers",
    "load",
    "open_dataset",
    "save",
    "tune_allocator",
]


def __getattr__(name: str) -> Any:
    # Training needs Lightning, which takes seconds to import; who only uses a model need not wait for it.
    if name == "fit":
        from capsnet.training import fit

        return fit
    raise AttributeError(f"module 'capsnet' has no attribute {name!r}")
