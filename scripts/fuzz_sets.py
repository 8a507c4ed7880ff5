"""Damaged sets of images in files of all kinds, for `fuzz_data.py`: each written whole, and then changed somewhere."""

import gzip
import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_pictures import (
    HEIGHT,
    HUGE,
    PICTURES,
    WIDTH,
    Kind,
    Use,
    byte_changed,
    encoded,
    folders,
    opened,
    options,
    picture_kind,
    pixels,
)
from fuzzing import EXECUTED, Trap, bytes_changed, refused, value_changed


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path) -> None:
    for split, count in (("train", 12), ("t10k", 5)):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(pixels(count, HEIGHT, WIDTH)))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(count) % 3).astype(np.uint8)))


def idx(chance: random.Random, folder: Path) -> list[Use]:
    write_idx(folder)
    path = chance.choice(sorted(folder.iterdir()))
    change_file(path, chance, 16)
    return [opened(f"idx:{folder}"), opened(folder, **options(chance))]


def change_file(path: Path, chance: random.Random, header: int) -> None:
    """Damaged within or without its packing, in its header or anywhere, or with another number in its header."""
    content, pack, reach = path.read_bytes(), chance.random() < 0.4, chance.choice((header, None))
    if chance.random() < 0.3:
        start = chance.randrange(0, header, 4)
        order = chance.choice("<>")
        content = content[:start] + struct.pack(f"{order}I", chance.choice(HUGE)) + content[start + 4 :]
    elif not pack or chance.random() < 0.5:
        content = bytes_changed(content, chance, reach)
    if pack:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content, 1)
        content = bytes_changed(content, chance, chance.choice((20, None))) if chance.random() < 0.5 else content
    path.write_bytes(content)


def smallnorb(chance: random.Random, folder: Path) -> list[Use]:
    for split, use in (("5x46789x9x18x6x2x96x96", "training"), ("5x01235x9x18x6x2x96x96", "testing")):
        dat = struct.pack("<IIIIII", 0x1E3D4C55, 4, 4, 2, 96, 96) + pixels(4, 2, 96, 96).tobytes()
        (folder / f"smallnorb-{split}-{use}-dat.mat").write_bytes(dat)
        cat = struct.pack("<IIIII", 0x1E3D4C54, 1, 4, 1, 1) + np.arange(4, dtype="<i4").tobytes()
        (folder / f"smallnorb-{split}-{use}-cat.mat").write_bytes(cat)
    change_file(chance.choice(sorted(folder.iterdir())), chance, 24)
    return [opened(f"smallnorb:{folder}")]


def affnist_bytes(images: np.ndarray, packed: bool, count: int | None = None) -> bytes:
    from scipy.io import savemat

    labels = np.arange(count or images.shape[1], dtype=np.uint8)[None] % 10
    file = io.BytesIO()
    savemat(file, {"affNISTdata": {"image": images, "label_int": labels, "id": labels}}, do_compression=packed)
    return file.getvalue()


def affnist(chance: random.Random, folder: Path) -> list[Use]:
    content = affnist_bytes(pixels(1600, 3), packed=False)
    if chance.random() < 0.5:
        content = bytes_changed(content, chance, chance.choice((500, None)))
    else:
        start = 128 + 4 * chance.randrange(80)
        content = content[:start] + struct.pack("<I", chance.choice((*HUGE, 14, 15))) + content[start + 4 :]
    if chance.random() < 0.5:
        chunk = zlib.compress(content[128:])
        content = content[:128] + struct.pack("<II", 15, len(chunk)) + chunk
    if chance.random() < 0.2:
        content = bytes_changed(content, chance)
    for name in ("training.mat", "test.mat"):
        (folder / name).write_bytes(content)
    return [opened(f"affnist:{folder}"), opened(f"affnist:{folder}/test.mat", ("test",))]


def npz(chance: random.Random, folder: Path) -> list[Use]:
    path = folder / "x.npz"
    arrays: dict[str, Any] = {"x_train": pixels(12, 6, 5), "y_train": np.arange(12) % 3}
    if chance.random() < 0.5:
        arrays |= {"x_test": pixels(6, 6, 5), "y_test": np.arange(6) % 3}
    if chance.random() < 0.3:
        kind = chance.choice((np.int8, np.int16, np.uint16, np.float16, np.float32, np.float64))
        for name in arrays:
            if name.startswith("x"):
                arrays[name] = arrays[name].astype(float) * chance.choice((1, -9, 1e-3)) + chance.choice((0, -900))
                arrays[name] = arrays[name].astype(kind)
    if chance.random() < 0.3:
        arrays[chance.choice(list(arrays))] = chance.choice(STRANGE_ARRAYS)
    if chance.random() < 0.2:
        arrays[chance.choice(list(arrays))] = np.array([Trap(folder.parent)] * 12, object)
    members = {name: npy_bytes(array) for name, array in arrays.items()}
    if chance.random() < 0.6:
        name = chance.choice(list(members))
        members[name] = npy_changed(members[name], chance, folder.parent)
    with zipfile.ZipFile(
        path, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    ) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    if chance.random() < 0.5:
        path.write_bytes(bytes_changed(path.read_bytes(), chance))
    return [opened(path, **options(chance))]


STRANGE_ARRAYS: list[np.ndarray] = [
    *(np.zeros(()), np.zeros(0), np.zeros((0, 6, 5), np.uint8), np.zeros((12, 0, 5)), np.full((12, 6, 5), np.nan)),
    *(np.array(["x\n"] * 12), np.array([""] * 12), np.array([b"x"] * 12), np.eye(12), np.full(12, 2**62)),
    *(np.full(12, np.inf), np.full(12, 1e300), np.zeros(12, "M8[s]"), np.zeros(12, [("a", "u1"), ("b", "f8")])),
    *(np.zeros(12, complex), np.zeros((12, 6, 5), ">u2"), np.zeros((12, 6, 5), "f2"), np.asfortranarray(np.eye(12))),
    *(np.zeros((12,) + (1,) * 30), np.arange(12, dtype="g"), np.zeros((12, 17, 1, 1)), np.array([True, False] * 6)),
]


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def npy_changed(content: bytes, chance: random.Random, folder: Path) -> bytes:
    """Another header, in which stands what NumPy evaluates; or other bytes."""
    shape = chance.choice(("()", "(10**15,)", "(-1, 6, 5)", "(12.0, 6)", "(2**62, 4)", "None", "(12,6,5,)", "('x',)"))
    kind = chance.choice(
        ("'|O'", "'|u1'", "'<f8'", "'<U999999999'", "'|V0'", "[('a','|u1',(10**9,))]", "'xx'", "9" * 99)
    )
    header = f"{{'descr': {kind}, 'fortran_order': {chance.choice(('True', 'False', '1'))}, 'shape': {shape}, }}"
    if chance.random() < 0.2:
        header = f"__import__('os').open({str(folder / EXECUTED)!r}, 65)"
    if chance.random() < 0.2:
        header = chance.choice(("(" * 5000, "[" * 90 + "]" * 90, "-" * 9000 + "1", "x" * 60_000, "\0"))
    if chance.random() < 0.5:
        packed = header.encode() + b"\n"
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(packed) % 65536) + packed + content[128:]
    return bytes_changed(content, chance, chance.choice((128, None)))


# Tables


def write_pictures(folder: Path) -> list[list[str]]:
    for name in "0123456789":
        (folder / f"{name}.png").write_bytes(encoded("png"))
    return [[f"{name}.png", "ab"[int(name) % 2], "train" if int(name) < 6 else "test"] for name in "0123456789"]


def table(chance: random.Random, folder: Path) -> list[Use]:
    rows = [["path", "label", "split"], *write_pictures(folder)]
    if chance.random() < 0.3:
        rows[0] = ["image", "a", "b", "split"]
        for row in rows[1:]:
            row[:2] = row[0].removesuffix(".png"), *(("1", "0.0") if row[1] == "a" else ("0", "1.0"))
    for _ in range(chance.randrange(3)):
        row = chance.choice(rows)
        if row:
            row[chance.randrange(len(row))] = chance.choice(STRANGE_CELLS)
    if chance.random() < 0.2:
        row = chance.choice(rows)
        row[:] = chance.choice(([], row[:1], row * 2, row * 5000))
    separator = chance.choice(",,,;\t|")
    content = "\n".join(separator.join(row) for row in rows).encode(errors="surrogateescape")
    if chance.random() < 0.5:
        content = bytes_changed(content, chance)
    path = folder / f"x.{chance.choice(('csv', 'tsv', 'parquet'))}"
    path.write_bytes(content)
    return [opened(path, **options(chance))]


STRANGE_CELLS = [
    *(
        "",
        " ",
        '"',
        '"x\ny"',
        "\0",
        "\r",
        "x" * 200_000,
        "é",
        "\udcff",
        "../0.png",
        "/dev/zero",
        "/dev/stdin",
        ".",
        "/",
    ),
    *("0", "9", ".\\0.png", "set\\9", "image", "pixel0", "1", "0.0"),
    *("0.png", "a", "=cmd|' /C calc'!A0", "%n%s", "-1", "1e999", "train", "val", "\ufeff", "[red]", "~/x", "x/" * 3000),
]


def parquet(chance: random.Random, folder: Path) -> list[Use]:
    import pyarrow
    import pyarrow.parquet

    rows = write_pictures(folder)
    columns: dict[str, Any] = {
        name: list(cells) for name, cells in zip(("path", "label", "split"), zip(*rows, strict=True), strict=True)
    }
    if chance.random() < 0.4:
        count = len(rows)
        odd = [[None] * count, [1] * count, [0.5] * count, [[1, 2]] * count, [{"a": 1}] * count, [b"\xff"] * count]
        columns[chance.choice(list(columns))] = chance.choice([*odd, ["x" * 10_000] * count, [True] * count])
    content = pyarrow.table(columns)
    if chance.random() < 0.1:
        content = with_extension(content, folder.parent)
    path = folder / "x.parquet"
    compression = chance.choice(("snappy", "zstd", "gzip", "none", "brotli", "lz4"))
    pyarrow.parquet.write_table(content, path, compression=compression, data_page_size=64)
    if chance.random() < 0.9:
        whole = path.read_bytes()
        place = chance.choice((None, len(whole) - 700, 200))
        kinds = [lambda: bytes_changed(whole, chance, place), lambda: byte_changed(whole, chance)]
        kinds += [lambda: whole[:-700] + byte_changed(whole[-700:], chance)] * 2  # where the metadata are
        path.write_bytes(chance.choice(kinds)())
    return [opened(path, **options(chance))]


def with_extension(content: Any, folder: Path) -> Any:
    """A column whose type is a pickle with code in it, as old versions of Arrow opened it."""
    import pickle

    import pyarrow

    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(folder)),
    }
    fields = [field.with_metadata(metadata) if field.name == "label" else field for field in content.schema]
    return content.cast(pyarrow.schema(fields))


def saved(chance: random.Random, folder: Path) -> list[Use]:

    import datasets
    from PIL import Image

    root = folder / "set"
    whole = folder.parent / "saved"
    if not whole.exists():
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        rows = {"img": [Image.fromarray(image) for image in pixels(6, 8, 8)], "label": [0, 1] * 3}
        parts = {name: datasets.Dataset.from_dict(rows, features) for name in ("train", "test")}
        datasets.DatasetDict(**parts).save_to_disk(whole)
    shutil.copytree(whole, root)
    path = chance.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    content = path.read_bytes()
    path.unlink()  # the old content may still be mapped into memory
    if path.suffix == ".json" and chance.random() < 0.8:
        path.write_text(json.dumps(value_changed(json.loads(content), chance)))
    else:
        path.write_bytes(bytes_changed(content, chance, chance.choice((1000, None))))
    return [opened(f"hub:{root}"), opened(root, **options(chance))]


def cache(chance: random.Random, folder: Path) -> list[Use]:
    """What was made of a good set is damaged, and the set opened again."""
    write_idx(folder)
    if refused(opened(folder)):
        raise AssertionError("a good set is refused")
    (entry,) = (path for path in (folder.parent / "cache" / "capsnet").iterdir() if path.is_dir())
    path = chance.choice(sorted(entry.iterdir()))
    content = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.8:
        import json

        content = json.dumps(value_changed(json.loads(content), chance)).encode()
    else:
        content = bytes_changed(content, chance)
    path.unlink()
    path.write_bytes(content)
    return [opened(folder)]


KINDS: dict[str, Kind] = {
    **{kind: picture_kind(kind) for kind in PICTURES},
    **{"folder": folders, "idx": idx, "npz": npz, "csv": table, "parquet": parquet},
    **{"smallnorb": smallnorb, "affnist": affnist, "saved": saved, "cache": cache},
}
