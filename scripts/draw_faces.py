"""Draw faces and each kind of non-face: the picture docs/faces.png.

python scripts/draw_faces.py [FILE.png]
"""

import sys
from pathlib import Path

from capsnet.data.faces import KINDS, make_faces
from capsnet.insight.datasets import COLUMNS, draw_datasets

LARGE = 112


def main() -> None:
    file = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "faces.png")
    rows = {kind: make_faces(COLUMNS, "test", kinds=(kind,), size=LARGE, channels=3, painted=True) for kind in KINDS}
    rows["drawn with lines"] = make_faces(COLUMNS, "test", size=LARGE)
    rows["as models see them"] = make_faces(COLUMNS, "test")
    draw_datasets(rows).savefig(file)
    print(file)


if __name__ == "__main__":
    main()
