"""`capsnet reproduce`"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsnet.commands import optional
from capsnet.commands.spatial import NAME as SPATIAL
from capsnet.commands.spatial import refuse, reproduce_spatial
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.experiments.records import FOLDER, current_commit, is_current, read_records
from capsnet.experiments.rows import Row, find_rows
from capsnet.experiments.table import format_table, make_table


@dataclass(frozen=True)
class Reproduce:
    """Make the runs behind the paper's tables that are still missing, and print the tables beside the paper's."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ROW")] = ()
    """Rows of the tables; all, if none is named. Or spatial alone: the claim of capsule networks, tested on faces."""
    seeds: Annotated[int | None, optional("INT")] = None
    """Runs of each row, with the seeds 0, 1, …; by default as many as the row wants, mostly three."""
    epochs: Annotated[int | None, optional("INT")] = None
    """Train for so many epochs instead of the row's own; such runs get a line of their own."""
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

    def run(self) -> None:
        if any(number is not None and number < 1 for number in (self.seeds, self.epochs)):
            raise InputError("seeds and epochs must be at least 1")
        if SPATIAL in self.rows:
            refuse("the paper's tables", full=self.full, smallnorb=self.smallnorb, affnist=self.affnist)
            self._test_claim()
            return
        refuse(f"capsnet reproduce {SPATIAL}", parts=self.parts, models=self.models)
        rows = find_rows(self.rows)
        read_records(self.out)  # a damaged one is told now, not after hours of training
        if not self.table:
            self._make_runs(rows)
        records = read_records(self.out)
        if not records:
            print(f"there are no records in {self.out / FOLDER}; --out names the folder of another", file=sys.stderr)
        for record in records:
            if record["row"] in {row.name for row in rows} and not is_current(record):
                run = f"{record['row']} with seed {record['seed']}, {record['epochs']} epochs"
                print(f"not counted, as the row was defined otherwise then: {run}", file=sys.stderr)
        lines = make_table(rows, records)
        print(json.dumps([line.as_json() for line in lines]) if self.json else format_table(lines))

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

    def _make_runs(self, rows: list[Row]) -> None:
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
        for row in rows:
            try:
                for seed in range(self.seeds or row.seeds):
                    reproduce(row, seed, self.epochs or row.recipe.epochs, settings)
            except NotAtHandError as error:
                if self.rows or not row.needs:
                    raise
                print(f"{row.name} left out: {error}", file=sys.stderr)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {typed}") from None
