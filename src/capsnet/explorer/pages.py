"""The pages for digits: which part shows which answer. What is wrong with an input is told on the page."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from matplotlib.figure import Figure

from capsnet.errors import InputError
from capsnet.explorer import markup, parts
from capsnet.explorer.answers import (
    MOVES,
    Explorer,
    Image,
    Subject,
    class_number,
    draw,
    look,
    pick,
    tell_apart,
    to_pick_from,
    turn,
)
from capsnet.explorer.face_page import face_page
from capsnet.explorer.pictures import read_url, to_url
from capsnet.insight.agreement import agree, draw_agreement
from capsnet.insight.equivariance import draw_equivariance, sweep
from capsnet.insight.overlap import draw_overlap, separate_with_wrong
from capsnet.insight.perturbations import draw_perturbations, perturb

LIVE: dict[str, Any] = {
    "queue": False,
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""Answered at once; while one answer is under way, of all that is asked meanwhile only the last is answered."""
FREE = "the longest"
IS_DARK = "(...inputs) => [...inputs.slice(0, -1), document.body.classList.contains('dark')]"

SINGLE = """A capsule answers with a **vector**: its length says how sure the network is that the digit is there, and
its direction says how the digit is written. That is more than an ordinary network knows, and you can see it: move a
slider, and the digit changes."""
PAIR = """Two digits lie on top of each other, and each of the two longest capsules draws its own digit alone. Parts
vote for the whole that they fit, so each stroke goes to one digit or the other; a digit that you force but that is not
there should come out empty or poor."""
TURN = """A digit that is turned, resized or moved a little is still the same digit: its capsule should stay long, and
only change its direction. Push the sliders and see when the capsule gives up, when an ordinary network (CNN) does, and
whether the capsule's own drawing moves along."""
VOTES = """### Which part votes for it
Each square is a place on the image: the colour says how much of their vote the lower capsules that look there give the
winner, the number whom they favour. With each routing iteration they give more to those with whom the others agree.
"""

Answer = Callable[..., tuple[Any, ...]]
"""From an image and the values of other inputs to what is said below the pad, and the values of outputs.

Raises `InputError`.
"""


@dataclass(frozen=True)
class Source:
    """Where the image of a page comes from: what is on the pad, which a test image or an opened picture may replace."""

    subject: Subject
    pad: gr.HTML
    strip: gr.HTML | None
    message: gr.HTML

    def read(self, url: Any) -> Image:
        return read_url(url, self.subject.shape, self.subject.run.framing)


def build(explorer: Explorer) -> gr.Blocks:
    """All pages."""
    with gr.Blocks(title="capsnet explorer", analytics_enabled=False) as blocks:
        gr.Markdown("# What a capsule knows")
        for name, page in (
            ("One digit", partial(_single_page, explorer.single)),
            ("Two digits", partial(_pair_page, explorer.pair)),
            ("Turn it", partial(_turn_page, explorer)),
        ):
            with gr.Tab(name):
                page(blocks)
        if explorer.faces is not None:
            with gr.Tab("A face"):
                face_page(explorer.faces, blocks)
    return blocks


def _single_page(subject: Subject, blocks: gr.Blocks) -> None:
    def answer(image: Image) -> tuple[Any, ...]:
        seen = look(subject, image)
        capsule = seen.agreement.capsules[seen.winner].tolist()
        state = {"number": seen.winner, "capsule": capsule, "offsets": [0.0] * len(capsule)}
        bars = markup.bars(subject.names, {"length": seen.agreement.lengths}, [seen.winner])
        drawn = markup.drawn(subject.names[seen.winner], seen.reconstruction)
        said = markup.said(f"It sees {subject.names[seen.winner]}: length {seen.agreement.lengths[seen.winner]:.2f}.")
        inputs = markup.pictures(("what the network sees", image))
        return said, bars, inputs, drawn, state, markup.votes(seen.agreement)

    def move(state: Any) -> tuple[Any, ...]:
        number, capsule = parts.moved(state)
        image = draw(subject, number, capsule)  # which also checks the number
        return gr.skip(), markup.drawn(subject.names[number], image)

    gr.Markdown(SINGLE)
    with gr.Row():
        with gr.Column(min_width=300):
            source = _source(subject)
        with gr.Column(min_width=300):
            bars, seen = gr.HTML(), gr.HTML()
        with gr.Column(min_width=300):
            drawn = gr.HTML()
            sliders = parts.sliders(subject.model.config["capsule_dim"])
    _about(subject.about)
    gr.Markdown(VOTES)
    votes = gr.HTML()
    _connect(blocks, source, answer, [], [bars, seen, drawn, sliders, votes])
    sliders.input(_told(move, 1), sliders, [source.message, drawn], **LIVE)
    model, names = subject.model, subject.names
    _figure(source, "Each dimension moved", lambda image: perturb(model, image, names), draw_perturbations)
    _figure(source, "All votes", lambda image: agree(model, image, names), draw_agreement)


def _pair_page(subject: Subject, blocks: gr.Blocks) -> None:
    def answer(image: Image, *forced: Any) -> tuple[Any, ...]:
        first, second = (None if name == FREE else class_number(subject, name) for name in forced)
        overlap = tell_apart(subject, image, (first, second))
        bars = markup.bars(subject.names, {"length": overlap.lengths}, overlap.classes.tolist())
        names = [subject.names[k] for k in overlap.classes.tolist()]
        return markup.said(f"It draws {names[0]} and {names[1]}."), markup.separated(overlap), bars

    gr.Markdown(PAIR)
    with gr.Row():
        with gr.Column(min_width=300):
            source = _source(subject)
        with gr.Column(min_width=300, scale=2):
            pictures = gr.HTML()
            with gr.Row():
                choices = [FREE, *subject.names]
                forced = [gr.Dropdown(choices, value=FREE, label=f"{each} capsule") for each in ("First", "Second")]
            bars = gr.HTML()
    _about(subject.about)
    _connect(blocks, source, answer, forced, [pictures, bars])
    model, names = subject.model, subject.names
    _figure(source, "Digits that are not there", lambda image: [separate_with_wrong(model, image, names)], draw_overlap)


def _turn_page(explorer: Explorer, blocks: gr.Blocks) -> None:
    subject = explorer.single

    def answer(image: Image, *amounts: Any) -> tuple[Any, ...]:
        turned = turn(explorer, image, *amounts)
        scores = {"capsule": turned.lengths} | ({} if turned.cnn is None else {"CNN": turned.cnn})
        name, length = subject.names[turned.number], float(turned.lengths[turned.number])
        pictures = markup.pictures(("what they see", turned.image), (f"capsule {name} draws", turned.reconstruction))
        said = f"Capsule {name} is {length:.2f} long, and its direction has turned by {turned.angle:.0f}°."
        return markup.said(said), markup.bars(subject.names, scores, [turned.number]), pictures

    gr.Markdown(TURN)
    with gr.Row():
        with gr.Column(min_width=300):
            source = _source(subject)
        with gr.Column(min_width=300):
            amounts = [gr.Slider(move.low, move.high, move.still, step=move.step, label=move.label) for move in MOVES]
            back = gr.Button("Back to the start")
        with gr.Column(min_width=300):
            pictures, bars = gr.HTML(), gr.HTML()
    _about(subject.about, *([explorer.about_cnn] if explorer.cnn else []))
    shown = _connect(blocks, source, answer, amounts, [bars, pictures])
    back.click(lambda: [move.still for move in MOVES], None, amounts, **LIVE).then(*shown, **LIVE)
    model, names = subject.model, subject.names
    _figure(source, "The whole sweep", lambda image: sweep(model, image, names, explorer.cnn), draw_equivariance)


def _about(*models: str) -> None:
    gr.HTML("".join(f"<p class=models>{escape(model)}</p>" for model in models))


def _source(subject: Subject) -> Source:
    pad = parts.pad("" if subject.test_set is None else to_url(pick(subject, 0)))
    message = gr.HTML()
    strip = None if subject.test_set is None else parts.strip(_strip_value(subject, 0))
    return Source(subject, pad, strip, message)


def _connect(blocks: gr.Blocks, source: Source, answer: Answer, inputs: list, outputs: list) -> tuple:
    """Ask for an answer when the page opens, and whenever the image or one of `inputs` changes; returns how."""
    told = _told(lambda url, *rest: answer(source.read(url), *rest), len(outputs))
    asked = (told, [source.pad, *inputs], [source.message, *outputs])
    blocks.load(*asked, **LIVE)
    for part in (source.pad, *inputs):
        part.input(*asked, **LIVE)

    kept = [gr.skip() for _ in outputs]

    def upload(event: gr.EventData, *rest: Any) -> tuple[Any, ...]:
        try:
            url = to_url(source.read(parts.opened(event._data)))
        except InputError as error:
            return gr.skip(), markup.wrong(error), *kept
        return url, *told(url, *rest)

    def select(event: gr.EventData, shown: Any, *rest: Any) -> tuple[Any, ...]:
        number = parts.picked(event._data)
        if number < 0:
            return _strip_value(source.subject, parts.turn_of(shown) + 1), gr.skip(), gr.skip(), *kept
        try:
            url = to_url(pick(source.subject, number))
        except InputError as error:
            return gr.skip(), gr.skip(), markup.wrong(error), *kept
        return gr.skip(), url, *told(url, *rest)

    source.pad.upload(upload, inputs, [source.pad, source.message, *outputs], **LIVE)
    if source.strip is not None:
        changed = [source.strip, source.pad, source.message, *outputs]
        source.strip.select(select, [source.strip, *inputs], changed, **LIVE)
    return asked


def _strip_value(subject: Subject, turn: int) -> dict[str, Any]:
    chosen = to_pick_from(subject, turn)
    items = [
        {"number": number, "name": markup.in_template(name), "source": to_url(pick(subject, number))}
        for number, name in chosen
    ]
    return {"turn": turn, "items": items}


def _told(answer: Answer, count: int) -> Answer:
    """An answer that on wrong input says what is wrong, with `count` empty outputs."""

    def told(*inputs: Any) -> tuple[Any, ...]:
        try:
            return answer(*inputs)
        except InputError as error:
            return markup.wrong(error), *[None] * count

    return told


def _figure(source: Source, name: str, see: Callable[[Image], Any], draw: Callable[[Any, bool], Figure]) -> None:
    """A button that draws the printable figure of what is on the pad, light or dark as the page is."""

    def drawn(url: Any, dark: Any) -> tuple[Any, ...]:
        return gr.skip(), markup.figure(draw(see(source.read(url)), bool(dark)), name)

    with gr.Accordion(f"{name}: a figure to keep", open=False):
        button = gr.Button("Draw it")
        dark = gr.Checkbox(visible=False)
        shown = gr.HTML()
        options = {**LIVE, "show_progress": "minimal"}
        button.click(_told(drawn, 1), [source.pad, dark], [source.message, shown], js=IS_DARK, **options)
