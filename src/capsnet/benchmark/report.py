"""The whole benchmark, as data and as tables."""

from datetime import date
from typing import Any

import torch

from capsnet import runs
from capsnet.benchmark.compare import compare
from capsnet.benchmark.sides import SIDES
from capsnet.benchmark.stages import time_stages
from capsnet.streams import tell


def benchmark(batch_sizes: tuple[int, ...], rounds: int, device: torch.device) -> dict[str, Any]:
    """Both sides in alternation at each batch size, then the stages of a training step at the middle one."""
    rows = compare(batch_sizes, rounds, str(device))
    tell(f"{'stages':<40}", end="\r")
    stages = time_stages(sorted(batch_sizes)[len(batch_sizes) // 2], device)
    tell(" " * 40, end="\r")
    return {"date": date.today().isoformat(), **runs.environment(device), "comparison": rows, **stages}


def format_tables(outcome: dict[str, Any]) -> str:
    """The outcome of `benchmark` for a person, in Markdown."""
    rates = outcome["matrix_rate"]
    fastest = max(rates.values())
    lines = [
        f"{outcome['device']}, {outcome['threads']} threads, PyTorch {outcome['torch']}, {outcome['date']}",
        "",
        "| batch | median (range) | textbook | capsnet | times better |",
        "|---:|---|---:|---:|---:|",
        *(_comparison_line(row) for row in outcome["comparison"]),
        "",
        "float32 matrix products: " + ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items()),
        "",
        f"| stage, batch {outcome['batch_size']}, forward and backward | textbook ms | capsnet ms | times better "
        "| as direct GFLOP/s | of the matrix rate |",
        "|---|---:|---:|---:|---:|---:|",
        *(_stage_line(row, fastest) for row in outcome["stages"]),
    ]
    return "\n".join(lines)


def _comparison_line(row: dict[str, Any]) -> str:
    start = f"| {row['batch_size']} | {row['what']}, {row['unit']} "
    if "ratio_range" not in row:
        return f"{start}| {row['textbook']:,.0f} | {row['capsnet']:,.0f} | **{row['ratio']:.2f}** |"
    cells = [f"{row[side]:,.0f} ({_range(row[f'{side}_range'], 0)})" for side in SIDES]
    return f"{start}| {' | '.join(cells)} | **{row['ratio']:.2f}** ({_range(row['ratio_range'], 2)}) |"


def _range(ends: list[float], digits: int) -> str:
    return "–".join(f"{end:,.{digits}f}" for end in ends)


def _stage_line(row: dict[str, Any], fastest: float) -> str:
    textbook, ours = row["textbook"], row["capsnet"]
    start = f"| {row['stage']} | {textbook:.1f} | {ours:.1f} | {textbook / ours:.2f} |"
    if "direct_gflop" not in row:
        return f"{start} | |"
    rate = row["direct_gflop"] / ours * 1000
    return f"{start} {rate:,.0f} | {rate / fastest:.0%} |"
