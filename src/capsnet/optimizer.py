"""AdamW, in the order in which the weights lie in memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-30
"""An average of gradients below this moves no weight: Adam divides by at least 1e-8."""
FORGET_EVERY = 64
"""Steps; what was kept falls by a thousand between two looks, not yet to denormal numbers (1e-38)."""


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(..., fused=True)``, which is five times slower on a weight that is not contiguous.

    PyTorch's fused step copies such a weight, as those of `capsnet.convolution.Conv2d` are, and back. Here it sees each
    weight through a view with its dimensions in the order of their strides; the step is elementwise, so the result is
    that. Groups are those of PyTorch; `param_groups` holds the views. A weight with gaps between its numbers, which
    PyTorch's fused step gets wrong (2.13), is copied and back.

    Averages that have become too small to move a weight are set to zero. Where gradients stay zero, as in the decoder
    behind a ReLU that no longer opens, they would shrink to denormal numbers, with which processors are slow.
    """

    def __init__(
        self, groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float = 1e-3, **options: Any
    ) -> None:
        self._weights: list[tuple[Tensor, list[int]]] = []  # and the order of dimensions in which each is seen
        super().__init__(groups, lr, fused=True, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        params = param_group["params"]
        weights = [params] if isinstance(params, Tensor) else list(params)
        super().add_param_group({**param_group, "params": [nn.Parameter(_view(p)) for p in weights]})
        self._weights += [(p, _order(p)) for p in weights]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        views = [view for group in self.param_groups for view in group["params"]]
        for number, view in enumerate(views):
            p, order = self._weights[number]
            if view.data_ptr() != p.data_ptr() or _order(p) != order:
                self._follow(number, view)
            view.grad = None if p.grad is None else p.grad.permute(_order(p)).contiguous()
        super().step()
        for view, (p, order) in zip(views, self._weights, strict=True):
            if view.data_ptr() != p.data_ptr():
                p.permute(order).copy_(view)
            view.grad = None  # else it would live on beside the next one
            self._forget(view)
        # PyTorch's fused step does not say that it has written.
        torch.autograd.graph.increment_version([p for p, _ in self._weights if p.grad is not None])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises `ValueError` for averages that do not fit their weights: PyTorch's fused step looks at no shape."""
        super().load_state_dict(state_dict)
        for view in (view for group in self.param_groups for view in group["params"]):
            state = self.state.get(view, {})
            for average in (state["exp_avg"], state["exp_avg_sq"]) if state else ():
                if average.numel() != view.numel() or average.dtype != view.dtype or not average.is_contiguous():
                    raise ValueError("an average of gradients does not fit its weight")

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, _ in self._weights:
            p.grad = None if set_to_none or p.grad is None else p.grad.zero_()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_weights": self._weights}

    def _forget(self, view: nn.Parameter) -> None:
        state = self.state.get(view)  # none without a gradient so far
        if view.is_cpu and state and state["step"] % FORGET_EVERY == 0:
            for average in (state["exp_avg"], state["exp_avg_sq"]):
                average.copy_(torch.hardshrink(average, TINY))

    def _follow(self, number: int, view: nn.Parameter) -> None:
        """The model has moved, or its weights were replaced, perhaps by some that lie in another order."""
        p, before = self._weights[number]
        order = _order(p)
        for name, value in self.state[view].items():
            if order != before and value.shape == view.shape:
                there = [before.index(dimension) for dimension in order]
                self.state[view][name] = value.permute(there).contiguous()
        view.data = _view(p)
        self._weights[number] = p, order


def _order(p: Tensor) -> list[int]:
    """Dimensions, the one with the largest stride first."""
    return sorted(range(p.dim()), key=lambda d: -p.stride(d))


def _view(p: Tensor) -> Tensor:
    """Contiguous; of a weight with gaps a copy."""
    return p.detach().permute(_order(p)).contiguous()
