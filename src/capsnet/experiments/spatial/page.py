"""The report: what holds of the claim, what does not, and what a difference is due to. All numbers are from records."""

import statistics
from collections.abc import Sequence

from capsnet.experiments.spatial.cost import Cost, measuring_share, pace, part_rows, step_rows
from capsnet.experiments.spatial.plan import RECIPES
from capsnet.experiments.spatial.summary import CAPSULE, CNN, Comparison, Records, runs_there, verdict
from capsnet.experiments.spatial.tables import NOTES, TITLES, as_table, mean_unseen, tables

FIGURES = {"a": "non-faces", "b": "outside", "c": "images", "e": "turned-digits", "f": "attacks"}

HEAD = """# Does a capsule network know how parts stand to each other?

{verdict}

This page is written by `scripts/claims.py` from the records in `results/spatial/`, which `capsnet reproduce
spatial` makes; no number in it was typed. Mean ± standard deviation over seeds; runs so far: {runs}. A difference
is called one where it is larger than twice its standard error and there are at least two seeds of both.

The claim, as it is told: a CNN asks whether there are eyes, a nose and a mouth; a capsule network also knows how
they stand to each other, and reports *[likelihood, orientation, size]*. So here are [faces](datasets.md), and
non-faces made of the same parts: scrambled, misoriented, missing or doubled.

![Faces, the three kinds of non-faces made of the same parts, and what models see](faces.png)
"""

COST = """## What it costs

Milliseconds of a training step of 64 images on one core{where}: median (least to most) of nine turns, all models in
one run of `scripts/time_spatial.py`.

{steps}

Hours that training takes one core at these rates{measuring}. Two calls, each with half of the `--models`, keep two
cores busy.

{parts}
"""

METHOD = """## How it was measured

**The detector** is a CapsNet with two class capsules, for a face and for everything else. Two, because with a
single one the softmax of routing has no choice, and routing does nothing. The likelihood is the length of the face
capsule; the pose (position, orientation, size, shear) is a linear read-out of its direction, a vector of length
one. **The CNN** (three 3×3 convolutions with max-pooling, a dense layer, sigmoids) has the same number of
parameters as the CapsNet with its decoder, {pace} (*What it costs*), and has the same heads on its
last hidden layer. Both learn the poses of faces beside the classes.

**Training:** {capsule} for the CapsNet, {cnn} for the CNN; both tuned alike on validation images, which have part
shapes of their own, as the test images have (`scripts/tune_spatial.py`; every try is in
`results/spatial/tuning.jsonl`). Smaller training sets are seen more often, by the root of how much smaller they
are.

**Digits** are MNIST's, shifted by up to 2 pixels in training. For the read-outs they are turned by up to 30°,
scaled by up to 25 %, sheared by up to 0.3 and shifted by up to 3 pixels, all at once and at random; a ridge
regression for each class, with its penalty chosen on a part of the training digits, is tested on test digits.
Orientation and shear include what the writer did himself, which nobody knows, so that 1 cannot be reached. The
attacks push the best wrong score above the right one, so that no model is safe because its loss is flat.
"""


def page(records: Records, drawn: Sequence[str], cost: Cost | None) -> str:
    """docs/claims.md, with the figures that were drawn and what was measured of the cost."""
    parts = [HEAD.format(verdict=verdict(records), runs=runs_there(records))]
    for name, table in tables(records).items():
        picture = FIGURES.get(name)
        shown = f"\n![{TITLES[name]}](claims/{picture}.png)\n" if picture in drawn else ""
        due = f"{_due(records)}\n\n" if name == "due to" else ""
        parts.append(f"## {TITLES[name]}\n\n{due}{NOTES[name]}\n\n{table}\n{shown}")
    parts.append(_cost(records, cost))
    recipes = {("capsule" if is_capsnet else "cnn"): _recipe(is_capsnet) for is_capsnet in RECIPES}
    return "\n".join([*parts, METHOD.format(**recipes, pace=pace(cost))])


def _cost(records: Records, cost: Cost | None) -> str:
    environment = cost["environment"] if cost else {}
    where = f" ({environment['device']}, PyTorch {environment['torch']}, {environment['date']})" if cost else ""
    share = measuring_share(records)
    measuring = "" if share is None else f"; measuring took {share:.0%} as long in the records".replace("%", " %")
    steps = as_table(["model", "parameters", "faces", "digits", "seeds"], step_rows(records, cost))
    return COST.format(
        where=where, measuring=measuring, steps=steps, parts=as_table(["part", "runs", "hours"], part_rows(cost))
    )


def _recipe(is_capsnet: bool) -> str:
    recipe = RECIPES[is_capsnet]
    return f"{recipe.epochs} epochs at a rate of up to {recipe.learning_rate:g}"


def _due(records: Records) -> str:
    """What each ingredient changes in the mean over the kinds of non-faces that were not in training."""

    def compared(about: str, first: str, second: str) -> str:
        one, other = mean_unseen(records, first), mean_unseen(records, second)
        if not one or not other:
            return f"{about}: not measured yet"
        difference = statistics.mean(one) - statistics.mean(other)
        found = Comparison("", "", one, other)
        clear = "" if found.winner else ", which is no clear difference"
        return f"{about}: {difference:+.1f} percentage points{clear}"

    told = [
        compared("CapsNet instead of CNN", CAPSULE, CNN),
        compared("three routing iterations instead of one", CAPSULE, "capsnet-r1-rec"),
        compared("reconstruction, in the CapsNet", CAPSULE, "capsnet-r3"),
        compared("reconstruction, in the CNN", "cnn-rec", CNN),
        compared("margin loss instead of cross-entropy, in the CapsNet", CAPSULE, "capsnet-entropy"),
        compared("margin loss instead of cross-entropy, in the CNN", "cnn-margin", CNN),
    ]
    return (
        "Non-faces of unseen kinds that are taken for faces, mean over the kinds (less is better): "
        + "; ".join(told)
        + "."
    )
