"""Health of a run, from its log: losses, errors, dead capsules, lengths, what routing decides, norms."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from capsnet import runs
from capsnet.functional import reconstruction_weight
from capsnet.insight.style import style

PANELS = {
    "loss": {"loss_mean": "total", "margin_loss": "margin", "reconstruction_loss": "reconstruction, as it counts"},
    "error (%)": {"train_error": "training", "held_out_error": "held out"},
    "dead (shares)": {
        "dead_primary": "primary capsule types",
        "dead_classes": "class capsules",
        "dead_hidden": "hidden capsule types",
    },
    "lengths of primary capsules": {
        "primary_length_90": "90% are shorter",
        "primary_length_50": "50%",
        "primary_length_10": "10%",
        "primary_length_std": "of one, over images (s.d.)",
    },
    "routing": {
        "coupling_entropy": "entropy of the couplings (share)",
        "routing_changes": "answers changed (share)",
        "logit_std": "logits over classes (s.d.)",
        "routing_gain": "right class: length × so much",
    },
    "norms": {
        "conv_norm": "Conv1",
        "primary_norm": "primary capsules",
        "class_norm": "longest class capsule",
        "hidden_norm": "hidden capsules",
    },
}
"""What is drawn, by the name in `metrics.csv`, and what it is called."""
LINES = (("o", "-"), ("s", "--"), ("^", ":"), ("v", "-."))


@dataclass(frozen=True)
class History:
    """Curves by name, each with a value for every epoch where there is one; in percent, shares, or as they are."""

    epochs: list[float]
    curves: dict[str, list[float]]


def read_history(folder: Path) -> History:
    """The curves in the log of a run; it need not be complete. Raises `InputError` if there is no log."""
    rows = runs.read_metrics(folder)
    names = [name for panel in PANELS.values() for name in panel]
    curves = {name: [row[name] for row in rows] for name in names if rows and all(name in row for row in rows)}
    if "reconstruction_loss" in curves:
        weight = reconstruction_weight(*runs.read_model_config(folder)["in_shape"])
        curves["reconstruction_loss"] = [weight * loss for loss in curves["reconstruction_loss"]]
    return History([row["epoch"] for row in rows], curves)


def draw_health(data: History, dark: bool = False) -> Figure:
    """A panel each for losses, errors, dead capsules, lengths of primary capsules, routing, and norms."""
    with style(dark) as colours:
        figure = Figure(figsize=(14, 6.4), layout="constrained")
        for axis, (title, curves) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
            shades = (colours.first, colours.second, colours.ink, colours.faint)
            for (name, label), (marker, line), shade in zip(curves.items(), LINES, shades, strict=False):
                if name in data.curves:
                    axis.plot(data.epochs, data.curves[name], marker + line, color=shade, markersize=4, label=label)
            _finish(axis, title)
        figure.suptitle("Health of the run", fontsize=12, fontweight="bold")
    return figure


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axis.lines:
        axis.text(0.5, 0.5, "not in the log of this run", transform=axis.transAxes, ha="center", va="center")
        axis.set(xlabel="", xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return
    axis.grid(True)
    axis.legend()
    if title == "loss":
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")  # Matplotlib's own are formulas, which names of classes must not be
        axis.yaxis.set_minor_formatter("{x:g}")
    else:
        axis.set_ylim(bottom=0, top=1.03 if "shares" in title or "lengths" in title else None)
