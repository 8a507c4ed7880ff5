"""Data sets of a user's own, as users have them, in a few small files."""

import csv
import struct

import numpy as np
import pytest
from PIL import Image

import capsnet


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path, *shape, seed=0, **options):
    """A picture file of (height, width) or (height, width, channels), in the format that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*(shape or (8, 8)), seed=seed)).save(path, **options)
    return path


def write_tiff(path, *pages, extra=None):
    """Arrays (height, width) or (height, width, bands) of any numbers, uncompressed, as science writes them.

    `extra` is what the bands beyond grey or three colours are: 0 for unknown, 2 for transparency.
    """
    content = b"II*\0" + struct.pack("<I", 8)
    for number, page in enumerate(pages):
        height, width, bands = (*page.shape, 1)[:3]
        colours, kind = 3 if bands > 2 else 1, {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        fields = {256: [width], 257: [height], 258: [8 * page.itemsize] * bands, 259: [1], 262: [colours // 2 + 1]}
        fields |= {273: [0], 277: [bands], 278: [height], 279: [page.nbytes], 339: [kind] * bands}
        if bands > colours and extra is not None:
            fields[338] = [extra] * (bands - colours)
        beyond = len(content) + 2 + 12 * len(fields) + 4
        long = {tag: struct.pack(f"<{len(values)}I", *values) for tag, values in fields.items() if len(values) > 1}
        places = {tag: beyond + sum(len(each) for at, each in long.items() if at < tag) for tag in long}
        fields[273] = [beyond + sum(map(len, long.values()))]
        content += struct.pack("<H", len(fields))
        for tag, values in sorted(fields.items()):
            content += struct.pack("<HHII", tag, 4, len(values), places.get(tag, values[0]))
        end = fields[273][0] + page.nbytes
        content += struct.pack("<I", end if number + 1 < len(pages) else 0)
        content += b"".join(long[tag] for tag in sorted(long)) + page.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_folder(root, *shape, classes=("cats", "dogs"), count=5):
    """A folder of class folders, with so many different pictures in each."""
    for number, name in enumerate(classes):
        for picture in range(count):
            draw(root / name / f"{picture}.png", *shape, seed=number * count + picture)
    return root


def write_table(path, rows, separator=",", header=("path", "label"), encoding="utf-8", end="\n"):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows([header, *rows])
    return path


def opened(place, **options):
    """Both splits."""
    return tuple(capsnet.open_dataset(str(place), split, **options) for split in ("train", "test"))


def told(place, split="train", **options):
    """What is said of a set that cannot be used: one line."""
    with pytest.raises(capsnet.InputError) as refused:
        capsnet.open_dataset(str(place), split, **options)
    answer = str(refused.value)
    assert "\n" not in answer
    return answer
