"""Several models that answer as one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from capsnet.errors import InputError
from capsnet.models.base import Images
from capsnet.models.baseline import BaselineCNN
from capsnet.models.capsnet import CapsNet
from capsnet.models.pooling import PoolingCNN


class Ensemble(nn.Module):
    """The mean answer of models for the same images and classes (section 7: seven for CIFAR-10). For testing only."""

    def __init__(self, members: Sequence[CapsNet | BaselineCNN | PoolingCNN]) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble has at least one member")
        self.members = nn.ModuleList(members)
        self.answers = [member.probabilities for member in members]
        self.config = members[0].config

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        return torch.stack([answer(images) for answer in self.answers]).mean(dim=0)
