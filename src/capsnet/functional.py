"""The paper's equations as pure functions: squash, lengths, margin loss, reconstruction loss.

Source of all: Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.

No epsilon appears in this file. A vector is divided by its largest component before it is squared, so that nothing
overflows, underflows or divides by zero; values and gradients are finite for every finite input, the zero vector
included, where both squash and length have the gradient zero.
"""

from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from capsnet import kernels
from capsnet.kernels import squash as compiled

MARGIN_PRESENT = 0.9
"""m⁺ of equation 4: a capsule whose class is present should be at least this long."""
MARGIN_ABSENT = 0.1
"""m⁻ of equation 4: a capsule whose class is absent should be at most this long."""
ABSENT_WEIGHT = 0.5
"""λ of equation 4: down-weights the absent classes, so that early training does not shrink every capsule."""
RECONSTRUCTION_WEIGHT = 0.0005
"""Weight of the summed squared pixel differences beside the margin loss; for large images `reconstruction_weight`."""
PAPER_PIXELS, MNIST_VALUES = 40 * 40, 28 * 28


def squash(s: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """Shrink vectors to a length below one, keeping their direction (equation 1).

    `v = ‖s‖² / (1 + ‖s‖²) · s / ‖s‖`, along `dim`; `squash(0) = 0` with gradient 0.
    """
    if kernels.fit_triton(s) and dim % s.dim() == s.dim() - 1 and s.is_contiguous():
        return _Squash.apply(s, dim, None)
    order = compiled.order(s, dim) if kernels.fit(s) else None
    return _squash(s, dim) if order is None else _Squash.apply(s, dim, order)


def _squash(s: Tensor, dim: int) -> Tensor:
    scaled, scale = _scaled(_widen(s), dim)
    # Not `vector_norm`, which is ten times slower where `dim` is not the last in memory.
    squared = scaled.square().sum(dim, keepdim=True)
    norm = torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
    # With s = scale · scaled: ‖s‖ / (1 + ‖s‖²) · s = norm / (1/scale² + norm²) · scaled, which can only overflow or
    # underflow to the right limit.
    return (scaled * (norm / (scale**-2 + squared))).to(s.dtype)


def lengths(v: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Length of each capsule: the probability that its entity is present. The gradient at a zero vector is 0."""
    scaled, scale = _scaled(_widen(v), -1)
    return (scale.squeeze(-1) * torch.linalg.vector_norm(scaled, dim=-1)).to(v.dtype)


def margin_loss(
    lengths: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"] | Float[Tensor, "batch classes"] | Int[Tensor, "batch classes"],
) -> Float[Tensor, ""]:
    """Margin loss (equation 4), summed over the classes and averaged over the batch.

    `L_k = T_k max(0, m⁺ − ‖v_k‖)² + λ (1 − T_k) max(0, ‖v_k‖ − m⁻)²`

    `targets` holds a class number for each image, or a multi-hot row for each image when several classes may be
    present. Raises `ValueError` for any other shape.
    """
    present = _multi_hot(targets, lengths)
    too_short = (MARGIN_PRESENT - lengths).clamp(min=0).square()
    too_long = (lengths - MARGIN_ABSENT).clamp(min=0).square()
    per_class = present * too_short + ABSENT_WEIGHT * (1 - present) * too_long
    return per_class.sum(dim=1).mean()


def multi_hot(labels: Int[Tensor, "batch *present"], num_classes: int) -> Float[Tensor, "batch classes"]:
    """A row for each image, with a one for each of its classes: `labels` is `(B,)`, or `(B, K)` for K classes."""
    rows = torch.zeros(len(labels), num_classes, device=labels.device)
    return rows.scatter(1, labels.reshape(len(labels), -1).long(), 1.0)


def reconstruction_loss(
    reconstruction: Float[Tensor, "batch *image"], images: Float[Tensor, "batch *image"]
) -> Float[Tensor, ""]:
    """Squared pixel differences, **summed** over each image and averaged over the batch (paper, section 4.1).

    Where several things on an image are reconstructed, `(B, K, C, H, W)`, they are summed too.
    """
    return (reconstruction - images).square().flatten(1).sum(dim=1).mean()


def reconstruction_weight(channels: int, height: int, width: int) -> float:
    """What `reconstruction_loss` is multiplied by beside the margin loss, for images of this size.

    The paper's 0.0005 up to 40×40 pixels, its largest images, whatever their channels. The loss is a sum over pixels
    and channels, and the margin loss is not: at 224×224×3 it is 192 times as large as MNIST's, and nothing else would
    be learnt. So a larger image counts as if it had the 784 values of one of MNIST's.
    """
    if height * width <= PAPER_PIXELS:
        return RECONSTRUCTION_WEIGHT
    return RECONSTRUCTION_WEIGHT * MNIST_VALUES / (channels * height * width)


class _Squash(torch.autograd.Function):
    """One pass over memory each way; without an order of dimensions it is Triton's."""

    @staticmethod
    def forward(ctx, s: Tensor, dim: int, order: list[int] | None) -> Tensor:
        ctx.dim, ctx.by_triton = dim, order is None
        ctx.save_for_backward(s)
        return _triton().squash(s) if order is None else compiled.squash(s, dim, order)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (s,) = grad_outputs, ctx.saved_tensors
        # Asked again: who keeps tensors elsewhere may give them back laid otherwise.
        order = None if ctx.by_triton else compiled.order(s, ctx.dim)
        fit = kernels.fit_triton(s, grad) if ctx.by_triton else kernels.fit(s, grad) and order is not None
        if torch.is_grad_enabled() or not fit:  # differentiated again, or vectorized: by plain operations
            with torch.enable_grad():
                return torch.autograd.grad(_squash(s, ctx.dim), s, grad, create_graph=True)[0], None, None
        if order is None:
            return _triton().squash_backward(s.contiguous(), grad), None, None
        return compiled.squash_backward(s, grad, ctx.dim, order), None, None


def _triton() -> ModuleType:
    from capsnet.kernels import triton_squash  # imports Triton

    return triton_squash


def _widen(x: Tensor) -> Tensor:
    """Half-precision types have too few bits for sums of squares; they are computed in float32 and rounded once."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _scaled(s: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Vectors whose largest component is ±1, and the scale that was taken out; zero vectors stay zero.

    The squares of such components are between 0 and 1. The scale is a constant to autograd: neither a norm nor a
    squashed vector depends on how it is chosen.
    """
    scale = s.detach().abs().amax(dim, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    return s / scale, scale


def _multi_hot(targets: Tensor, lengths: Tensor) -> Tensor:
    if targets.shape == lengths.shape:
        return targets.to(lengths.dtype)
    if targets.shape == lengths.shape[:1] and not targets.is_floating_point():
        return torch.nn.functional.one_hot(targets.long(), lengths.shape[1]).to(lengths.dtype)
    raise ValueError(
        f"targets must be class numbers of shape ({lengths.shape[0]},) or multi-hot rows of shape "
        f"{tuple(lengths.shape)}, not {targets.dtype} of shape {tuple(targets.shape)}"
    )
