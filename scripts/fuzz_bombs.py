"""Bombs: small files that become large when they are read, for `fuzz_data.py`."""

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_pictures import PICTURES, Kind, Use, encoded, opened, pixels, predicted
from fuzz_sets import affnist_bytes, npy_bytes

BOMB_SIDE, COSTLY_BOMB_SIDE = 9_999, 7_070  # as large as pictures may be


def picture_bomb(kind: str, mode: str | None = None, side: int = BOMB_SIDE) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        path = folder / f"x.{PICTURES[kind][0].lower()}"
        path.write_bytes(in_another_process(_plain, kind, mode, side))
        root = folder / "classes"
        for name in ("a", "b"):  # in each a large one, so that two may be decoded at a time, and a small one
            (root / name).mkdir(parents=True)
            os.link(path, root / name / path.name)
            (root / name / "small.png").write_bytes(encoded("png"))
        return [*predicted(path), opened(root)]

    return make


def _plain(kind: str, mode: str | None, side: int) -> bytes:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    form, usual, settings = PICTURES[kind]
    settings = {name: value for name, value in settings.items() if name != "frames"}
    file = io.BytesIO()
    Image.new(mode or usual, (side, side)).save(file, form, **settings)
    return file.getvalue()


def in_another_process(make: Callable[..., bytes], *arguments: Any) -> bytes:
    """So that the memory which making a bomb takes is not counted."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as file:
                file.write(make(*arguments))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    return content


def zeros(count: int, wbits: int = 15, before: bytes = b"") -> bytes:
    """So many, packed after `before`. The checksum is wrong, but that shows at the end only."""
    packer = zlib.compressobj(9, wbits=wbits)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # knows nothing of what came before
    return start + piece * (count // 2**20) + packer.compress(bytes(count % 2**20)) + packer.flush()


def idx_bomb(many: int, side: int, many_labels: int) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        gzipped = 31
        for split, count, labels in (("train", many, many_labels), ("t10k", 3, 3)):
            header = struct.pack(">HBB3I", 0, 8, 3, count, side, side)
            (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(zeros(count * side * side, gzipped, header))
            header = struct.pack(">HBBI", 0, 8, 1, labels)
            (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(zeros(labels, gzipped, header))
        return [opened(f"idx:{folder}", size=8)]

    return make


def npz_bomb(images: tuple[int, ...], kind: str, labels: tuple[int, ...], label_kind: str) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, shape, dtype in (("images", images, kind), ("labels", labels, label_kind)):
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                    for start in range(0, size, 2**20):
                        file.write(bytes(min(2**20, size - start)))
        return [opened(folder / "x.npz")]

    return make


def labels_bomb(chance: random.Random, folder: Path) -> list[Use]:
    """As many classes as labels."""
    count = 4_000_000
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("images", np.zeros((count, 1, 1), np.uint8)), ("labels", np.arange(count, dtype="<i4"))):
            archive.writestr(f"{name}.npy", npy_bytes(array))
    return [opened(folder / "x.npz")]


def affnist_bomb(size: int, begin: bytes) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        header = affnist_bytes(pixels(1600, 1), packed=False)[:128]
        content = zeros(size - len(begin), before=struct.pack("<II", 14, size) + begin)
        (folder / "test.mat").write_bytes(header + struct.pack("<II", 15, len(content)) + content)
        return [opened(f"affnist:{folder}", ("test",))]

    return make


def norb_bomb(chance: random.Random, folder: Path) -> list[Use]:
    count = 400_000
    for use in ("training", "testing"):
        dat = struct.pack("<IIIIII", 0x1E3D4C55, 4, count, 2, 96, 96)
        (folder / f"smallnorb-x-{use}-dat.mat.gz").write_bytes(zeros(count * 2 * 96 * 96, 31, dat))
        cat = struct.pack("<IIIII", 0x1E3D4C54, 1, count, 1, 1)
        (folder / f"smallnorb-x-{use}-cat.mat.gz").write_bytes(zeros(4 * count, 31, cat))
    return [opened(f"smallnorb:{folder}")]


def parquet_bomb(columns: Callable[[], dict[str, Any]]) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        (folder / "x.parquet").write_bytes(in_another_process(_parquet_bytes, columns))
        return [opened(folder / "x.parquet")]

    return make


def _parquet_bytes(columns: Callable[[], dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns()), file, compression="zstd")
    return file.getvalue()


def _long_texts() -> dict[str, Any]:
    """One text of a megabyte, named by 5,000 rows."""
    import pyarrow

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 5000, "int32"), ["x" * 2**20])
    return {"path": texts, "label": texts}


def _long_lists() -> dict[str, Any]:
    import pyarrow

    lists = pyarrow.ListArray.from_arrays([0, 2**27], pyarrow.nulls(2**27, "int8"))
    return {"path": lists, "label": lists}


def csv_bomb(content: Callable[[], bytes]) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        (folder / "x.csv").write_bytes(content())
        return [opened(folder / "x.csv")]

    return make


def _png_text(kind: bytes, size: int) -> bytes:
    """A PNG with a packed text, or colour profile, of so many bytes."""
    whole = encoded("png")
    chunk = kind + b"x\0\0" + zeros(size)
    return whole[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


def file_bomb(name: str, content: Callable[[], bytes]) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        path = folder / name
        path.write_bytes(content())
        return predicted(path)

    return make


FIELDS = struct.pack("<IIII", 6, 8, 2, 0) + struct.pack("<IIII", 5, 8, 1, 1) + struct.pack("<II", 1, 11)
FIELDS += b"affNISTdata\0\0\0\0\0" + struct.pack("<HHI", 5, 4, 1)

PACKED = {
    **dict.fromkeys(("png", "png, palette", "png, 16 bits", "jpeg", "gif"), BOMB_SIDE),
    **dict.fromkeys(("tiff, deflate", "tiff, lzw", "tiff, fax"), BOMB_SIDE),
    **dict.fromkeys(("webp, lossless", "avif", "jpeg 2000"), COSTLY_BOMB_SIDE),
}

BOMBS: dict[str, Kind] = {
    **{f"bomb, {kind}": picture_bomb(kind, side=side) for kind, side in PACKED.items()},
    "bomb, png in colours": picture_bomb("png", "RGB"),
    "bomb, png, a bit": picture_bomb("png", "1"),
    "bomb, png, too large": picture_bomb("png", "1", 60_000),
    "bomb, long text": file_bomb("x.png", lambda: _png_text(b"zTXt", 2**31)),
    "bomb, long profile": file_bomb("x.png", lambda: _png_text(b"iCCP", 2**31)),
    "bomb, idx, large images": idx_bomb(16, 9_999, 16),
    "bomb, idx, many labels": idx_bomb(12, 3, 2**31),
    "bomb, idx, many images": idx_bomb(2**28, 1, 2**28),
    "bomb, npz, large images": npz_bomb((16, 9_999, 9_999), "|u1", (16,), "<i8"),
    "bomb, npz, floats": npz_bomb((4, 9_999, 9_999), "<f8", (4,), "<i8"),
    "bomb, npz, many labels": npz_bomb((2**26, 1, 1), "|u1", (2**26,), "<i8"),
    "bomb, npz, one-hot": npz_bomb((2**6, 1, 1), "|u1", (2**6, 2**20), "<f8"),
    "bomb, npz, long names": npz_bomb((2**6, 1, 1), "|u1", (2**6,), f"<U{2**20}"),
    "bomb, npz, many classes": labels_bomb,
    "bomb, smallnorb": norb_bomb,
    "bomb, affnist": affnist_bomb(2**30, FIELDS),
    "bomb, affnist, many fields": affnist_bomb(2**27, FIELDS + struct.pack("<II", 1, 2**27 - 100)),
    "bomb, affnist, dimensions": affnist_bomb(
        2**28, struct.pack("<IIII", 6, 8, 2, 0) + struct.pack("<II", 5, 2**28 - 100)
    ),
    "bomb, parquet, long texts": parquet_bomb(_long_texts),
    "bomb, parquet, long lists": parquet_bomb(_long_lists),
    "bomb, csv, one line": csv_bomb(lambda: b"path,label\n" + b"x" * 2**28),
    "bomb, csv, one cell": csv_bomb(lambda: b'path,label\n"' + b"x\n" * 2**27),
    "bomb, csv, columns": csv_bomb(lambda: b"," * (2**20 - 2) + b"\n" + b"," * 2**27),
}
