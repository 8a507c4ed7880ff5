import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import capsnet
from capsnet.insight.datasets import draw_datasets, sample_rows


def test_a_row_shows_each_class_in_turn():
    labels = torch.tensor([2, 2, 0, 1, 1, 1])
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 20, 20).contiguous()
    (row,) = sample_rows("things", capsnet.ImageSet(images, labels, ("a", "b", "c", "none")))
    assert row.titles == ["a", "b", "c", "b", "c", "b"]
    assert row.images[:, 0, 0, 0].tolist() == [2, 3, 0, 4, 1, 5]


def test_pairs_are_shown_with_each_digit_alone():
    pairs = capsnet.open_dataset("multimnist", "test")
    rows = sample_rows("multimnist", pairs)
    first = pairs.batch(0, 10)
    assert rows[0].titles[0] == f"{first.labels[0, 0]} + {first.labels[0, 1]}"
    for row, images in zip(rows, (first.images, first.digits[:, 0], first.digits[:, 1]), strict=True):
        assert row.images.equal(images)


def test_the_figure_shows_grey_colour_and_other_images():
    sets = {
        f"{channels} channels": capsnet.ImageSet(
            torch.randint(256, (3, channels, 20, 20), dtype=torch.uint8), torch.zeros(3).long(), ("a",)
        )
        for channels in (1, 2, 3)
    }
    shown = [axes.images[0].get_array() for axes in draw_datasets(sets).axes if axes.images]
    assert [array.shape for array in shown] == [(20, 20)] * 6 + [(20, 20, 3)] * 3
    assert (np.asarray(shown[3]) == sets["2 channels"].images[0, 0].numpy()).all()


def test_the_script_draws_what_it_is_told_to(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "draw_datasets.py"
    done = subprocess.run(
        [sys.executable, script, "sets.png", "mnist"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "sets.png\n"
    assert Image.open(tmp_path / "sets.png").width == 1200
    missing = subprocess.run(
        [sys.executable, script, "x.png", "idx:none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert missing.returncode != 0
    assert "there is no IDX file none-train-images" in missing.stderr
    assert "Traceback" not in missing.stderr
