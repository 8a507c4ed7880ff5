"""CapsNet as a careful textbook would write it in PyTorch: the other side of the benchmark, and nothing else.

Votes by one einsum, batched routing by einsum with gradients through every iteration.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def squash(s: Tensor) -> Tensor:
    squared = s.square().sum(-1, keepdim=True)
    return squared / (1 + squared) * s / (squared + 1e-9).sqrt()


def route(u: Tensor, weight: Tensor) -> Tensor:
    votes = torch.einsum("bid,jide->bjie", u, weight)
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(2):
        v = squash(torch.einsum("bji,bjie->bje", logits.softmax(dim=1), votes))
        logits = logits + torch.einsum("bjie,bje->bji", votes, v)
    return squash(torch.einsum("bji,bjie->bje", logits.softmax(dim=1), votes))


class TextbookCapsNet(nn.Module):
    """The paper's network for ten classes and square grey images, with three routing iterations."""

    def __init__(self, pixels: int = 28) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 256, 9)
        self.primary = nn.Conv2d(256, 256, 9, stride=2)
        capsules = 32 * ((pixels - 16 - 1) // 2 + 1) ** 2
        self.weight = nn.Parameter(torch.randn(10, capsules, 8, 16) * 0.01)
        layers = (nn.Linear(160, 512), nn.ReLU(), nn.Linear(512, 1024), nn.ReLU())
        self.decoder = nn.Sequential(*layers, nn.Linear(1024, pixels**2), nn.Sigmoid())

    def to_channels_last(self) -> None:
        """As convolutions want it. The routing weight has four dimensions too, but no channels."""
        for conv in (self.conv, self.primary):
            # `contiguous` would leave Conv1's weight, of one channel, as it is, and with it what Conv1 writes.
            conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 10 16"]:
        features = torch.relu(self.conv(images))
        primary = squash(self.primary(features).permute(0, 2, 3, 1).reshape(len(images), -1, 8))
        return route(primary, self.weight)

    def loss(self, images: Float[Tensor, "batch 1 height width"], labels: Int[Tensor, " batch"]) -> Tensor:
        capsules = self(images)
        lengths = capsules.norm(dim=-1)
        present = nn.functional.one_hot(labels, 10).to(lengths.dtype)
        margin = present * (0.9 - lengths).clamp(min=0) ** 2 + 0.5 * (1 - present) * (lengths - 0.1).clamp(min=0) ** 2
        decoded = self.decoder((capsules * present[..., None]).flatten(1))
        return margin.sum(1).mean() + 0.0005 * (decoded - images.flatten(1)).square().sum(1).mean()
