"""Whether somebody looks over our shoulder."""

import torch


def is_traced() -> bool:
    """Whether a compiler, an exporter or a transform (`torch.func`) is looking: it wants plain operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    # PyTorch has no public question for this; without it, transforms meet `autograd.Function` and say what they miss.
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: False)()
