"""`capsnet reproduce`"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsnet.checks import whole
from capsnet.commands import optional
from capsnet.commands.spatial import NAME as SPATIAL
from capsnet.commands.spatial import refuse, reproduce_spatial
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.experiments.records import FOLDER, current_commit, is_current, read_records
from capsnet.experiments.rows import Row, find_rows
from capsnet.experiments.table import format_table, make_table
from capsnet.streams import tell


@dataclass(frozen=True)
class Reproduce:
    """Make the runs behind the paper's tables that are still missing, and print the tables beside the paper's."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ROW")] = ()
    """Rows of the tables; all, if none is named. Or spatial alone: the claim of capsule networks, tested on faces."""
    seeds: Annotated[int | None, optional("INT")] = None
    """Runs of each row, with the seeds 0, 1, …; by default as many as the row wants, mostly three."""
    epochs: Annotated[int | None, optional("INT")] = None
    """Train for so many epochs instead of the row's own; such runs get a line of their own."""
    budget: Annotated[float | None, optional("FLOAT")] = None
    """Seconds that all of it may take. The speed is measured, and each row gets as many of its epochs as there is time
    for."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    out: Path = Path("results")
    """Where the records are kept: OUT/runs/*.json."""
    full: bool = False
    """Test pairs of digits on ten million of them, as the paper does, instead of the first 100,000."""
    smallnorb: Annotated[Path | None, optional("FOLDER")] = None
    """The folder with the published files of smallNORB."""
    affnist: Annotated[Path | None, optional("PATH")] = None
    """The published test set of affNIST, a file or the folder that it is in: its rows are tested on that, too."""
    parts: tuple[str, ...] = ()
    """Of spatial: which parts, a to f; all, if none is named."""
    models: tuple[str, ...] = ()
    """Of spatial: which of the models that are compared, capsnet-r3-rec and cnn for example; all, if none is named."""
    table: bool = False
    """Print the table of what was run before, and run nothing."""
    json: bool = False
    """Print the table as JSON: a list of {row, data, model, runs, epochs, mean, std, paper}, errors in percent."""

    def run(self) -> int:
        for name, value, most in (("--seeds", self.seeds, 10_000), ("--epochs", self.epochs, 1_000_000)):
            whole(name, 1 if value is None else value, 1, most)
        if self.budget is not None and not (0 < self.budget < math.inf and self.epochs is None):
            raise InputError("a budget is a number of seconds above 0, and chooses the epochs: leave --epochs out")
        if SPATIAL in self.rows:
            tables = {"full": self.full, "smallnorb": self.smallnorb, "affnist": self.affnist, "budget": self.budget}
            refuse("the paper's tables", **tables)
            self._test_claim()
            return 0
        refuse(f"capsnet reproduce {SPATIAL}", parts=self.parts, models=self.models)
        rows = find_rows(self.rows)
        read_records(self.out)  # a damaged one is told now, not after hours of training
        failed = 0 if self.table else self._make_runs(rows)
        records = read_records(self.out)
        if not records:
            tell(f"there are no records in {self.out / FOLDER}; --out names the folder of another")
        for record in records:
            if record["row"] in {row.name for row in rows} and not is_current(record):
                run = f"{record['row']} with seed {record['seed']}, {record['epochs']} epochs"
                tell(f"not counted, as the row was defined otherwise then: {run}")
        lines = make_table(rows, records)
        print(json.dumps([line.as_json() for line in lines]) if self.json else format_table(lines))
        return 1 if failed else 0

    def _test_claim(self) -> None:
        if len(self.rows) > 1:
            raise InputError(f"{SPATIAL} is reproduced alone; name the rows of the tables in another call")
        reproduce_spatial(
            self.parts,
            self.models,
            seeds=self.seeds,
            epochs=self.epochs,
            device=self.device,
            out=self.out,
            only_table=self.table,
            in_json=self.json,
        )

    def _make_runs(self, rows: list[Row]) -> int:
        """Returns how many failed, of those within a budget; otherwise the first that fails raises."""
        # with Lightning, which the table does not need
        from capsnet.experiments.reproduce import NotAtHandError, TableSettings, check_files, reproduce

        typed = " ".join(["capsnet", *sys.argv[1:]])
        settings = TableSettings(
            results=self.out,
            device=pick_device(self.device),
            full=self.full,
            smallnorb=self.smallnorb,
            affnist=self.affnist,
            command=typed,
            commit=current_commit(),
        )
        check_files(settings)  # now, not after hours of other rows
        if self.budget is not None:
            from capsnet.experiments.budget import reproduce_within

            at_hand = [row for row in rows if self.rows or not row.needs]
            return reproduce_within(self.budget, at_hand, self.seeds, settings)
        for row in rows:
            try:
                for seed in range(self.seeds or row.seeds):
                    reproduce(row, seed, self.epochs or row.recipe.epochs, settings)
            except NotAtHandError as error:
                if self.rows or not row.needs:
                    raise
                tell(f"{row.name} left out: {error}")
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {typed}") from None
        return 0
