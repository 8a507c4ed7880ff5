"""The whole benchmark, as data and as tables."""

import json
import math
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from capsnet import runs
from capsnet.benchmark.compare import Comparison
from capsnet.benchmark.routing import time_routing
from capsnet.benchmark.sides import sides_on
from capsnet.benchmark.stages import time_stages
from capsnet.models import PAPER_SIZES
from capsnet.streams import tell

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
"""Those that decide how fast products are, as Linux calls them."""


def benchmark(
    network: str,
    batch_sizes: tuple[int, ...],
    rounds: int,
    device: torch.device,
    *,
    compiled: bool = False,
    seconds: float | None = None,
) -> dict[str, Any]:
    """All sides in alternation at each batch size; then, on a GPU, routing alone, else the stages of a training step.

    What has not begun after so many `seconds` is left out.
    """
    deadline = time.monotonic() + (seconds or math.inf)
    pixels = PAPER_SIZES[network]["in_shape"][1]
    comparison = Comparison(sides_on(device, compiled), pixels, device, rounds, deadline)
    outcome: dict[str, Any] = {"date": date.today().isoformat(), **runs.environment(device), "network": network}
    outcome |= {"instructions": instructions(), "comparison": comparison.rows, "failed": comparison.failed}
    if device.type == "cuda":
        try:
            outcome["routing"] = time_routing(device)
            tell(json.dumps(outcome["routing"]))
        except RuntimeError as error:  # out of memory, or no compiler for a kernel; the rest can still be measured
            comparison.failed["routing"] = str(error).splitlines()[0]
        comparison.measure(batch_sizes)  # together, because their compilers share the cores
    else:
        for batch_size in batch_sizes:  # one after the other, because they share the memory
            if time.monotonic() < deadline:
                comparison.measure((batch_size,))
    outcome["comparison"] = comparison.rows
    if device.type != "cuda" and time.monotonic() < deadline:
        outcome |= time_stages(sorted(batch_sizes)[len(batch_sizes) // 2], pixels, device)
    return outcome


def instructions() -> list[str]:
    """What the processor multiplies with; what PyTorch says of it where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line.split(":", 1)[1].split() for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        return [torch.backends.cpu.get_cpu_capability()]
    return [name for name in INSTRUCTIONS if name in flags]


def format_tables(outcome: dict[str, Any]) -> str:
    """The outcome of `benchmark` for a person, in Markdown."""
    pixels = PAPER_SIZES[outcome["network"]]["in_shape"][1]
    processor = f"{outcome['device']} ({', '.join(outcome['instructions'])}), {outcome['threads']} threads"
    network = f"the network for {outcome['network']}, {pixels}×{pixels} pixels"
    lines = [f"{processor}, PyTorch {outcome['torch']}, {outcome['date']}; {network}"]
    for size in dict.fromkeys(row["batch_size"] for row in outcome["comparison"]):
        rows = [row for row in outcome["comparison"] if row["batch_size"] == size]
        lines += ["", *_size_table(size, rows)]
    lines += [f"\nLeft out: {name}: {why}" for name, why in outcome["failed"].items()]
    if "routing" in outcome:
        lines += ["", *_routing_table(outcome["routing"])]
    if "stages" in outcome:
        lines += ["", *_stage_table(outcome)]
    return "\n".join(lines)


def _size_table(size: int, rows: list[dict[str, Any]]) -> list[str]:
    """A line for each side, and one for each ratio; a column for each of the rows."""
    sides = dict.fromkeys(key.removesuffix("_range") for row in rows for key in row if key.endswith("_range"))
    sides.pop("ratio", None)
    ratios = dict.fromkeys((entry["side"], entry["precision"]) for row in rows for entry in row["best"])
    head = [f"batch {size}: median (range)", *(f"{row['what']}, {row['unit']}" for row in rows)]
    lines = [_line(head), _line(["---", *("---:" for _ in rows)])]
    lines += [_line([side, *(_cell(row, side) for row in rows)]) for side in sides]
    for side, precision in ratios:
        lines.append(
            _line([f"{side}, times the best other in {precision}"] + [_best(row, side, precision) for row in rows])
        )
    return lines


def _cell(row: dict[str, Any], side: str) -> str:
    if side not in row:
        return ""
    digits = 1 if row["unit"] == "ms" else 0
    ends = row[f"{side}_range"]
    cell = f"{row[side]:,.{digits}f}"
    if f"{side}_p99" in row:
        return f"{cell} (99% below {row[f'{side}_p99']:,.{digits}f})"
    return cell if ends[0] == ends[1] else f"{cell} ({_range(ends, digits)})"


def _best(row: dict[str, Any], side: str, precision: str) -> str:
    for entry in row["best"]:
        if (entry["side"], entry["precision"]) == (side, precision):
            ends = entry["ratio_range"]
            spread = "" if ends[0] == ends[1] else f" ({_range(ends, 2)})"
            return f"**{entry['ratio']:.2f}**{spread}, {entry['other']}"
    return ""


def _range(ends: list[float], digits: int) -> str:
    return "–".join(f"{end:,.{digits}f}" for end in ends)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _routing_table(found: dict[str, Any]) -> list[str]:
    images, inputs, outputs = found["batch_size"], found["in_capsules"], found["out_capsules"]
    return [
        f"| routing alone, {images} images, {inputs:,} → {outputs:,} capsules | ms, forward and backward "
        f"| extra memory, times the logits ({found['logits_mb']:,.0f} MB) |",
        "|---|---:|---:|",
        *(f"| {name} | {found[name]:.2f} | {found[f'{name}_logits']:.1f} |" for name in ("textbook", "capsnet")),
    ]


def _stage_table(outcome: dict[str, Any]) -> list[str]:
    rates = outcome["matrix_rate"]
    fastest = max(rates.values())
    return [
        "float32 matrix products: " + ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items()),
        "",
        f"| stage, batch {outcome['batch_size']}, float32, forward and backward | textbook ms | capsnet ms "
        "| times better | as direct GFLOP/s | of the matrix rate |",
        "|---|---:|---:|---:|---:|---:|",
        *(_stage_line(row, fastest) for row in outcome["stages"]),
    ]


def _stage_line(row: dict[str, Any], fastest: float) -> str:
    textbook, ours = row["textbook"], row["capsnet"]
    start = f"| {row['stage']} | {textbook:.1f} | {ours:.1f} | {textbook / ours:.2f} |"
    if "direct_gflop" not in row:
        return f"{start} | |"
    rate = row["direct_gflop"] / ours * 1000
    return f"{start} {rate:,.0f} | {rate / fastest:.0%} |"
