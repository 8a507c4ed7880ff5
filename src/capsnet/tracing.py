"""Whether somebody looks over our shoulder."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_traced() -> bool:
    """Whether a compiler, an exporter or a transform (`torch.func`) is looking: it wants plain operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    # PyTorch has no public question for these; unasked, transforms meet `autograd.Function` and say what they miss.
    if getattr(forward_ad, "_current_level", -1) >= 0:  # forward mode
        return True
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: False)()


def is_compiled() -> bool:
    """Whether `torch.compile` is looking, which can be given operations of ours; an exporter wants PyTorch's."""
    return torch.compiler.is_dynamo_compiling() and not getattr(torch.compiler, "is_exporting", lambda: False)()


def is_batched(x: Tensor) -> bool:
    """Whether it stands for several tensors: in ``torch.autograd.grad(..., is_grads_batched=True)``."""
    asked = getattr(torch._C, "_functorch", None)
    return getattr(asked, "is_legacy_batchedtensor", lambda _: False)(x)
