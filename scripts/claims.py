"""Write docs/claims.md and its figures from the records of `capsnet reproduce spatial`.

.venv/bin/python scripts/claims.py            # write them
.venv/bin/python scripts/claims.py --check    # exit 1 if the page is not up to date
"""

import sys
from pathlib import Path

from capsnet import runs
from capsnet.experiments.spatial.cost import read_cost
from capsnet.experiments.spatial.figures import figures
from capsnet.experiments.spatial.page import page
from capsnet.experiments.spatial.records import read_records
from capsnet.experiments.spatial.summary import Records
from capsnet.insight.style import as_bytes

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "claims.md", ROOT / "docs" / "claims"


def main() -> None:
    records = Records(read_records(ROOT / "results"))
    drawn = figures(records)
    new = page(records, list(drawn), read_cost(ROOT / "results"))
    old = PAGE.read_text() if PAGE.exists() else ""
    if "--check" in sys.argv:
        raise SystemExit(
            0 if new == old else "docs/claims.md is not up to date; run: .venv/bin/python scripts/claims.py"
        )
    runs.make_folder(PICTURES)
    for name, draw in drawn.items():
        runs.write_atomically(PICTURES / f"{name}.png", as_bytes(draw(False), "png"))
    runs.write_atomically(PAGE, new.encode())
    print(PAGE)


if __name__ == "__main__":
    main()
