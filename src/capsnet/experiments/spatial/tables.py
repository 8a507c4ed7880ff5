"""The tables of the test of the claim, as Markdown, and all numbers as JSON."""

import statistics
from collections.abc import Sequence
from typing import Any

from capsnet.experiments.spatial.attacks import ATTACKS, REACHES
from capsnet.experiments.spatial.detection import RANGES
from capsnet.experiments.spatial.plan import FEWER, IMAGES, MAIN, NON_FACES, PARTS, VARIANTS
from capsnet.experiments.spatial.readout import FACTORS
from capsnet.experiments.spatial.summary import (
    GIVEN_ERROR,
    Records,
    images_needed,
    measured,
    plus_minus,
    unseen,
)

Rows = list[list[str]]


def tables(records: Records) -> dict[str, str]:
    """A table for each of the parts, one for painted faces, and one for what a difference is due to."""
    made = {
        "a": as_table(["model", *NON_FACES, "mean"], [_unseen_row(records, name) for name in MAIN]),
        "b": as_table(["pose", *_abouts(MAIN)], _range_rows(records)),
        "c": as_table(["model", *(f"{count:,}" for count in (*FEWER, IMAGES)), "images needed"], _image_rows(records)),
        "d": as_table(["model", "orientation, °", "size, %", "position, % of the image"], _pose_rows(records)),
        "e": as_table(["model", "read from", *FACTORS], _readout_rows(records)),
        "f": as_table(["attack", "reach", *_abouts(MAIN)], _attack_rows(records)),
        "painted": as_table(["model", "drawn", "painted"], _painted_rows(records)),
        "due to": as_table(["model", *NON_FACES, "mean", "error, all kinds seen"], _due_rows(records)),
    }
    assert set(made) >= set(PARTS)
    return made


def as_json(records: Records) -> dict[str, Any]:
    """All numbers behind the tables: for each model and task, mean, deviation and number of seeds of every measure."""
    found: dict[str, Any] = {}
    for record in records.records:
        group = found.setdefault(record["variant"], {}).setdefault(record["task"], {})
        for name, value in _flat(record["measures"]).items():
            group.setdefault(name, []).append(value)
    return {
        variant: {task: {name: _spread(values) for name, values in group.items()} for task, group in tasks.items()}
        for variant, tasks in found.items()
    }


def mean_unseen(records: Records, variant: str) -> list[float]:
    """For each seed that has all three runs: the mean over the kinds of non-faces that were left out."""
    by_seed: dict[int, list[float]] = {}
    for kind in NON_FACES:
        for record in records.of(variant, f"without-{kind}"):
            value = unseen(kind)(record)
            if value is not None:
                by_seed.setdefault(record["seed"], []).append(value)
    return [statistics.mean(values) for values in by_seed.values() if len(values) == len(NON_FACES)]


def _unseen_row(records: Records, variant: str) -> list[str]:
    cells = [plus_minus(records.values(variant, f"without-{kind}", unseen(kind))) for kind in NON_FACES]
    return [VARIANTS[variant].about, *cells, plus_minus(mean_unseen(records, variant))]


def _due_rows(records: Records) -> Rows:
    errors = {name: plus_minus(records.values(name, "all", measured("error"))) for name in VARIANTS}
    return [[*_unseen_row(records, name), errors[name]] for name in VARIANTS]


def _painted_rows(records: Records) -> Rows:
    def cells(variant: str) -> list[str]:
        return [plus_minus(records.values(variant, task, measured("error"))) for task in ("all", "painted")]

    return [[VARIANTS[variant].about, *cells(variant)] for variant in MAIN]


def _range_rows(records: Records) -> Rows:
    def cell(variant: str, name: str) -> str:
        found, area = (records.values(variant, "all", measured("ranges", name, key)) for key in ("found", "auc"))
        return f"{plus_minus(found)} / {plus_minus(area)}" if found else "–"

    return [[name, *(cell(variant, name) for variant in MAIN)] for name in RANGES]


def _image_rows(records: Records) -> Rows:
    def needed(variant: str) -> str:
        found = list(images_needed(records, variant).values())
        complete = records.of(variant, "all") and all(records.of(variant, f"images-{count}") for count in FEWER)
        return f"{plus_minus(found, 0)}" if found else (f"more than {IMAGES:,}" if complete else "–")

    def row(variant: str) -> list[str]:
        fewer = [plus_minus(records.values(variant, f"images-{count}", measured("error"))) for count in FEWER]
        whole = plus_minus(records.values(variant, "all", measured("error")))
        return [VARIANTS[variant].about, *fewer, whole, needed(variant)]

    return [row(variant) for variant in MAIN]


def _pose_rows(records: Records) -> Rows:
    def cells(variant: str) -> list[str]:
        keys = ("orientation", "size", "position")
        return [
            plus_minus(records.values(variant, "all", measured("ranges", "as in training", key)), 2) for key in keys
        ]

    return [[VARIANTS[variant].about, *cells(variant)] for variant in MAIN]


def _readout_rows(records: Records) -> Rows:
    rows = []
    for variant in MAIN:
        kinds = ("all",) if VARIANTS[variant].is_capsnet else ("all", "16 components")
        for kind in kinds:
            source = "winning capsule" if VARIANTS[variant].is_capsnet else "last hidden layer"
            source += "" if kind == "all" else f", {kind}"
            cells = [plus_minus(records.values(variant, "digits", measured("r2", kind, name)), 2) for name in FACTORS]
            rows.append([VARIANTS[variant].about, source, *cells])
    return rows


def _attack_rows(records: Records) -> Rows:
    def cell(variant: str, name: str) -> str:
        error, caught = (_attack(records, variant, name, key) for key in ("error", "caught"))
        return f"{plus_minus(error)}, caught {plus_minus(caught)}" if caught else plus_minus(error)

    rows = [
        ["none", "", *(plus_minus(records.values(name, "digits", measured("adversarial", "error"))) for name in MAIN)]
    ]
    for attack in ATTACKS:
        for reach in REACHES:
            cells = [cell(variant, f"{attack.name} {reach}") for variant in MAIN]
            rows.append([attack.name, f"{reach}", *cells])
    return rows


def _attack(records: Records, variant: str, name: str, key: str) -> list[float]:
    return records.values(variant, "digits", measured("adversarial", "attacks", name, key))


def _abouts(names: Sequence[str]) -> list[str]:
    return [VARIANTS[name].about for name in names]


def as_table(head: list[str], rows: Rows) -> str:
    """In Markdown, and readable as it is."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _flat(measures: dict[str, Any], head: str = "") -> dict[str, float]:
    flat = {}
    for name, value in measures.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{head}{name} / ")
        elif isinstance(value, int | float):
            flat[f"{head}{name}"] = float(value)
    return flat


def _spread(values: list[float]) -> dict[str, float | int | None]:
    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 4), "std": deviation, "seeds": len(values)}


TITLES = {
    **{part: f"({part}) {about}" for part, about in PARTS.items()},
    "painted": "Faces that are not drawn but painted",
    "due to": "What a difference is due to",
}
NOTES = {
    "a": "Percent of the non-faces of the kind that was left out of training that are taken for faces, where 5 % of "
    "the faces are rejected.",
    "b": "Percent of the faces that are still found at the same threshold / area under the curve of faces against "
    "non-faces under the same poses, in percent. 50 is chance.",
    "c": f"Percent of test images that are wrong (chance: 50), by number of training images, and how many are needed "
    f"for {GIVEN_ERROR:.0f} %.",
    "d": "Mean absolute errors on test faces under poses as in training.",
    "e": "R², 1 at best.",
    "f": "Percent of the first 500 test digits that are wrong; of those, percent caught by their reconstruction at 5 % "
    "false alarms.",
    "painted": "Percent of test images that are wrong (chance: 50). Drawn faces are light strokes on black, as MNIST's "
    "digits are; painted ones have skin, hair and a background.",
    "due to": "As in (a); each row changes one thing. Last, the error where all kinds of non-faces were in training.",
}


def as_text(records: Records, parts: Sequence[str] = ()) -> str:
    """The tables of these parts with their titles; all, if there are none."""
    made = tables(records)
    chosen = [name for name in made if not parts or name in parts]
    return "\n\n".join(f"{TITLES[name]}\n{NOTES[name]}\n\n{made[name]}" for name in chosen)
