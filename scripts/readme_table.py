"""Write the table of results in the README from the records of the runs.

.venv/bin/python scripts/readme_table.py            # write it
.venv/bin/python scripts/readme_table.py --check    # exit 1 if it is not up to date
"""

import sys
from pathlib import Path

from capsnet.experiments.records import read_records
from capsnet.experiments.rows import ROWS
from capsnet.experiments.table import format_table, make_table

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: scripts/readme_table.py writes this table -->\n\n", "\n\n<!-- end of results -->"


def with_table(text: str, table: str) -> str:
    """The text with `table` between the markers, in place of what was there."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit("the README has lost its markers:\n" + BEGIN + END)
    return before + BEGIN + table + END + after


def write(root: Path, check: bool = False) -> None:
    """Into the README of a checkout. Raises `SystemExit` if that is only to be checked, and is not up to date."""
    readme = root / "README.md"
    old = readme.read_text()
    new = with_table(old, format_table(make_table(ROWS.values(), read_records(root / "results"))))
    if new != old and check:
        raise SystemExit("the README's table is not up to date; run: .venv/bin/python scripts/readme_table.py")
    if new != old:
        readme.write_text(new)


if __name__ == "__main__":
    write(ROOT, check="--check" in sys.argv)
