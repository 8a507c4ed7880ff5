"""The figures of the test of the claim: means over seeds, with deviations where there is more than one."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsnet.experiments.spatial.attacks import REACHES
from capsnet.experiments.spatial.detection import RANGES
from capsnet.experiments.spatial.plan import FEWER, IMAGES, MAIN, NON_FACES, VARIANTS
from capsnet.experiments.spatial.summary import Measure, Records, measured, unseen
from capsnet.insight.style import Colours, style

MARKERS = ("o", "s", "^", "v", "D")
SHADES = ("#0b5cad", "#5a8fc9", "#2a8f7a", "#8cc4b4", "#e08a1e")
"""For the models in the order of `MAIN`: CapsNets blue and green, the CNN orange; told apart in grey by markers."""


def figures(records: Records) -> dict[str, Callable[[bool], Figure]]:
    """A function that draws, on a dark ground if told so, for each figure for which there are runs."""
    drawn = {
        "non-faces": (partial(_draw, records, _non_faces, (7.5, 3.4), 1), "without-scrambled"),
        "outside": (partial(_draw, records, _outside, (8.5, 4.2), 1), "all"),
        "images": (partial(_draw, records, _images, (6.5, 3.8), 1), f"images-{FEWER[0]}"),
        "turned-digits": (partial(_draw, records, _turned, (9.0, 3.6), 2), "digits"),
        "attacks": (partial(_draw, records, _attacks, (9.0, 3.6), 2), "digits"),
    }
    return {name: draw for name, (draw, task) in drawn.items() if any(records.of(variant, task) for variant in MAIN)}


def _draw(records: Records, fill: Callable[..., None], size: tuple[float, float], columns: int, dark: bool) -> Figure:
    with style(dark) as colours:
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, columns, squeeze=False)[0]
        fill(records, *panels, colours)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _non_faces(records: Records, axes: Axes, colours: Colours) -> None:
    _dots(axes, records, [(kind, f"without-{kind}", unseen(kind)) for kind in NON_FACES])
    axes.set_ylabel("taken for faces, %")
    axes.set_title("Non-faces of a kind that was not in training, where 5 % of the faces are rejected")


def _outside(records: Records, axes: Axes, colours: Colours) -> None:
    _dots(axes, records, [(name.replace(" (", "\n("), "all", measured("ranges", name, "auc")) for name in RANGES])
    axes.axhline(50, color=colours.faint, linewidth=0.8)
    axes.set_ylabel("area under the curve, %")
    axes.tick_params("x", labelrotation=25)
    axes.set_title("Faces against non-faces under poses outside the range of training")


def _images(records: Records, axes: Axes, colours: Colours) -> None:
    counts = (*FEWER, IMAGES)
    for variant, line in _lines():
        values = [
            records.values(variant, "all" if count == IMAGES else f"images-{count}", measured("error"))
            for count in counts
        ]
        _line(axes, counts, values, line)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel("test error, %")
    axes.grid(True)


def _turned(records: Records, sure: Axes, angle: Axes, colours: Colours) -> None:
    for variant, line in _lines():
        found = [record["measures"]["sweep"] for record in records.of(variant, "digits")]
        if found:
            turns = found[0]["turns"]
            for axes, key in ((sure, "likelihood"), (angle, "angle")):
                _line(axes, turns, list(zip(*(sweep[key] for sweep in found), strict=True)), line)
    sure.set_title("likelihood of the class that won upright")
    angle.set_title("direction turned by, degrees")
    for axes in (sure, angle):
        axes.set_xlabel("digit turned by, degrees")
        axes.grid(True)


def _attacks(records: Records, wrong: Axes, through: Axes, colours: Colours) -> None:
    for variant, line in _lines():
        for axes, name, key in ((wrong, "PGD", "error"), (through, "PGD that hides", "undetected")):
            values = [
                records.values(variant, "digits", measured("adversarial", "attacks", f"{name} {reach}", key))
                for reach in REACHES
            ]
            _line(axes, REACHES, values, line)
    wrong.set_title("errors under PGD, %")
    through.set_title("PGD that hides: wrong and not caught, %")
    for axes in (wrong, through):
        axes.set_xlabel("largest change of a pixel")
        axes.set_ylim(-3, 103)
        axes.grid(True)


def _dots(axes: Axes, records: Records, groups: Sequence[tuple[str, str, Measure]]) -> None:
    """A column for each group, in it a dot for each model, the models side by side."""
    for number, (variant, line) in enumerate(_lines()):
        places = [group + 0.13 * (number - (len(MAIN) - 1) / 2) for group in range(len(groups))]
        _line(
            axes,
            places,
            [records.values(variant, task, measure) for _, task, measure in groups],
            line | {"linestyle": ""},
        )
    axes.set_xticks(range(len(groups)), [name for name, _, _ in groups])
    axes.grid(True, axis="y")


def _line(axes: Axes, places: Sequence[int | float], values: Sequence[Sequence[float]], line: dict[str, Any]) -> None:
    there = [(place, found) for place, found in zip(places, values, strict=True) if found]
    if there:
        means = [statistics.mean(found) for _, found in there]
        spread = [statistics.stdev(found) if len(found) > 1 else 0.0 for _, found in there]
        axes.errorbar([place for place, _ in there], means, spread, markersize=5, capsize=2, linewidth=1.2, **line)


def _lines() -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, {"label": VARIANTS[name].about, "marker": marker, "color": colour})
        for name, marker, colour in zip(MAIN, MARKERS, SHADES, strict=True)
    ]
