"""How quickly a GPU could do a training step: its operations over the matrix rate, its bytes over the bandwidth.

    python scripts/gpu_floor.py [--rate 800] [--bandwidth 3.0]

In TFLOP/s and TB/s; by default what an H100 does (docs/gpu.md). Operations are two for each multiply-add. Bytes are the
fewest that have to be moved between the stages if each is one pass: what it reads once and writes once, with
activations in bfloat16, votes that are never stored, weights, their gradients, Adam's averages and the moving average
of the weights in float32. Needs no GPU.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from capsnet.experiments.rows import ROWS, Row
from capsnet.models import CapsNet, build_model

HALF, SINGLE = 2, 4  # bytes
# Of an activation: written, read by the next stage and once more for that one's weights; and its gradient, written by
# the next stage, and read for this one's weights and for its input.
PASSES = 6
# Of a weight: read forward and backward, its gradient written; then read by Adam with both its averages and the weight,
# which writes the last three; and the moving average is read and written.
WEIGHT_PASSES = 3 + 7 + 2


@dataclass(frozen=True)
class Stage:
    """Of a training step, forward and backward."""

    name: str
    operations: float
    bytes: float


def stages(row: Row, batch: int) -> list[Stage]:
    """The stages of a training step of a row's CapsNet; pairs are decoded twice."""
    with torch.device("meta"):
        model = build_model(row.model, row.config)
    assert isinstance(model, CapsNet)
    channels, height, width = model.config["in_shape"]
    things = 2 if row.data == "multimnist" else 1
    conv, primary, weight = model.conv.weight, model.primary.conv.weight, model.classes.weight
    rows, columns = (side - conv.shape[2] + 1 for side in (height, width))
    classes, capsules, in_dim, out_dim = weight.shape
    features = len(conv) * rows * columns
    found = {
        # Multiply-adds for an image, forward; how often backward; values that it leaves for the next stage.
        "Conv1": (features * conv[0].numel(), 1, features),
        "PrimaryCaps": (capsules * in_dim * primary[0].numel(), 2, capsules * in_dim),
        "routing": (_routed(classes, capsules, in_dim, out_dim, model.classes.iterations), 2, classes * out_dim),
    }
    if model.decoder is not None:
        dense = [part.weight for part in model.decoder.modules() if isinstance(part, torch.nn.Linear)]
        found["decoder"] = (things * sum(w.numel() for w in dense), 2, things * sum(len(w) for w in dense))
    counted = [
        Stage(name, 2 * batch * products * (1 + backward), PASSES * HALF * batch * left)
        for name, (products, backward, left) in found.items()
    ]
    weights = sum(parameter.numel() for parameter in model.parameters())
    images = SINGLE * batch * channels * height * width * (1 + things)
    return [Stage("images", 0, images), *counted, Stage("weights, Adam, average", 0, WEIGHT_PASSES * SINGLE * weights)]


def _routed(classes: int, capsules: int, in_dim: int, out_dim: int, iterations: int) -> int:
    """Votes once, their sum in each iteration, and how far they agree with it in each but the last."""
    return capsules * classes * out_dim * (in_dim + iterations + iterations - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=800.0, help="TFLOP/s of matrix products")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s of memory")
    chosen = parser.parse_args()
    print("| CapsNet | batch | stage | GFLOP | MB | operations, ms | bytes, ms | the larger, ms |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in ("mnist-r3-rec", "multimnist-r3-rec"):
        for batch in (128, 512):
            lines = [_line(stage, chosen.rate, chosen.bandwidth) for stage in stages(ROWS[name], batch)]
            lines.append(("**one after the other**", *map(sum, zip(*(figures for _, *figures in lines), strict=True))))
            for stage, *figures in lines:
                cells = (name, str(batch), stage, *(f"{figure:.3g}" for figure in figures))
                print(f"| {' | '.join(cells)} |")


def _line(stage: Stage, rate: float, bandwidth: float) -> tuple[Any, ...]:
    """GFLOP, MB, milliseconds by both, and the larger of these."""
    times = stage.operations / rate / 1e9, stage.bytes / bandwidth / 1e9
    return stage.name, stage.operations / 1e9, stage.bytes / 1e6, *times, max(times)


if __name__ == "__main__":
    main()
