"""Robustness curves: how the error grows with the strength of a transformation, model beside model."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsnet.robustness import TRANSFORMATIONS, Measurement

COLUMNS = 3
LIGHT = {
    "paper": "#ffffff",
    "ink": "#333333",
    "faint": "#d9d9d9",
    "lines": ("#0b6e99", "#c2410c", "#5b8c2a", "#8a4fa3"),
}
DARK = {"paper": "#161616", "ink": "#dddddd", "faint": "#3a3a3a", "lines": ("#6cc5ec", "#ff9d6b", "#b4dd7f", "#d5a6e6")}
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Dash and marker tell the models apart where there are no colours."""


def draw_robustness(rows: Sequence[Measurement], dark: bool = False) -> Figure:
    """A panel for each transformation, a line for each model, with its 95 % confidence interval."""
    colours = DARK if dark else LIGHT
    names = list(dict.fromkeys(row.transformation for row in rows))
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(
        figsize=(3.4 * columns, 2.7 * lines + 0.4), dpi=150, facecolor=colours["paper"], layout="constrained"
    )
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for panel, name in itertools.zip_longest(panels.flat, names):
        if name is None:
            panel.set_axis_off()
        else:
            _draw_panel(panel, name, [row for row in rows if row.transformation == name], colours)
    panels[0, 0].set_ylim(0, 1.05 * max(row.interval[1] for row in rows))
    for panel in panels[:, 0]:
        panel.set_ylabel("test error (%)", color=colours["ink"])
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, labelcolor=colours["ink"]
    )
    return figure


def robustness_table(rows: Sequence[Measurement]) -> str:
    """The same as a Markdown table: error in percent with its 95 % confidence interval."""
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [
        f"| transformation | strength | {' | '.join(models)} |",
        f"|---|---:|{'---:|' * len(models)}",
    ]
    for (name, strength), group in itertools.groupby(rows, lambda row: (row.transformation, row.strength)):
        cells = {row.model: f"{row.error:.2f} % ({row.interval[0]:.2f}–{row.interval[1]:.2f})" for row in group}
        said = f"{name} ({TRANSFORMATIONS[name].unit}) | {strength:g}"
        lines.append(f"| {said} | {' | '.join(cells.get(model, '') for model in models)} |")
    return "\n".join(lines) + "\n"


def write_robustness(rows: Sequence[Measurement], folder: str | Path) -> list[Path]:
    """Table and figure in a folder, the figure as PNG and SVG, for light and for dark pages; returns the files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "robustness.md"
    table.write_text(robustness_table(rows), encoding="utf-8")
    written = [table]
    for name, dark in (("robustness", False), ("robustness-dark", True)):
        figure = draw_robustness(rows, dark)
        for ending in ("png", "svg"):
            written.append(folder / f"{name}.{ending}")
            figure.savefig(written[-1])
    return written


def _draw_panel(panel: Axes, name: str, rows: list[Measurement], colours: dict) -> None:
    models = dict.fromkeys(row.model for row in rows)
    for number, model in enumerate(models):
        curve = [row for row in rows if row.model == model]
        strengths = [row.strength for row in curve]
        colour = colours["lines"][number % len(colours["lines"])]
        dash, marker = STYLES[number % len(STYLES)]
        low, high = zip(*(row.interval for row in curve), strict=True)
        panel.fill_between(strengths, low, high, color=colour, alpha=0.18, linewidth=0)
        panel.plot(
            strengths, [row.error for row in curve], dash, marker=marker, markersize=4, color=colour, label=model
        )
    panel.set_title(name.capitalize(), color=colours["ink"], fontsize=11, loc="left")
    panel.set_xlabel(TRANSFORMATIONS[name].unit, color=colours["ink"])
    panel.set_facecolor(colours["paper"])
    panel.tick_params(colors=colours["ink"])
    panel.grid(color=colours["faint"], linewidth=0.6)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["ink"])
