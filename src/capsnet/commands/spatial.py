"""`capsnet reproduce spatial`: the claim of capsule networks, tested; docs/claims.md says how."""

import json
import sys
from pathlib import Path

from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.experiments.records import current_commit
from capsnet.experiments.spatial.plan import SEEDS, runs_of
from capsnet.experiments.spatial.records import is_current, read_records
from capsnet.experiments.spatial.summary import Records, verdict
from capsnet.experiments.spatial.tables import as_json, as_text
from capsnet.streams import tell

NAME = "spatial"
RUNS = Path("runs") / "spatial"


def reproduce_spatial(
    parts: tuple[str, ...],
    models: tuple[str, ...],
    *,
    seeds: int | None,
    epochs: int | None,
    device: str,
    out: Path,
    only_table: bool,
    in_json: bool,
) -> None:
    """Make the runs that are missing, in an order that fills all tables soon, and print the tables."""
    chosen = runs_of(parts, models, seeds or SEEDS, epochs)
    read_records(out)  # a damaged one is told now, not after hours of training
    if not only_table:
        from capsnet.experiments.making import Settings  # with Lightning, which tables do not need
        from capsnet.experiments.spatial.reproduce import reproduce

        typed = " ".join(["capsnet", *sys.argv[1:]])
        settings = Settings(
            results=out, folder=RUNS, device=pick_device(device), command=typed, commit=current_commit()
        )
        for number, run in enumerate(chosen):
            try:
                if reproduce(run, settings):
                    tell(f"{number + 1} of {len(chosen)} runs are there")
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {typed}") from None
    found = read_records(out)
    for record in found:
        if not is_current(record):
            told = f"{record['variant']} on {record['task']} with seed {record['seed']}"
            tell(f"not counted, as it was defined otherwise then: {told}")
    records = Records(found, epochs)
    print(json.dumps(as_json(records)) if in_json else f"{verdict(records)}\n\n{as_text(records, parts)}")


def refuse(owner: str, **flags: object) -> None:
    """Raises `InputError` if flags are given that belong to something else."""
    for name, value in flags.items():
        if value:
            raise InputError(f"--{name} belongs to: {owner}")
