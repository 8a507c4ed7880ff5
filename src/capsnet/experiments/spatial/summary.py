"""From records to numbers: means and deviations over seeds, and whether a difference is one."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from capsnet.checks import is_number
from capsnet.experiments.spatial.plan import FEWER, IMAGES, NON_FACES, VARIANTS
from capsnet.experiments.spatial.records import is_current

Record = dict[str, Any]
Measure = Callable[[Record], float | None]
CAPSULE, CNN = "capsnet-r3-rec", "cnn"
"""Whom the verdict is between: the network of the paper, and the usual one."""
GIVEN_ERROR = 10.0
"""Percent, the accuracy for which images are counted."""


class Records:
    """The records that count: of runs that still mean what they meant, of their tasks' epochs or so many instead."""

    def __init__(self, records: Iterable[Record], epochs: int | None = None) -> None:
        self.records = [record for record in records if is_current(record) and record.get("epochs") == epochs]

    def of(self, variant: str, task: str) -> list[Record]:
        """By seed."""
        found = [record for record in self.records if (record["variant"], record["task"]) == (variant, task)]
        return sorted(found, key=lambda record: record["seed"])

    def values(self, variant: str, task: str, measure: Measure) -> list[float]:
        """A number for each seed; none where a run has no such number."""
        return [value for record in self.of(variant, task) if (value := measure(record)) is not None]


def measured(*keys: str) -> Measure:
    """What a record holds under these keys of its measures; None where it holds nothing."""

    def read(record: Record) -> float | None:
        value: Any = record["measures"]
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return float(value) if is_number(value) else None

    return read


@dataclass(frozen=True)
class Comparison:
    """One number of capsules and CNN, a value for each seed. `better` is -1 where less is better, 1 where more is."""

    about: str
    unit: str
    capsule: Sequence[float]
    cnn: Sequence[float]
    better: int = -1
    digits: int = 1

    @property
    def winner(self) -> str | None:
        """Who is better by more than twice the standard error of the difference; None if neither, or too few runs."""
        if min(len(self.capsule), len(self.cnn)) < 2:
            return None
        difference = statistics.mean(self.capsule) - statistics.mean(self.cnn)
        error = math.sqrt(sum(statistics.variance(x) / len(x) for x in (self.capsule, self.cnn)))
        if abs(difference) <= 2 * error:
            return None
        return "CapsNet" if difference * self.better > 0 else "CNN"

    def told(self) -> str:
        sides = (
            f"{name} {plus_minus(x, self.digits)}{self.unit}"
            for name, x in (("CapsNet", self.capsule), ("CNN", self.cnn))
        )
        return f"{self.about} ({', '.join(sides)})"


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation of the sample; the one value where there is but one, a dash where there is none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def comparisons(records: Records) -> list[Comparison]:
    """The numbers that the verdict is about, part by part; only those for which there are runs of both."""

    def both(about: str, unit: str, task: str, measure: Measure, better: int = -1, digits: int = 1) -> Comparison:
        capsule, cnn = (records.values(name, task, measure) for name in (CAPSULE, CNN))
        return Comparison(about, unit, capsule, cnn, better, digits)

    found = [
        both(f"taking {kind} faces for faces, a kind not in training", " %", f"without-{kind}", unseen(kind))
        for kind in NON_FACES
    ]
    for name in ("turned 30 to 60°", "smaller (0.42 to 0.58)", "larger (0.78 to 0.94)", "far aside (0.14 to 0.20)"):
        about = f"telling faces from non-faces {name} (area under the curve)"
        found.append(both(about, " %", "all", measured("ranges", name, "auc"), 1))
    for what, task in (("drawn", "all"), ("painted", "painted")):
        found.append(
            both(f"errors on {what} faces and non-faces, all kinds in training", " %", task, measured("error"))
        )
    capsule, cnn = (list(images_needed(records, name).values()) for name in (CAPSULE, CNN))
    found.append(Comparison(f"images needed for an error of {GIVEN_ERROR:.0f} %", "", capsule, cnn, digits=0))
    for what, unit in (("orientation", "°"), ("size", " %"), ("position", " % of the image")):
        found.append(both(f"reading the {what}", unit, "all", measured("ranges", "as in training", what)))
    for factor in ("rotation", "scale", "shear", "shift right", "stroke width"):
        about = f"a linear read-out of a digit's {factor} (R²)"
        found.append(both(about, "", "digits", measured("r2", "all", factor), 1, digits=2))
    for name in ("FGSM 0.1", "PGD 0.1"):
        found.append(both(f"errors under {name}", " %", "digits", measured("adversarial", "attacks", name, "error")))
    return [comparison for comparison in found if comparison.capsule and comparison.cnn]


def unseen(kind: str) -> Measure:
    return measured("false_accepts", kind)


def images_needed(records: Records, variant: str) -> dict[int, float]:
    """For each seed with all runs: how many images bring the error down to `GIVEN_ERROR`; left out where none did.

    Between two sizes of the training set, the error is taken for a line over the logarithm of the size.
    """
    curves: dict[int, list[tuple[int, float]]] = {}
    for count in (*FEWER, IMAGES):
        for record in records.of(variant, "all" if count == IMAGES else f"images-{count}"):
            error = measured("error")(record)
            if error is not None:
                curves.setdefault(record["seed"], []).append((count, error))
    needed = {}
    for seed, curve in curves.items():
        if len(curve) < len(FEWER) + 1:
            continue
        for (few, before), (many, after) in itertools.pairwise(curve):
            if after <= GIVEN_ERROR < before:
                share = (before - GIVEN_ERROR) / (before - after)
                needed[seed] = few * (many / few) ** share
                break
        else:
            if curve[0][1] <= GIVEN_ERROR:
                needed[seed] = float(curve[0][0])
    return needed


def verdict(records: Records) -> str:
    """Who wins how often, and where, beginning with the CNN; what is not clear is said to be so."""
    found = comparisons(records)
    if not found:
        return "No runs yet: `capsnet reproduce spatial` makes them."
    places = {who: [each.told() for each in found if each.winner == who] for who in ("CNN", "CapsNet", None)}
    won, unclear = (f"the {who} wins {len(places[who])}" for who in ("CNN", "CapsNet")), len(places[None])
    told = [f"**Of {len(found)} comparisons {', '.join(won)}, and {unclear} show no clear difference.**"]
    for who, where in places.items():
        head = f"The {who} is better in:" if who else "No clear difference, or too few runs to tell:"
        told += ["\n".join([head, "", *(f"* {place}" for place in where)])] if where else []
    return "\n\n".join(told)


def runs_there(records: Records) -> str:
    """How many seeds each model has, for the head of the page."""
    counts = {
        name: len({record["seed"] for record in records.records if record["variant"] == name}) for name in VARIANTS
    }
    return ", ".join(f"{name} {count}" for name, count in counts.items())
