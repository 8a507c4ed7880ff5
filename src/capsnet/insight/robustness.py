"""Robustness curves: how the error grows with the strength of a transformation, model beside model."""

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsnet.insight.style import Colours, style
from capsnet.robustness import TRANSFORMATIONS, Measurement

COLUMNS = 3
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Dash and marker tell the models apart where there are no colours."""


def draw_robustness(rows: Sequence[Measurement], dark: bool = False) -> Figure:
    """A panel for each transformation, a line for each model, with its 95 % confidence interval."""
    names = list(dict.fromkeys(row.transformation for row in rows))
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    with style(dark) as colours:
        figure = Figure(figsize=(3.4 * columns, 2.7 * lines + 0.4), layout="constrained")
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for panel, name in itertools.zip_longest(panels.flat, names):
            if name is None:
                panel.set_axis_off()
            else:
                _draw_panel(panel, name, [row for row in rows if row.transformation == name], colours)
        panels[0, 0].set_ylim(0, 1.05 * max(row.interval[1] for row in rows))
        for panel in panels[:, 0]:
            panel.set_ylabel("test error (%)")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
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


def _draw_panel(panel: Axes, name: str, rows: list[Measurement], colours: Colours) -> None:
    lines = colours.first, colours.second, colours.right, colours.wrong
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        curve = [row for row in rows if row.model == model]
        strengths = [row.strength for row in curve]
        colour, (dash, marker) = lines[number % len(lines)], STYLES[number % len(STYLES)]
        low, high = zip(*(row.interval for row in curve), strict=True)
        panel.fill_between(strengths, low, high, color=colour, alpha=0.18, linewidth=0)
        errors = [row.error for row in curve]
        panel.plot(strengths, errors, dash, marker=marker, markersize=4, color=colour, label=model)
    panel.set_title(name.capitalize(), loc="left")
    panel.set_xlabel(TRANSFORMATIONS[name].unit)
    panel.grid(visible=True)
