"""Answers as HTML: bars, images, couplings. What a user or a run folder named is escaped."""

import base64
import itertools
import re
from html import escape

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.errors import InputError
from capsnet.explorer.pictures import to_url
from capsnet.insight.agreement import VOTES, Agreement
from capsnet.insight.overlap import Overlap, blend
from capsnet.insight.style import as_bytes

MOST_BARS = 10
WIDEST_NAME = 16


def said(text: str) -> str:
    """A sentence below the pad; it is read out to those who cannot see the rest."""
    return f"<p class=said role=status>{escape(text)}</p>"


def wrong(error: InputError) -> str:
    """What is wrong with an input."""
    return f"<p class='said message' role=alert>{escape(str(error))}</p>"


def bars(names: tuple[str, ...], scores: dict[str, Float[Tensor, " classes"]], marked: list[int]) -> str:
    """A row for each class, in it a bar for each of `scores` (what it is: its value for every class).

    Of many classes, those that score highest. The `marked` ones stand out.
    """
    first = next(iter(scores.values()))
    shown = range(len(names)) if len(names) <= MOST_BARS else first.argsort(descending=True)[:MOST_BARS].tolist()
    head = "".join(f"<th scope=col>{escape(what)}</th>" for what in scores)
    rows = "".join(
        f"<tr{' class=marked' if k in marked else ''}><th scope=row class=name>{escape(names[k])}</th>"
        + "".join(_bar(float(values[k])) for values in scores.values())
        + "</tr>"
        for k in shown
    )
    width = f"{min(max(map(len, names)) + 2, WIDEST_NAME)}ch"
    corner = f"<td style='width:{width}'></td>"
    return f"<table class=bars><thead><tr>{corner}{head}</tr></thead><tbody>{rows}</tbody></table>"


def _bar(value: float) -> str:
    bar = f"<span class=bar style='width:{100 * min(value, 1):.1f}%'></span>"
    return f"<td>{bar}<span class=value>{value:.2f}</span></td>"


def pictures(*captioned: tuple[str, Tensor]) -> str:
    """Images side by side, each with a caption."""
    return "<div class=pictures>" + "".join(_picture(caption, image) for caption, image in captioned) + "</div>"


def _picture(caption: str, image: Tensor) -> str:
    told = escape(caption, quote=True)
    return f"<figure><img src='{to_url(image)}' alt='{told}'><figcaption>{told}</figcaption></figure>"


def drawn(name: str, image: Tensor) -> str:
    """What a capsule draws."""
    return pictures((f"what capsule {name} draws", image))


def figure(figure: Figure, name: str) -> str:
    """A figure to look at, and to save."""
    url = f"data:image/svg+xml;base64,{base64.b64encode(as_bytes(figure, 'svg')).decode()}"
    told = escape(name, quote=True)
    return f"<img class=figure src='{url}' alt='{told}'><p><a href='{url}' download='{told}.svg'>Save as SVG</a></p>"


def separated(overlap: Overlap) -> str:
    """The input, both things in two colours, and each alone."""
    names = [overlap.class_names[k] for k in overlap.classes.tolist()]
    alone = [
        (f"{name}, length {overlap.lengths[k]:.2f}", image)
        for name, k, image in zip(names, overlap.classes.tolist(), overlap.reconstructions, strict=True)
    ]
    both = blend(overlap).movedim(-1, 0)
    return pictures(("what the network sees", overlap.image), (f"{names[0]} and {names[1]}", both), *alone)


def votes(agreement: Agreement) -> str:
    """For each routing iteration the image, and over it what share of each position's votes the winner gets."""
    winner = int(agreement.lengths.argmax())
    ratios = agreement.relative(agreement.by_position[..., winner])
    low, high = float(ratios.min()), float(ratios.max())
    panels = []
    for t, (shares, favourites) in enumerate(zip(ratios, agreement.by_position.argmax(-1), strict=True)):
        names = [agreement.class_names[k][:2] if t else "" for k in favourites.flatten().tolist()]
        cells = _cells(agreement.centres, _colours((shares.flatten() - low) / max(high - low, 1e-6)), names)
        told = f"up to {float(shares.max()):.2f} × an even share" if t else "even shares"
        caption = f"<figcaption>iteration {t + 1}: {told}</figcaption>"
        panels.append(f"<figure>{_drawing(agreement.image, cells)}{caption}</figure>")
    steps = ",".join(_colours(torch.linspace(0, 1, 9)))
    scale = f"<span class=scale style='background:linear-gradient(to right,{steps})'></span>"
    name = escape(agreement.class_names[winner])
    legend = f"<p class=legend>votes for {name}: {low:.2f} × even {scale} {high:.2f} × even</p>"
    return f"<div class=pictures>{''.join(panels)}</div>{legend}"


def _cells(centres: tuple[Tensor, Tensor], colours: list[str], names: list[str]) -> str:
    down, right = (each.tolist() for each in centres)
    side = down[1] - down[0] if len(down) > 1 else 2.0
    places = itertools.product(down, right)
    return "".join(
        # Pixel 0 is drawn from 0 to 1, so its centre is at a half.
        f"<rect x='{x + 0.5 - side / 2}' y='{y + 0.5 - side / 2}' width='{side}' height='{side}' fill='{colour}'/>"
        f"<text x='{x + 0.5}' y='{y + 0.5}'>{escape(name)}</text>"
        for (y, x), colour, name in zip(places, colours, names, strict=True)
    )


def _drawing(image: Tensor, cells: str) -> str:
    _, height, width = image.shape
    below = f"<image href='{to_url(image)}' width='{width}' height='{height}'/>"
    return f"<svg viewBox='0 0 {width} {height}' aria-hidden=true>{below}{cells}</svg>"


def _colours(values: Float[Tensor, " count"]) -> list[str]:
    """From few votes, 0, to many, 1."""
    return [to_hex(colour) for colour in matplotlib.colormaps[VOTES](values.numpy())]


def in_template(text: str) -> str:
    """Text as HTML that is safe within one of Gradio's templates, which end as JavaScript between backticks."""
    return re.sub(r"[^\w .,:;()-]", lambda found: f"&#{ord(found[0])};", text)
