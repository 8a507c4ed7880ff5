"""Write docs/robustness.md and its figure: the CapsNet and the CNN in the package, on the first 2,000 test digits.

Of runs of your own, it is the first 2,000 test images of what the first was trained on.

.venv/bin/python scripts/robustness.py                    # measure, which takes two minutes, and write them
.venv/bin/python scripts/robustness.py CAPSNET CNN OUT    # the same of two runs of your own, into a folder
"""

import sys
from datetime import date
from pathlib import Path

import torch

from capsnet import pretrained, runs, tune_allocator
from capsnet.data import ImageSet
from capsnet.insight.robustness import draw_robustness, robustness_table
from capsnet.insight.style import as_bytes
from capsnet.robustness import measure_robustness

ROOT = Path(__file__).parents[1]
IMAGES = 2000
BEGIN = "<!-- scripts/robustness.py writes what follows -->\n\n"


def main() -> None:
    own = [Path(word) for word in sys.argv[1:]]
    if len(own) not in (0, 3):
        raise SystemExit(__doc__)
    folders = own[:2] or [pretrained.folder("mnist"), pretrained.folder("mnist-cnn")]
    out = own[2] if own else ROOT / "docs"
    capsnet, cnn = (runs.open_run(folder) for folder in folders)
    digits = runs.open_split(folders[0], capsnet.data or "mnist")
    assert isinstance(digits, ImageSet)
    test_set = digits.first(IMAGES)
    models = {"CapsNet": capsnet.model, "CNN": cnn.model}
    rows = measure_robustness(models, test_set)
    runs.make_folder(out)
    runs.write_atomically(out / "robustness.png", as_bytes(draw_robustness(rows), "png"))
    page = out / "robustness.md"
    about = page.read_text().partition(BEGIN)[0] if page.exists() else ""
    made = runs.environment(torch.device("cpu"))
    sizes = ", ".join(f"{name} {sum(p.numel() for p in model.parameters()):,}" for name, model in models.items())
    where = f"{made['device']}, PyTorch {made['torch']}, {date.today()}"
    measured = f"{len(test_set):,} test digits, {where}. Parameters: {sizes}.\n\n"
    runs.write_atomically(page, (about + BEGIN + measured + robustness_table(rows)).encode())
    print(page)


if __name__ == "__main__":
    tune_allocator()
    main()
