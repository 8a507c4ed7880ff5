"""The page on which one drags the parts of a face about, and capsule and CNN answer."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from capsnet.data.faces import KINDS, SLOTS
from capsnet.errors import InputError
from capsnet.explorer import markup
from capsnet.explorer.face_answers import FACES, Detectors, Seen, arranged, see
from capsnet.explorer.pictures import to_url
from capsnet.models import Detection

ABOUT = """Two eyes, a nose and a mouth: is that a face? It depends on how they stand to each other. Drag the parts
about, turn them, take one away, and see when a capsule network and an ordinary one (CNN) stop believing it. Both also
say how the face is turned and how large it is: *[likelihood, orientation, size]*."""
LIVE: dict[str, Any] = {
    **{"queue": False, "trigger_mode": "always_last"},
    **{"show_progress": "hidden", "api_visibility": "private"},
}
BUTTONS = ("As it was", "Scrambled", "Misoriented", "Missing or doubled")
"""For each of `KINDS`."""
START = 11
"""A face that smiles."""
SLIDERS = (
    ("Turn the face to the left (degrees)", -180, 180, 0, 1),
    ("Its size", 0.4, 0.95, 0.7, 0.01),
    ("Move it to the right", -0.2, 0.2, 0, 0.01),
    ("Move it down", -0.2, 0.2, 0, 0.01),
)


def face_page(detectors: Detectors, blocks: gr.Blocks) -> None:
    def answer(state: Any, *pose: Any) -> tuple[Any, ...]:
        try:
            seen = see(detectors, state, *pose)
        except InputError as error:
            return gr.skip(), markup.wrong(error), gr.skip(), gr.skip()
        shown = {name: state[name] for name in ("number", "kind", "parts")}
        shown |= {"picture": to_url(seen.large), "places": seen.places, "back": seen.back}
        shown["answers"] = state.get("changes")  # by hand; more may have been made meanwhile
        return shown, markup.said(_said(seen)), _answers(seen, float(pose[0]), float(pose[1])), _pictures(seen)

    def other(state: Any, kind: str, step: int, *pose: Any) -> tuple[Any, ...]:
        number = state.get("number") if isinstance(state, dict) else START
        return answer(arranged((number + step) % FACES if isinstance(number, int) else START, kind), *pose)

    gr.Markdown(ABOUT)
    with gr.Row():
        with gr.Column(min_width=300):
            pad = _pad(answer(arranged(START), *(start for _, _, _, start, _ in SLIDERS))[0])
            said = gr.HTML()
            with gr.Row(elem_classes="kinds"):
                kinds = {kind: gr.Button(name, size="sm") for kind, name in zip(KINDS, BUTTONS, strict=True)}
                another = gr.Button("Another face", size="sm")
        with gr.Column(min_width=300):
            pose = [gr.Slider(low, high, start, step=step, label=label) for label, low, high, start, step in SLIDERS]
        with gr.Column(min_width=300):
            answers, pictures = gr.HTML(), gr.HTML()
    gr.HTML("".join(f"<p class=models>{escape(about)}</p>" for about in detectors.abouts))
    outputs = [pad, said, answers, pictures]
    blocks.load(answer, [pad, *pose], outputs, **LIVE)
    for part in (pad, *pose):
        part.input(answer, [pad, *pose], outputs, **LIVE)
    for kind, button in kinds.items():
        button.click(lambda state, *pose, kind=kind: other(state, kind, 0, *pose), [pad, *pose], outputs, **LIVE)
    another.click(lambda state, *pose: other(state, "face", 1, *pose), [pad, *pose], outputs, **LIVE)


def _pad(value: dict[str, Any]) -> gr.HTML:
    here = Path(__file__)
    handles = "".join(
        f'<button type="button" class="part" aria-label="{slot}: arrow keys move it, comma and full stop turn it, '
        f'delete takes it away"></button>'
        for slot in SLOTS
    )
    template = here.with_name("face.html").read_text(encoding="utf-8").replace("PARTS", handles)
    return gr.HTML(value, html_template=template, js_on_load=here.with_name("face.js").read_text(encoding="utf-8"))


def _said(seen: Seen) -> str:
    told = f"The capsule says {_verdict(seen.capsule)}"
    return f"{told}, the CNN {_verdict(seen.cnn)}." if seen.cnn else f"{told}."


def _verdict(found: Detection) -> str:
    return "a face" if float(found.likelihoods[0]) > 0.5 else "no face"


def _answers(seen: Seen, orientation: float, size: float) -> str:
    scores = {"capsule": seen.capsule.likelihoods} | ({"CNN": seen.cnn.likelihoods} if seen.cnn else {})
    rows = [("capsule", seen.capsule), *([("CNN", seen.cnn)] if seen.cnn else [])]
    lines = "".join(f"<p class=detection><b>{name}</b> {_detection(found)}</p>" for name, found in rows)
    truth = f"<p class=detection><b>true</b> [–, {orientation:.0f}°, {size:.2f}]</p>"
    return markup.bars(("face",), scores, [0]) + lines + truth


def _detection(found: Detection) -> str:
    _, _, orientation, size, _ = found.poses[0].tolist()
    return f"[{float(found.likelihoods[0]):.2f}, {round(orientation)}°, {size:.2f}]"


def _pictures(seen: Seen) -> str:
    captioned: list[tuple[str, torch.Tensor]] = [("what they see", seen.small)]
    if seen.reconstruction is not None:
        captioned.append(("what the face capsule draws", seen.reconstruction))
    return markup.pictures(*captioned)
