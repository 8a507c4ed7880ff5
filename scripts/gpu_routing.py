"""Check and time routing on a graphics card: Triton's kernels beside PyTorch's passes and stored votes.

    python scripts/gpu_routing.py [check] [times] [memory] [variants] [compiled]

``check`` compares with float64, ``times`` and ``memory`` compare the ways to route, ``variants`` times each kernel with
other sizes of a program, and ``compiled`` adds stored votes as `torch.compile` makes them. Without arguments, all but
the last. It needs PyTorch with Triton, jaxtyping and NumPy, and the package on PYTHONPATH.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
from torch import Tensor

from capsnet import kernels, routing, routing_passes
from capsnet.functional import _squash, squash

REPEATS = 30
WORKERS = 12
LAYERS = {  # images, input capsules, output capsules, in_dim, out_dim
    "MNIST, 128 images": (128, 1152, 10, 8, 16),
    "MNIST, 512 images": (512, 1152, 10, 8, 16),
    "MNIST, 2048 images": (2048, 1152, 10, 8, 16),
    "MultiMNIST, 128 images": (128, 3200, 10, 8, 16),
    "affNIST, 128 images": (128, 4608, 10, 8, 16),
    "3,872 to 196, 32 images": (32, 3872, 196, 8, 16),
    "3,872 to 196, 128 images": (128, 3872, 196, 8, 16),
}
ODD = [
    (100, 300, 10, 8, 16),
    (1, 1, 1, 8, 16),
    (33, 77, 7, 4, 5),
    (70, 40, 33, 6, 32),
    (5, 9, 3, 1, 1),
    (130, 50, 2, 16, 8),
]
STORED_AT_MOST = 2**31  # votes; more are not tried
MANY = (32, 3872, 196, 8, 16)
PROGRAMS = {  # images, columns, programs, warps, stages
    "SUMS_AT_ONCE": [
        *((64, 256, 132, 8, 1), (64, 256, 132, 8, 2), (64, 256, 132, 16, 1), (64, 256, 132, 16, 2)),
        *((128, 256, 132, 16, 1), (32, 256, 132, 8, 1), (32, 256, 264, 4, 1), (64, 256, 264, 8, 1)),
        *((32, 256, 264, 8, 1), (16, 256, 528, 4, 1)),
    ],
    "GRADIENTS": [
        *((64, 32, 264, 4, 1), (64, 32, 264, 4, 2), (64, 32, 264, 4, 3), (64, 32, 528, 4, 1), (64, 32, 132, 4, 1)),
        *((64, 16, 264, 4, 1), (64, 16, 396, 4, 1), (64, 64, 264, 4, 1), (64, 64, 132, 8, 1), (128, 32, 132, 8, 1)),
        *((128, 32, 132, 8, 2), (128, 16, 264, 8, 1), (32, 32, 264, 4, 1), (32, 32, 528, 2, 1), (128, 64, 132, 8, 1)),
    ],
    "SHARES": [
        *((64, 64, 264, 8, 2), (64, 64, 264, 8, 1), (64, 64, 264, 4, 1), (64, 64, 264, 4, 2), (32, 64, 264, 4, 1)),
        *((64, 128, 264, 8, 1), (64, 256, 132, 8, 1), (32, 128, 264, 4, 1)),
    ],
    "SUMS": [
        *((64, 64, 264, 8, 2), (64, 64, 264, 8, 1), (64, 64, 264, 4, 1), (64, 64, 264, 4, 2), (32, 64, 264, 4, 1)),
        *((64, 128, 264, 8, 1), (64, 256, 132, 8, 1), (32, 128, 264, 4, 1), (64, 64, 528, 8, 2)),
    ],
}
Options = tuple[int, bool, bool, float]
USUAL: Options = (3, False, False, 1.0)  # iterations, leaky, detach_early, temperature
ALL_OPTIONS: list[Options] = [
    (1, False, False, 1.0),
    (3, True, False, 10.0),
    (2, False, True, 1.0),
    (4, False, False, 3.0),
]


def layer(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Capsules and weights about as large as in a network that learns."""
    batch, i, j, d, e = shape
    inputs = torch.randn(batch, i, d, device="cuda") / d**0.5
    return inputs.requires_grad_(), (torch.randn(j, i, d, e, device="cuda") * j / (i * e) ** 0.5).requires_grad_()


def run(way: Callable, inputs: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    out = way(inputs, weight)
    return out, *torch.autograd.grad(out, (inputs, weight), upstream)


@contextmanager
def passes(module) -> Iterator[None]:
    kept = routing._passes
    routing._passes = lambda *_: module
    try:
        yield
    finally:
        routing._passes = kept


def by_triton(inputs: Tensor, weight: Tensor, options: Options = USUAL) -> Tensor:
    assert kernels.fit_triton(inputs, weight)
    return routing._Routing.apply(inputs, weight, *options)


def by_passes(inputs: Tensor, weight: Tensor, options: Options = USUAL) -> Tensor:
    return routing._Routing.apply(inputs, weight, *options)


def by_votes(inputs: Tensor, weight: Tensor, options: Options = USUAL) -> Tensor:
    return routing._procedure(inputs, weight, *options)


def poison() -> None:
    """What is not written afterwards is not a number, in all likelihood."""
    del_me = [torch.full((2**26,), torch.nan, device="cuda") for _ in range(4)]
    del_me += [torch.full((2**14,), torch.nan, device="cuda") for _ in range(64)]


def errors(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[str]:
    return [
        f"{((a.double() - e.double()).norm() / e.double().norm()).item():.1e}"
        for a, e in zip(actual, expected, strict=True)
    ]


def check() -> None:
    """Relative errors of output and both gradients: of Triton's kernels, and of float32 by PyTorch's passes."""
    print("\nRelative error of output, gradient for inputs, for weight; Triton | PyTorch in float32")
    cases = [(shape, USUAL) for shape in LAYERS.values() if shape[0] <= 512]
    cases += [(shape, options) for shape in ODD for options in ALL_OPTIONS]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(check_one, cases):
            print(line, flush=True)
    check_compiled()
    for dtype in (torch.float32, torch.bfloat16):
        s = (torch.randn(128, 1152, 8, device="cuda") * torch.logspace(-20, 20, 1152, device="cuda")[:, None]).to(dtype)
        s.requires_grad_()
        upstream = torch.randn_like(s)
        v = squash(s)
        assert "_Squash" in type(v.grad_fn).__name__
        x = s.detach().double().requires_grad_()
        expected = _squash(x, -1)
        exact = expected, torch.autograd.grad(expected, x, upstream.double())[0]
        print("squash", dtype, errors((v, torch.autograd.grad(v, s, upstream)[0]), exact))


def check_one(case: tuple[tuple[int, ...], Options]) -> str:
    """In a process of its own, so that kernels are compiled side by side."""
    shape, options = case
    torch.manual_seed(0)
    inputs, weight = layer(shape)
    upstream = torch.randn(shape[0], shape[2], shape[4], device="cuda")
    poison()
    try:
        found, again = (run(partial(by_triton, options=options), inputs, weight, upstream) for _ in range(2))
    except Exception as error:  # the other cases are worth knowing
        return f"{shape!s:28} {options!s:18} {type(error).__name__}: {error}"
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    plain = partial(by_passes, options=options)
    # On the processor where that does not take long: another machine's arithmetic.
    there = "cpu" if shape[0] * shape[1] * shape[2] < 2**21 else "cuda"
    u, w = (x.detach().to(there).double().requires_grad_() for x in (inputs, weight))
    with passes(routing_passes):
        expected = tuple(x.cuda() for x in run(plain, u, w, upstream.to(there).double()))
        usual = run(plain, inputs, weight, upstream)
    return f"{shape!s:28} {options!s:18} {errors(found, expected)} | {errors(usual, expected)} repeats: {same}"


def check_compiled() -> None:
    """As `torch.compile` calls it, with a captured graph as in training."""
    inputs, weight = layer(LAYERS["MNIST, 128 images"])
    upstream = torch.randn(128, 10, 16, device="cuda")
    expected = run(by_triton, inputs, weight, upstream)
    whole = torch.compile(routing.route, mode="reduce-overhead", dynamic=False)
    for time_ in range(4):  # the first ones are not replayed
        torch.compiler.cudagraph_mark_step_begin()
        print(f"compiled, time {time_}, against not compiled:", errors(run(whole, inputs, weight, upstream), expected))


def milliseconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median, asked for one by one as Python does it."""
    function()
    function()
    marks = []
    for _ in range(repeats):
        marks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        marks[-1][0].record()
        function()
        marks[-1][1].record()
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in marks)


def captured(function: Callable[[], object]) -> float:
    """Median of a captured graph: what the card itself takes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return milliseconds(graph.replay)


def ways(compiled: bool) -> dict[str, Callable]:
    found = {"Triton": by_triton, "PyTorch's passes": by_passes, "stored votes": by_votes}
    if compiled:
        found["stored votes, compiled"] = torch.compile(by_votes, dynamic=False)  # graphs are captured below
    return found


def times(compiled: bool) -> None:
    print("\nMilliseconds: forward, forward and backward; then the same captured in a graph")
    for name, shape in LAYERS.items():
        for way, function in ways(compiled).items():
            votes = shape[0] * shape[1] * shape[2] * shape[4]
            if ("votes" in way and votes > STORED_AT_MOST) or (way == "PyTorch's passes" and shape[0] > 512):
                continue
            inputs, weight = layer(shape)
            upstream = torch.randn(shape[0], shape[2], shape[4], device="cuda")
            both = partial(run, function, inputs, weight, upstream)
            forward = partial(function, inputs.detach(), weight.detach())
            module = routing_passes if way == "PyTorch's passes" else routing._passes(inputs, weight)
            try:
                with passes(module):
                    row = [milliseconds(forward), milliseconds(both), captured(forward), captured(both)]
            except torch.OutOfMemoryError:
                print(f"{name:26} {way:24} out of memory", flush=True)
                continue
            print(f"{name:26} {way:24}" + "".join(f"{ms:9.3f}" for ms in row), flush=True)
            torch.cuda.empty_cache()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (128 * 1152, 2048 * 1152):
            s = torch.randn(rows, 8, device="cuda", dtype=dtype).requires_grad_()
            g = torch.randn_like(s)
            row = []
            for function in (squash, partial(_squash, dim=-1)):
                row.append(captured(lambda f=function, s=s, g=g: torch.autograd.grad(f(s), s, g)))
            print(f"squash and its gradient, {rows:8} rows, {dtype}: Triton {row[0]:.3f}, PyTorch {row[1]:.3f}")


def memory() -> None:
    print("\nPeak memory of forward and backward beyond arguments, gradients and output, by that of the logits")
    for name, shape in LAYERS.items():
        for way, function in ways(False).items():
            if "votes" in way and shape[0] * shape[1] * shape[2] * shape[4] > STORED_AT_MOST // 4:
                continue
            inputs, weight = layer(shape)
            upstream = torch.randn(shape[0], shape[2], shape[4], device="cuda")
            with passes(routing_passes if way == "PyTorch's passes" else routing._passes(inputs, weight)):
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                kept = run(function, inputs, weight, upstream)
                torch.cuda.synchronize()
                extra = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in kept)
            logits = 4 * shape[0] * shape[1] * shape[2]
            print(f"{name:26} {way:24} {extra / 2**20:9.1f} MiB {extra / logits:7.2f}", flush=True)
            del kept


def jobs(shape: tuple[int, ...], half: bool = False) -> dict[str, dict[str, Callable]]:
    """For each set of sizes, what it is used for."""
    from capsnet.kernels import triton_routing as t

    torch.manual_seed(0)
    inputs, w = (x.detach() for x in layer(shape))
    u = inputs.bfloat16() if half else inputs
    v, g = (squash(torch.randn(shape[0], shape[2], shape[4], device="cuda")) for _ in range(2))
    shares = t._shares(u, w, v, g, False)

    def gradients() -> object:
        all_of = t.Gradients(u, w, False, False)
        all_of.totals, all_of.grads, all_of.shares, all_of.equal = [v, v], [g, g], [shares, shares], g
        return all_of.finish()

    sums = {
        "equal": lambda: t._add_up(u, w, None, None, False),
        "forward": lambda: t._add_up(u, w, v, None, False),
        "backward": lambda: t._add_up(u, w, v, g, False),
    }
    if shape[2] <= 16:
        return {"SUMS_AT_ONCE": sums, "GRADIENTS": {"backward": gradients}}
    found = {"forward": lambda: t._shares(u, w, v, None, False), "backward": lambda: t._shares(u, w, v, g, False)}
    return {"SHARES": found, "SUMS": sums, "GRADIENTS": {"backward": gradients}}  # these sums find the shares, too


def set_sizes(name: str, sizes: tuple[int, ...]) -> None:
    from capsnet.kernels import triton_routing as t

    sizes_of = getattr(t, name)
    sizes_of.update(zip(sizes_of, sizes, strict=True))


def compile_one(name: str, sizes: tuple[int, ...]) -> str:
    """In a process of its own, so that many are compiled at once; they find their way through Triton's cache."""
    set_sizes(name, sizes)
    try:
        for shape in (LAYERS["MNIST, 128 images"], MANY):
            for job in jobs(shape).get(name, {}).values():
                job()
        torch.cuda.synchronize()
    except Exception as error:  # a size that the card cannot take is a result
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return ""


def variants() -> None:
    from capsnet.kernels import triton_routing as t

    begin = time.perf_counter()
    tries = [(name, sizes) for name, all_of in PROGRAMS.items() for sizes in all_of]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        said = list(pool.map(compile_one, *zip(*tries, strict=True)))
    print(
        "\nMilliseconds of a kernel, by images, columns, programs, warps, stages;"
        f" compiled in {time.perf_counter() - begin:.0f} s"
    )
    usual = {name: tuple(getattr(t, name).values()) for name in PROGRAMS}
    for shape in (LAYERS["MNIST, 128 images"], LAYERS["MNIST, 512 images"], LAYERS["MNIST, 2048 images"], MANY):
        all_jobs = jobs(shape)
        for (name, sizes), error in zip(tries, said, strict=True):
            if error or name not in all_jobs:
                if error:
                    print(f"{shape[0]:5} {name:12} {sizes!s:24} {error}")
                continue
            set_sizes(name, sizes)
            row = [f"{what} {captured(job):.4f}" for what, job in all_jobs[name].items()]
            print(f"{shape[0]:5} {name:12} {sizes!s:24} {', '.join(row)}", flush=True)
            set_sizes(name, usual[name])
        row = [
            f"{n} {what} {captured(job):.4f}" for n, of in jobs(shape, half=True).items() for what, job in of.items()
        ]
        print(f"{shape[0]:5} bfloat16 inputs: {', '.join(row)}", flush=True)
        torch.cuda.empty_cache()


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_routing: PyTorch sees no graphics card here")
    import triton

    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, "Triton", triton.__version__)
    asked = sys.argv[1:] or ["check", "times", "memory", "variants"]
    for name, step in {
        "check": check,
        "times": partial(times, "compiled" in asked),
        "memory": memory,
        "variants": variants,
    }.items():
        if name in asked:
            begin = time.perf_counter()
            step()
            print(f"({name}: {time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
