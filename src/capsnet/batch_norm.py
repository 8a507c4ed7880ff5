"""Batch normalisation of what the primary capsules squash."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) whose outputs start with a standard deviation of `scale`.

    Before squash, with `scale` = 1/√dim, the vectors start about 1 long and the capsules about ½: where squash is
    steep, and a capsule can become longer and shorter. Without it nothing holds the scale of what is squashed, and
    capsules that are 0.99 long whatever the image shows hardly learn any more (docs/sizes.md). In training several
    processes share the statistics of the whole batch; one that has no image of it sets `counts` to False. In evaluation
    the layer is an affine map of each channel. So it is for a batch with one value of each channel: that has no
    variance.
    """

    MOMENTUM = 0.1
    EPSILON = 1e-5

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.counts = True
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        if self.training and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            return self._normalise_shared(x)
        return nn.functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training and x.numel() > x.shape[1],
            momentum=self.MOMENTUM,
            eps=self.EPSILON,
        )

    def scale_and_shift(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """What evaluation multiplies each channel by, and what it adds then."""
        scale = self.weight * (self.running_var + self.EPSILON).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def _normalise_shared(self, x: Tensor) -> Tensor:
        """By the mean and variance over the images of all processes."""
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        sums = torch.cat([x.float().sum((0, 2, 3)), x.float().square().sum((0, 2, 3)), count]) * float(self.counts)
        sums, squares, count = _SumOverProcesses.apply(sums).split([x.shape[1], x.shape[1], 1])
        varies = count > 1
        mean = torch.where(varies, sums / count, self.running_mean)
        variance = torch.where(varies, (squares / count - mean.square()).clamp_min(0), self.running_var)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.MOMENTUM)
            unbiased = torch.where(varies, variance * count / (count - 1), variance)
            self.running_var.lerp_(unbiased, self.MOMENTUM)
        scale = self.weight * (variance + self.EPSILON).rsqrt()
        shift = self.bias - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class _SumOverProcesses(torch.autograd.Function):
    """PyTorch's own is deprecated, and says so to each user."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, *grad_outputs)
