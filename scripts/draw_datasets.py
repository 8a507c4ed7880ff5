"""Draw a few images of each data set: the picture in docs/datasets.md, or that of any sets.

python scripts/draw_datasets.py                                 # docs/datasets.png: all that needs no files
python scripts/draw_datasets.py FILE.png smallnorb:FOLDER hub:cifar10 …
"""

import sys
from pathlib import Path

import capsnet
from capsnet.data import DATASETS
from capsnet.insight.datasets import draw_datasets


def main() -> None:
    names = sys.argv[2:] or list(DATASETS)
    file = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "datasets.png")
    try:
        draw_datasets({name: capsnet.open_dataset(name, "test") for name in names}).savefig(file)
    except capsnet.InputError as error:
        raise SystemExit(str(error)) from None
    print(file)


if __name__ == "__main__":
    main()
