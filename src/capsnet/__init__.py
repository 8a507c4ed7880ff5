"""Capsule networks that people can use: CapsNet with dynamic routing, exact and reproducible."""

import importlib.util
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsnet import functional, layers
    from capsnet.allocator import tune_allocator
    from capsnet.data import ImageSet, PairSet, open_dataset
    from capsnet.errors import InputError
    from capsnet.estimator import CapsNetClassifier as CapsNetClassifier
    from capsnet.evaluation import evaluate
    from capsnet.models import BaselineCNN, CapsNet, CapsuleOutput, PoolingCNN
    from capsnet.recipe import Recipe
    from capsnet.runs import load, save
    from capsnet.training import fit

    __version__: str

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

# Nothing is imported before it is used: PyTorch takes seconds, and Lightning, which only training needs, some more.
# So the command can be interrupted from its first moment on, and `--version` answers at once.
_HOMES = {
    **dict.fromkeys(("BaselineCNN", "CapsNet", "CapsuleOutput", "PoolingCNN"), "models"),
    **dict.fromkeys(("ImageSet", "PairSet", "open_dataset"), "data"),
    **{"InputError": "errors", "Recipe": "recipe", "evaluate": "evaluation", "fit": "training"},
    **{"load": "runs", "save": "runs", "tune_allocator": "allocator"},
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "layers"):
        return import_module(f"capsnet.{name}")
    if name in _HOMES:
        return getattr(import_module(f"capsnet.{_HOMES[name]}"), name)
    if name == "CapsNetClassifier":  # not in __all__: a star import must not fail where scikit-learn is missing
        if importlib.util.find_spec("sklearn") is None:
            from capsnet.errors import InputError

            raise InputError("CapsNetClassifier needs scikit-learn; install it with: pip install 'capsnet[sklearn]'")
        return import_module("capsnet.estimator").CapsNetClassifier
    if name == "__version__":
        from importlib.metadata import version

        return version("capsnet")
    raise AttributeError(f"module 'capsnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
