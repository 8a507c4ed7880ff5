"""AdamW, in the order in which the weights lie in memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(..., fused=True)``, which is five times slower on a weight that is not contiguous.

    PyTorch's fused step copies such a weight, as those of `capsnet.convolution.Conv2d` are, and back. Here it sees each
    weight through a view with its dimensions in the order of their strides; the step is elementwise, so the result is
    that. Groups are those of PyTorch; `param_groups` holds the views.
    """

    def __init__(self, groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]], **options: Any) -> None:
        listed = list(groups)
        listed = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
        listed = [{**group, "params": list(group["params"])} for group in listed]  # type: ignore[dict-item]
        self._originals = [p for group in listed for p in group["params"]]
        views = [{**group, "params": [nn.Parameter(_view(p)) for p in group["params"]]} for group in listed]
        super().__init__(views, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        views = [view for group in self.param_groups for view in group["params"]]
        for p, view in zip(self._originals, views, strict=True):
            if view.data_ptr() != p.data_ptr():  # the model has moved, or its weights were replaced
                view.data = _view(p)
            view.grad = None if p.grad is None else p.grad.permute(_order(p)).contiguous()
        super().step()
        for view in views:
            view.grad = None  # else it would live on beside the next one
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self._originals:
            p.grad = None if set_to_none or p.grad is None else p.grad.zero_()


def _order(p: Tensor) -> list[int]:
    """Dimensions, the one with the largest stride first."""
    return sorted(range(p.dim()), key=lambda d: -p.stride(d))


def _view(p: Tensor) -> Tensor:
    return p.detach().permute(_order(p))
