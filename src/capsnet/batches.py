"""Batches for training: cut from a set on the device, by an order and an augmentation that seed and epoch decide."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor

from capsnet.data import ImageSet, PairSet, to_float
from capsnet.data.augment import affine, crop, pose_matrices, shift
from capsnet.data.multimnist import overlay
from capsnet.models import Images, Labels, Targets
from capsnet.recipe import Recipe

EVALUATION_BATCH = 500


class Batch(NamedTuple):
    """Pixels are 0 to 1; `targets` show each of several things on an image alone, and are None for a single one."""

    images: Images
    labels: Labels
    targets: Targets | None = None


class Batches(LightningDataModule):
    """All images as one tensor on the device; a batch is cut from it by epoch and step.

    Lightning's loaders (`Steps`) only count. So nothing about the order has to be remembered in a checkpoint, and a
    run resumed in the middle of an epoch sees the batches that it would have seen.
    """

    def __init__(self, train_set: ImageSet | PairSet, held_out: ImageSet | PairSet | None, recipe: Recipe) -> None:
        super().__init__()
        self.train_set = train_set
        self.held_out = held_out
        self.recipe = recipe
        self.planned_epoch = -1

    def train_dataloader(self) -> "Steps":
        return Steps(math.ceil(len(self.train_set) / self.recipe.batch_size))

    def val_dataloader(self) -> "Steps":
        return Steps(math.ceil(len(self.held_out) / EVALUATION_BATCH) if self.held_out else 0)

    def move_to(self, device: torch.device) -> None:
        self.train_set = self.train_set.to(device)
        self.held_out = self.held_out.to(device) if self.held_out else None

    def train_batch(self, epoch: int, step: int) -> Batch:
        """Augmented images, in the order of this epoch; of a set of pairs, pairs that no other epoch has."""
        if epoch != self.planned_epoch:
            self._plan(epoch)
        start = step * self.recipe.batch_size
        stop = min(start + self.recipe.batch_size, len(self.train_set))
        if isinstance(self.epoch_set, PairSet):
            pairs = self.epoch_set.batch(start, stop)
            digits = self.augmentation(pairs.digits.flatten(0, 1), slice(2 * start, 2 * stop)).unflatten(0, (-1, 2))
            return Batch(to_float(overlay(digits)), pairs.labels, to_float(digits))
        chosen = self.order[start:stop]
        images = self.augmentation(self.epoch_set.images[chosen], slice(start, stop))
        return Batch(to_float(images), self.epoch_set.labels[chosen])

    def held_out_batch(self, step: int) -> Batch:
        assert self.held_out is not None
        batch = self.held_out.batch(step * EVALUATION_BATCH, (step + 1) * EVALUATION_BATCH)
        return Batch(to_float(batch.images), batch.labels)

    def _plan(self, epoch: int) -> None:
        """All that is random in an epoch, drawn on the CPU so that every device sees the same, and moved once."""
        generator = torch.Generator().manual_seed(mix_seed(self.recipe.seed, epoch))
        data, recipe, count = self.train_set, self.recipe, len(self.train_set)
        if isinstance(data, PairSet):
            self.epoch_set = data.reseeded(mix_seed(data.seed, recipe.seed, epoch))
            recipe = replace(recipe, max_shift=0)  # the set has shifted its digits already
            self.augmentation = Augmentation(recipe, data.image_shape, 2 * count, generator, data.digits.images.device)
        else:
            self.epoch_set = data
            self.order = torch.randperm(count, generator=generator).to(data.images.device)
            self.augmentation = Augmentation(recipe, data.image_shape, count, generator, data.images.device)
        self.planned_epoch = epoch


class Augmentation:
    """What happens to each image of an epoch, drawn in advance: cut out, then turned, scaled, sheared and shifted."""

    def __init__(
        self,
        recipe: Recipe,
        image_shape: tuple[int, int, int],
        count: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        def uniform(reach: float, *shape: int) -> Tensor:
            return (2 * torch.rand(count, *shape, generator=generator) - 1) * reach

        self.reach, self.size = recipe.max_shift, recipe.crop
        self.offsets = torch.randint(-self.reach, self.reach + 1, (count, 2), generator=generator).to(device)
        self.corners = self.poses = None
        if self.size:
            room = torch.tensor(image_shape[1:]) - self.size + 1
            self.corners = (torch.rand(count, 2, generator=generator) * room).long().to(device)
        if recipe.rotation or recipe.scale or recipe.shear:
            turn, lean = uniform(recipe.rotation), uniform(recipe.shear)
            self.poses = pose_matrices(turn, lean, 1 + uniform(recipe.scale, 2), self.offsets.cpu().float()).to(device)

    def __call__(
        self, images: UInt8[Tensor, "batch channels height width"], part: slice
    ) -> UInt8[Tensor, "batch channels new_height new_width"]:
        """`images` are those of the epoch at the positions of `part`."""
        if self.corners is not None:
            images = crop(images, self.corners[part], self.size)
        if self.poses is not None:
            return affine(images, self.poses[part])
        return shift(images, self.offsets[part], self.reach) if self.reach else images


class Steps:
    """What Lightning takes for a data loader: the numbers of an epoch's steps. Resumable, as it has no state."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, such that neighbouring ones give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
