"""What is in a data set: a few images of each, with their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data import ImageSet, PairSet
from capsnet.insight.style import fit_text

COLUMNS = 10
INK = "#333333"


@dataclass(frozen=True)
class Row:
    """Images of a set, side by side, with what stands above each."""

    name: str
    images: UInt8[Tensor, "count channels height width"]
    titles: Sequence[str]


def sample_rows(name: str, dataset: ImageSet | PairSet) -> list[Row]:
    """A row with the first image of each class, then the next of each, up to ten. For pairs also each digit alone."""
    if isinstance(dataset, PairSet):
        pairs = dataset.batch(0, COLUMNS)
        titles = [" + ".join(dataset.class_names[k] for k in labels) for labels in pairs.labels.tolist()]
        alone = zip(("first digit alone", "second digit alone"), pairs.digits.unbind(1), strict=True)
        return [Row(name, pairs.images, titles), *(Row(part, images, [""] * len(images)) for part, images in alone)]
    by_class = [torch.nonzero(dataset.labels == k)[:COLUMNS, 0].tolist() for k in range(dataset.num_classes)]
    turns = [positions[turn] for turn in range(COLUMNS) for positions in by_class if turn < len(positions)]
    chosen = dataset.select(torch.tensor(turns[:COLUMNS]))
    return [Row(name, chosen.images, [dataset.class_names[k] for k in chosen.labels.tolist()])]


def draw_datasets(datasets: Mapping[str, ImageSet | PairSet]) -> Figure:
    """The rows of each set, one below the other. Of images with other than 1 or 3 channels the first is shown."""
    rows = [row for name, dataset in datasets.items() for row in sample_rows(name, dataset)]
    figure = Figure(figsize=(COLUMNS, 1.22 * len(rows)), dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(len(rows), COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.04})
    for row, line in zip(rows, panels, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, image, title in zip(line, row.images, row.titles, strict=False):
            shown = image if len(image) in (1, 3) else image[:1]
            axes.imshow(shown.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(fit_text(title, 62, 9), fontsize=9, color=INK, pad=3)
        label = row.name.replace(" ", "\n", 1).replace("-", "-\n")
        line[0].text(*(-0.12, 0.5, label), transform=line[0].transAxes, ha="right", va="center", fontsize=10, color=INK)
    return figure
