"""The paper's equations as pure functions: squash, lengths, margin loss, reconstruction loss.

Source of all: Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.

No epsilon appears in this file. A vector is divided by its largest component before it is squared, so that nothing
overflows, underflows or divides by zero; values and gradients are finite for every finite input, the zero vector
included, where both squash and length have the gradient zero.
"""

from types import ModuleType

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from capsnet import kernels
from capsnet.errors import InputError
from capsnet.kernels import squash as compiled
from capsnet.tracing import is_traced

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
    present: zeros and ones. Raises `ValueError` for anything else.
    """
    present = _multi_hot(targets, lengths)
    too_short = (MARGIN_PRESENT - lengths).clamp(min=0).square()
    too_long = (lengths - MARGIN_ABSENT).clamp(min=0).square()
    per_class = present * too_short + ABSENT_WEIGHT * (1 - present) * too_long
    return per_class.sum(dim=1).mean()


def multi_hot(labels: Int[Tensor, "batch *present"], num_classes: int) -> Float[Tensor, "batch classes"]:
    """A row for each image, with a one for each of its classes: `labels` as `class_numbers` takes them."""
    labels = class_numbers(labels, num_classes)
    rows = torch.zeros(len(labels), num_classes, device=labels.device)
    return rows.scatter(1, labels.reshape(len(labels), -1), 1.0)


def class_numbers(
    labels: Int[Tensor, "batch *present"], num_classes: int, count: int | None = None
) -> Int64[Tensor, "batch *present"]:
    """Labels as all models take them, checked: class numbers from 0, of any integer type.

    `(B,)`, one for each image, also as a column `(B, 1)`, which becomes `(B,)`; or `(B, K)` where K different things
    are on each image, fewer than there are classes. So one-hot rows are refused by their shape: as class numbers they
    would be wrong. `count` is the number of images. Raises `InputError`, a `ValueError`, for anything else. Whether a
    number is a class is only looked at on the CPU, because on a GPU every look waits for it.
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels are class numbers, a tensor of whole numbers from 0 to {num_classes - 1}, not {kind}")
    shape = tuple(labels.shape)
    if len(shape) == 2 and shape[1] == num_classes > 1:
        raise InputError(
            f"labels of shape {shape} look like one-hot rows of {num_classes} classes; give class numbers: "
            "labels.argmax(1)"
        )
    if len(shape) not in (1, 2) or (len(shape) == 2 and not 0 < shape[1] <= max(1, num_classes - 1)):
        raise InputError(
            f"labels are class numbers of shape (B,), or (B, K) for K things on each image, with K below the number of "
            f"classes, {num_classes}; not of shape {shape}"
        )
    if count is not None and shape[0] != count:
        raise InputError(f"there are {shape[0]} labels for {count} images")
    if len(shape) == 2 and shape[1] == 1:
        labels = labels[:, 0]
    labels = labels.long()
    if labels.device.type == "cpu" and labels.numel() and not is_traced():
        _check_classes(labels, num_classes)
    return labels


def _check_classes(labels: Int64[Tensor, "batch *present"], num_classes: int) -> None:
    low, high = map(int, labels.aminmax())
    if low < 0 or high >= num_classes:
        raise InputError(f"labels must be 0 to {num_classes - 1}, but they reach from {low} to {high}")
    if labels.ndim == 2 and bool((labels.sort(1).values.diff(dim=1) == 0).any()):
        raise InputError("the classes of the things on an image must be different")


def reconstruction_loss(
    reconstruction: Float[Tensor, "batch *image"], images: Float[Tensor, "batch *image"]
) -> Float[Tensor, ""]:
    """Squared pixel differences, **summed** over each image and averaged over the batch (paper, section 4.1).

    Where several things on an image are reconstructed, `(B, K, C, H, W)`, they are summed too.
    """
    if reconstruction.shape != images.shape:  # they would be broadcast
        raise ValueError(f"a reconstruction of shape {tuple(reconstruction.shape)} is none of {tuple(images.shape)}")
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
        if targets.device.type == "cpu" and targets.numel() and not is_traced():
            low, high = targets.aminmax()
            if not 0 <= float(low) <= float(high) <= 1:
                raise InputError(f"multi-hot rows are of zeros and ones, but these reach from {low} to {high}")
        return targets.to(lengths.dtype)
    if targets.shape in (lengths.shape[:1], (len(lengths), 1)) and not targets.is_floating_point():
        return multi_hot(targets, lengths.shape[1]).to(lengths.dtype)
    raise InputError(
        f"targets must be class numbers of shape ({lengths.shape[0]},) or multi-hot rows of shape "
        f"{tuple(lengths.shape)}, not {targets.dtype} of shape {tuple(targets.shape)}"
    )
