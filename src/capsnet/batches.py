"""Batches for training: cut from a set on the device, by an order and an augmentation that seed and epoch decide."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor

from capsnet.data import ImageSet, PairSet, PosedSet, to_float
from capsnet.data.augment import KNOTS, affine, bend, crop, pose_matrices, shift
from capsnet.data.multimnist import overlay
from capsnet.evaluation import images_at_once
from capsnet.models import Images, Labels, Targets
from capsnet.models.detector import Poses
from capsnet.recipe import Recipe

EPOCH_PIECE = 10_000
"""Images that are made at a time, where those of a whole epoch are made in advance."""


class Batch(NamedTuple):
    """Pixels are 0 to 1. `targets` show each of several things on an image alone, or are its poses if known.

    They are None otherwise.
    """

    images: Images
    labels: Labels
    targets: Targets | Poses | None = None


class RawBatch(NamedTuple):
    """A batch whose pixels are still bytes, of images and of what each thing on them looks like alone."""

    images: UInt8[Tensor, "batch channels height width"]
    labels: Labels
    targets: UInt8[Tensor, "batch present channels height width"] | Poses | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "RawBatch":
        """The batch with each of its tensors changed."""
        targets = None if self.targets is None else change(self.targets)
        return RawBatch(change(self.images), change(self.labels), targets)

    def to_float(self) -> Batch:
        targets = self.targets
        if targets is not None and not targets.is_floating_point():
            targets = to_float(targets)
        return Batch(to_float(self.images), self.labels, targets)


class Part(NamedTuple):
    """What one of several processes computes of a batch: positions in the set, and how much of the batch they are.

    Where there is no image left for it, the share is 0 and the position the batch's first: it computes something all
    the same, because every process takes part in adding up gradients.
    """

    start: int
    stop: int
    share: float

    @property
    def images(self) -> int:
        """How many images this process answers for."""
        return self.stop - self.start if self.share else 0


class Batches(LightningDataModule):
    """All images as one tensor; a batch is cut from it by epoch and step.

    They lie on the device, if that has the room; else where they are, and of each batch the images are moved.

    Of several processes each cuts its own part of the batch that one process would see.

    Lightning's loaders (`Steps`) only count. So nothing about the order has to be remembered in a checkpoint, and a
    run resumed in the middle of an epoch sees the batches that it would have seen.
    """

    def __init__(self, train_set: ImageSet | PairSet, held_out: ImageSet | PairSet | None, recipe: Recipe) -> None:
        super().__init__()
        self.steps = math.ceil(len(train_set) / recipe.batch_size)  # of an epoch
        self.steps_at_once = 1  # that Lightning sees as one
        self.train_set = train_set
        self.held_out = held_out
        self.recipe = recipe
        self.planned_epoch = -1
        self.whole_epoch: RawBatch | None = None
        self.makes_whole: bool | None = None
        self.device = torch.device("cpu")
        self.rank, self.processes = 0, 1

    def share_out(self, rank: int, processes: int) -> None:
        """From here on, cut the part of process number `rank` out of each batch."""
        self.rank, self.processes = rank, processes

    def train_part(self, step: int) -> Part:
        return self._part(step, self.recipe.batch_size, len(self.train_set))

    def held_out_part(self, step: int) -> Part:
        assert self.held_out is not None
        return self._part(step, images_at_once(self.held_out.image_shape), len(self.held_out))

    def _part(self, step: int, size: int, count: int) -> Part:
        start, stop = step * size, min((step + 1) * size, count)
        first, last = (start + (stop - start) * rank // self.processes for rank in (self.rank, self.rank + 1))
        return Part(first, last, (last - first) / (stop - start)) if first < last else Part(start, start + 1, 0.0)

    def train_dataloader(self) -> "Steps":
        return Steps(math.ceil(self.steps / self.steps_at_once))

    def steps_of(self, group: int) -> range:
        """The steps that Lightning sees as one."""
        return range(group * self.steps_at_once, min((group + 1) * self.steps_at_once, self.steps))

    def val_dataloader(self) -> "Steps":
        return Steps(math.ceil(len(self.held_out) / images_at_once(self.held_out.image_shape)) if self.held_out else 0)

    def move_to(self, device: torch.device) -> None:
        self.device = device
        self.train_set = self.train_set.to(device) if _fits(self.train_set, device) else self.train_set
        if self.held_out and _fits(self.held_out, device):
            self.held_out = self.held_out.to(device)

    def train_batch(self, epoch: int, step: int) -> Batch:
        """Augmented images, in the order of this epoch; of a set of pairs, pairs that no other epoch has."""
        return self.raw_batch(epoch, step).to_float()

    def raw_batch(self, epoch: int, step: int) -> RawBatch:
        """The same as bytes. Where the whole epoch is on the device, these are views of it."""
        if epoch != self.planned_epoch:
            self._plan(epoch)
        start, stop, _ = self.train_part(step)
        if self.whole_epoch is not None:
            return self.whole_epoch.each(lambda part: part[start:stop])
        return self._made(start, stop)

    def _made(self, start: int, stop: int) -> RawBatch:
        """The images of this epoch from position `start` to `stop`."""
        if isinstance(self.epoch_set, PairSet):
            pairs = self.epoch_set.batch(start, stop)
            digits = self.augmentation(pairs.digits.flatten(0, 1), slice(2 * start, 2 * stop)).unflatten(0, (-1, 2))
            return RawBatch(overlay(digits), pairs.labels, digits)
        chosen = self.order[start:stop]
        images = self.augmentation(_moved(self.epoch_set.images_at(chosen), self.device), slice(start, stop))
        poses = None
        if isinstance(self.epoch_set, PosedSet):
            poses = _moved(self.epoch_set.poses[chosen], self.device)
            poses = self.augmentation.moved(poses, images.shape[2], slice(start, stop))
        return RawBatch(images, _moved(self.epoch_set.labels[chosen], self.device), poses)

    def held_out_batch(self, step: int) -> Batch:
        assert self.held_out is not None
        start, stop, _ = self.held_out_part(step)
        batch = self.held_out.batch(start, stop)
        return Batch(to_float(_moved(batch.images, self.device)), _moved(batch.labels, self.device))

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
            self.order = torch.randperm(count, generator=generator).to(data.device)
            self.augmentation = Augmentation(recipe, data.image_shape, count, generator, self.device)
        self.planned_epoch = epoch
        if self.makes_whole is None:  # asked once: later, the memory of the last epoch is not free
            self.makes_whole = _has_room_for_epoch(data, self.device)
        self.whole_epoch = self._make_whole() if self.makes_whole else None

    def _make_whole(self) -> RawBatch:
        """All images of an epoch, made a few thousand at a time: so a GPU is asked for much at once, and seldom."""
        count = len(self.epoch_set)
        pieces = [self._made(start, min(start + EPOCH_PIECE, count)) for start in range(0, count, EPOCH_PIECE)]
        targets = [piece.targets for piece in pieces if piece.targets is not None]
        return RawBatch(
            torch.cat([piece.images for piece in pieces]),
            torch.cat([piece.labels for piece in pieces]),
            torch.cat(targets) if targets else None,
        )


class Augmentation:
    """What happens to each image of an epoch, drawn in advance: cut out, turned, scaled, sheared, shifted, bent."""

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
        self.corners = self.poses = self.knots = None
        if self.size:
            room = torch.tensor(image_shape[1:]) - self.size + 1
            self.corners = (torch.rand(count, 2, generator=generator) * room).long().to(device)
        if recipe.rotation or recipe.scale or recipe.shear or recipe.elastic:
            turn, lean = uniform(recipe.rotation), uniform(recipe.shear)
            self.poses = pose_matrices(turn, lean, 1 + uniform(recipe.scale, 2), self.offsets.cpu().float()).to(device)
        if recipe.elastic:
            self.knots = (torch.randn(count, 2, KNOTS, KNOTS, generator=generator) * recipe.elastic).to(device)

    def __call__(
        self, images: UInt8[Tensor, "batch channels height width"], part: slice
    ) -> UInt8[Tensor, "batch channels new_height new_width"]:
        """`images` are those of the epoch at the positions of `part`."""
        if self.corners is not None:
            images = crop(images, self.corners[part], self.size)
        if self.poses is not None:
            field = None if self.knots is None else bend(self.knots[part], (images.shape[2], images.shape[3]))
            return affine(images, self.poses[part], field=field)
        return shift(images, self.offsets[part], self.reach) if self.reach else images

    def moved(self, poses: Float[Tensor, "batch 5"], height: int, part: slice) -> Float[Tensor, "batch 5"]:
        """The poses of things on images that were shifted; other changes of pose are refused where training starts."""
        return torch.cat([poses[:, :2] + self.offsets[part] / height, poses[:, 2:]], dim=1)


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


def _fits(data: ImageSet | PairSet, device: torch.device) -> bool:
    """Whether all images may lie on a device: those made there, and others if half of its free memory is enough."""
    if isinstance(data, PairSet) or device.type != "cuda":
        return True
    return 2 * data.nbytes < torch.cuda.mem_get_info(device)[0]


def _has_room_for_epoch(data: ImageSet | PairSet, device: torch.device) -> bool:
    """Whether a GPU has the images, and room for a whole epoch of augmented ones beside them."""
    if device.type != "cuda":
        return False
    lies_there = (data.digits if isinstance(data, PairSet) else data).device.type == "cuda"
    images = 3 if isinstance(data, PairSet) else 1  # and what each of a pair looks like alone
    return lies_there and 4 * images * len(data) * math.prod(data.image_shape) < torch.cuda.mem_get_info(device)[0]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory a GPU fetches a batch while Python goes on."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, such that neighbouring ones give unrelated streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
