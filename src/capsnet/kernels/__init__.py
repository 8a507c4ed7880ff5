"""Kernels: in C for processors with AVX-512 or AVX2, in Triton for NVIDIA's graphics cards.

In C: routing, squash, and the products of the spectral convolution; in Triton (`fit_triton`): routing and squash.

They are compiled when the package is installed, if there is a compiler (`setup.py`), and are used when the processor
has what they need. Without them everything works through PyTorch alone, only slower: `available` says which it is.
"""

import ctypes
import shutil
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from capsnet.tracing import is_batched, is_traced

_PARTS_A_THREAD = 4  # so that a thread which another program holds up does not hold up all
_LONGEST = 32  # numbers of a capsule, for Triton's kernels
_TYPES = torch.float32, torch.bfloat16, torch.float16
_LEVELS = {"AVX512": "_avx512", "AVX2": "_avx2"}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not compiled or this processor cannot run them."""
    level = torch.backends.cpu.get_cpu_capability()
    spec = find_spec(f"capsnet.kernels.{_LEVELS[level]}") if level in _LEVELS else None
    if spec is None or spec.origin is None:
        return None
    try:
        compiled = ctypes.CDLL(spec.origin)
    except OSError:  # compiled for another system
        return None
    # The OpenMP that PyTorch has loaded, so that its threads are the only ones. Without it one thread does all.
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    compiled.capsnet_set_parallel(ctypes.cast(parallel, ctypes.c_void_p) if parallel else None)
    return compiled


def run(name: str, job: ctypes.Structure) -> None:
    """Call a kernel with all threads that PyTorch may use. Only where `available`."""
    compiled = library()
    assert compiled is not None
    getattr(compiled, name)(ctypes.byref(job), torch.get_num_threads())


def address(x: Tensor) -> int:
    """Where the numbers of ``x`` begin, which C takes to be float32 and contiguous: it looks at no strides.

    Every tensor that C computes with goes through here. Raises `RuntimeError` for one that is stored otherwise, which
    would silently be read wrongly.
    """
    if not x.is_contiguous() or x.dtype != torch.float32:
        raise RuntimeError(
            f"a kernel takes contiguous float32, not {x.dtype} of shape {tuple(x.shape)}, strides {x.stride()}"
        )
    return x.data_ptr()


def available() -> bool:
    """Whether the compiled kernels are there and this processor can run them."""
    return library() is not None


def fit(*tensors: Tensor) -> bool:
    """Whether the kernels can take these: ordinary float32 tensors on the CPU, which nobody traces or transforms."""
    return (
        not is_traced()  # first: a compiler cannot follow the rest
        and available()
        and all(type(t) in (Tensor, nn.Parameter) and not is_batched(t) and not t.is_neg() for t in tensors)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.layout == torch.strided for t in tensors)
    )


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    """Whether Triton can make kernels here: it wants a C compiler."""
    there = find_spec("triton") is not None and torch.version.cuda is not None
    return there and any(map(shutil.which, ("cc", "gcc", "clang")))


@torch.compiler.assume_constant_result
def _multiplies(card: int | None) -> bool:
    """Whether Triton can make kernels for this graphics card, and it has the matrix units that ours want."""
    return _has_triton() and torch.cuda.get_device_capability(card) >= (8, 0)


def suit_triton(*tensors: Tensor) -> bool:
    """Whether Triton's kernels can take tensors like these: float32 or half precision, on one graphics card, capsules
    short enough for its registers."""
    return (
        all(t.device.type == "cuda" and t.device == tensors[0].device and t.dtype in _TYPES for t in tensors)
        and all(t.layout == torch.strided and t.dim() > 0 for t in tensors)
        and all(0 < t.numel() < 2**31 and t.shape[-1] <= _LONGEST for t in tensors)
        and _multiplies(tensors[0].device.index)
    )


def fit_triton(*tensors: Tensor) -> bool:
    """Whether Triton's kernels can take these, which nobody traces or transforms."""
    return (
        not is_traced()
        and suit_triton(*tensors)
        and all(type(t) in (Tensor, nn.Parameter) and not is_batched(t) for t in tensors)
    )


def parts(most: int) -> int:
    """Into how many tasks to cut what can be cut into so many."""
    return min(most, _PARTS_A_THREAD * torch.get_num_threads())


def lanes() -> int:
    """How many numbers a vector has, which decides some layouts. Only where `available`."""
    compiled = library()
    assert compiled is not None
    return compiled.capsnet_lanes()
