"""`CapsNetClassifier`: CapsNet for who works with scikit-learn (extra `sklearn`)."""

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_array, check_random_state, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import probabilities
from capsnet.models import CapsNet, sizes
from capsnet.recipe import Recipe

SMALLEST = 3
"""Pixels a side of the smallest image that leaves a grid of primary capsules under kernels of 2×2."""
CHANNELS = 4
"""At most; what is longer is a side."""
SMALL_BATCH = 8
STEPS = 40
"""Small sets are cut into smaller batches, such that an epoch has about so many steps; but not into smaller ones."""


class CapsNetClassifier(ClassifierMixin, BaseEstimator):
    """A capsule network as a scikit-learn classifier: for `Pipeline`, `cross_val_score`, `GridSearchCV`.

    Images come as `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)` with up to four channels, or flat, `(N, H · W)` with
    H = W; another number of features is laid out on the next larger square, with a warning. Pixels are uint8, 0 to
    255, or any other numbers: then the lowest and highest of the training images become 0 and 255 (`pixel_range_`),
    and what lies outside later is cut off. Labels are of any kind.

    Args:
        iterations: routing iterations, 1 to 3; more tends to overfit.
        width: how wide the network is beside the paper's.
        kernel_size: of both convolutions. By default a third of the smaller side, from 2 to the paper's 9: 9 from
            27 pixels on, 2 at 8×8.
        decoder: reconstruct the image from the capsule, as a regulariser.
        leaky: leaky routing.
        epochs, batch_size, learning_rate: where None, those of `recipe`, with smaller batches for small sets; the
            rate at the end changes with the rate.
        recipe: a `capsnet.Recipe` with all else that decides how to train. By default `Recipe()`, which shifts images
            by up to a 14th of their side. Its seed gives way to `random_state`.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: seed or `RandomState`, as everywhere in scikit-learn; None for another network each time.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: numbers in an image.
        image_shape_: (channels, height, width) as the network sees it.
        pixel_range_: what became black and white.
        model_: the `CapsNet`, trained; what `capsnet.save` takes.
        history_: a dictionary for each epoch, as in `metrics.csv`.
    """

    def __init__(
        self,
        iterations: int = 3,
        *,
        width: float = 1.0,
        kernel_size: int | None = None,
        decoder: bool = True,
        leaky: bool = False,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        recipe: Recipe | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.iterations = iterations
        self.width = width
        self.kernel_size = kernel_size
        self.decoder = decoder
        self.leaky = leaky
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.recipe = recipe
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "CapsNetClassifier":  # noqa: N803
        """Train a new network, in silence. Raises `ValueError` for images or labels that cannot be used."""
        from capsnet.training import fit  # Lightning, which takes seconds

        pixels, y = self._checked_both(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.image_shape_ = _image_shape(pixels.shape[1:])
        self.pixel_range_ = (0.0, 255.0) if pixels.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
        names = tuple(map(str, self.classes_))
        train_set = ImageSet(self._images(pixels), torch.from_numpy(labels.astype(np.int64)), names)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        recipe = self._recipe(len(train_set), seed)
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # PyTorch's random numbers are the user's
            torch.manual_seed(seed)
            self.model_ = self._build()
            self.history_ = fit(self.model_, train_set, recipe, device=self.device, progress=False)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """`(N, classes)`: the lengths of the capsules, divided by their sum so that each row adds up to one."""
        check_is_fitted(self)
        lengths = probabilities(self.model_, self._images(self._checked(X)), self.device).double()
        self.model_.cpu()
        tiny = torch.finfo(lengths.dtype).tiny  # capsules of no length at all are equally likely
        return ((lengths + tiny) / (lengths + tiny).sum(dim=1, keepdim=True)).numpy()

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """`(N,)`: the label whose capsule is the longest."""
        longest = self.predict_proba(X).argmax(axis=1)
        return self.classes_[longest]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _checked_both(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        if _ndim(X) <= 2:
            both: Any = validate_data(self, X, y)
            return both
        pixels, y = check_X_y(X, y, allow_nd=True)
        self.n_features_in_ = math.prod(pixels.shape[1:])
        return pixels, y

    def _checked(self, X: Any) -> np.ndarray:  # noqa: N803
        if _ndim(X) <= 2:
            if self.image_shape_[0] > 1:  # as they lie, colours might be first or last
                raise InputError(f"this was trained on images of {self.image_shape_}, not on rows of numbers")
            checked: Any = validate_data(self, X, reset=False)
            return checked
        pixels = check_array(X, allow_nd=True)
        if math.prod(pixels.shape[1:]) != self.n_features_in_ or _image_shape(pixels.shape[1:]) != self.image_shape_:
            raise InputError(f"this was trained on images of {self.image_shape_}, not of shape {pixels.shape[1:]}")
        return pixels

    def _images(self, pixels: np.ndarray) -> UInt8[Tensor, "count channels height width"]:
        """As the network sees them."""
        low, high = self.pixel_range_
        if pixels.dtype != np.uint8 or (low, high) != (0, 255):
            pixels = pixels.astype(float) if pixels.dtype == np.uint8 else pixels
            scale = 255 / (high - low) if high > low else 0.0
            pixels = ((pixels - low) * scale).round().clip(0, 255).astype(np.uint8)
        channels, height, width = self.image_shape_
        if pixels.ndim == 2:
            missing = channels * height * width - pixels.shape[1]
            pixels = np.pad(pixels, ((0, 0), (0, missing)))
        elif pixels.ndim == 4 and _channels_last(pixels.shape[1:]):
            pixels = np.moveaxis(pixels, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)).reshape(-1, channels, height, width)

    def _build(self) -> CapsNet:
        chosen = max(2, min(9, min(self.image_shape_[1:]) // 3))
        return CapsNet(
            self.image_shape_,
            len(self.classes_),
            self.iterations,
            kernel_size=self.kernel_size or chosen,
            decoder=self.decoder,
            leaky=self.leaky,
            **sizes("capsnet", self.width),
        )

    def _recipe(self, count: int, seed: int) -> Recipe:
        recipe = self.recipe or Recipe(max_shift=min(self.image_shape_[1:]) // 14)
        if recipe.crop:
            raise InputError("CapsNetClassifier trains on whole images; give it a recipe without crop")
        changes: dict[str, Any] = {"seed": seed, "batch_size": self.batch_size}
        if self.batch_size is None:
            changes["batch_size"] = min(recipe.batch_size, max(SMALL_BATCH, math.ceil(count / STEPS)))
        if self.epochs is not None:
            changes["epochs"] = self.epochs
        if self.learning_rate is not None:
            changes["learning_rate"] = self.learning_rate
            changes["final_learning_rate"] = self.learning_rate * recipe.final_learning_rate / recipe.learning_rate
        return replace(recipe, **changes)


def _ndim(X: Any) -> int:  # noqa: N803
    """Tables and sparse matrices say it; lists do not."""
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of images that are given as arrays of this shape, or flat."""
    if len(shape) == 1:
        side = max(SMALLEST, math.isqrt(shape[0] - 1) + 1)
        if side**2 != shape[0]:
            warnings.warn(
                f"{shape[0]} features are no square image; they are laid out on one of {side}×{side}, the rest black. "
                "Give images with colours, or of other forms, as (N, H, W) or (N, H, W, C)",
                stacklevel=4,
            )
        return 1, side, side
    if len(shape) == 2:
        return 1, *shape
    if len(shape) == 3 and min(shape[0], shape[2]) <= CHANNELS:
        return (shape[2], *shape[:2]) if _channels_last(shape) else shape
    raise InputError(
        "images are arrays of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with up to four channels, or flat, "
        f"not {('N', *shape)}"
    )


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[2] <= CHANNELS
