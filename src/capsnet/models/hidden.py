"""Layers of capsules between the primary ones and those of the classes."""

from collections.abc import Sequence

from torch import nn

from capsnet.checks import shown
from capsnet.errors import InputError
from capsnet.layers import ROUTED_LENGTH, ConvCapsules, DenseCapsules


def hidden_layers(
    sizes: Sequence[tuple[int, ...]],
    grid: tuple[int, int],
    types: int,
    dim: int,
    *,
    iterations: int,
    leaky: bool,
    temperature: float,
) -> tuple[nn.ModuleList, tuple[int, int], int, int]:
    """The layers on a grid of so many types of capsules; grid, types and dimension of what leaves the last.

    Of `sizes`, `(capsules, dim)` is a dense layer, whose grid is 1 × 1, and `(types, dim, kernel_size)` with or without
    a `stride` a convolutional one. Raises `InputError` if they are none, or do not fit on the grid.
    """
    layers: list[nn.Module] = []
    for size in sizes:
        length = ROUTED_LENGTH if layers else 1.0
        if len(size) == 2:
            below = grid[0] * grid[1] * types
            layers.append(
                DenseCapsules(below, dim, *size, iterations, leaky=leaky, temperature=temperature, input_length=length)
            )
            grid, (types, dim) = (1, 1), size
        elif len(size) in (3, 4):
            if layers and isinstance(layers[-1], DenseCapsules):
                raise InputError(f"a dense layer of capsules leaves no grid for the convolutional {size} above it")
            kernel, stride = size[2], size[3] if len(size) == 4 else 1
            if kernel > min(grid):
                raise InputError(f"hidden capsules {size} need a grid of {kernel}×{kernel}, but it is {_times(grid)}")
            out_types, out_dim = size[:2]
            layers.append(
                ConvCapsules(
                    types,
                    dim,
                    out_types,
                    out_dim,
                    kernel,
                    stride,
                    iterations,
                    leaky=leaky,
                    temperature=temperature,
                    input_length=length,
                )
            )
            grid = ((grid[0] - kernel) // stride + 1, (grid[1] - kernel) // stride + 1)
            types, dim = size[:2]
        else:
            raise InputError(
                "a hidden layer is (capsules, dim), or (types, dim, kernel_size) with or without a stride, "
                f"not {shown(size)}"
            )
    return nn.ModuleList(layers), grid, types, dim


def _times(grid: tuple[int, int]) -> str:
    return f"{grid[0]}×{grid[1]}"
