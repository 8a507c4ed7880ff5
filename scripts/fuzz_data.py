"""Damage a user's data at random, and open it all the same.

    .venv/bin/python scripts/fuzz_data.py [--mutations 5000] [--seed 0] [--kind npz] [--only 17]

Pictures, IDX files, `.npz`, CSV and Parquet, folders of classes, smallNORB, affNIST, sets saved by `datasets`, and our
own cache. After as many mutations as are asked for come the bombs: small files that become large. Fails if anything
else is raised than an `InputError` of one line, if one takes longer than ten seconds, if the process grows by a
gigabyte or ends, or if anything is executed.
"""

import argparse
import contextlib
import gzip
import io
import os
import random
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzing import EXECUTED, Found, Trap, Work, bytes_changed, in_children, refused, report, value_changed

Use = Callable[[], Any]
Kind = Callable[[random.Random, Path], list[Use]]
"""Writes a damaged set into a folder; what is done with it then."""

WIDTH, HEIGHT = 37, 23  # of the pictures; found again in their headers
HUGE = (0, 1, 9_999, 30_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
BOMB_SIDE, COSTLY_BOMB_SIDE = 9_999, 7_070  # as large as pictures may be


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*KINDS, *BOMBS], help="one kind of data, or one bomb, alone")
    parser.add_argument("--no-bombs", action="store_true", help="not those, which take seconds each")
    parser.add_argument("--only", type=int, help="the mutation of this number alone")
    chosen = parser.parse_args()
    kinds = [chosen.kind] if chosen.kind else [*KINDS, *([] if chosen.no_bombs else BOMBS)]
    names = mutations_of(kinds, chosen.mutations)
    numbers = range(len(names)) if chosen.only is None else range(chosen.only, chosen.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        report(fuzz(Path(folder), names, numbers, chosen.seed))


def mutations_of(kinds: Sequence[str], count: int) -> list[str]:
    """Kinds of data by turns, then each bomb once."""
    changed = [kind for kind in kinds if kind in KINDS]
    return [changed[number % len(changed)] for number in range(count if changed else 0)] + [
        kind for kind in kinds if kind in BOMBS
    ]


def fuzz(folder: Path, names: Sequence[str], numbers: range, seed: int) -> Found:
    """Mutations of these kinds, in a process of its own whose cache is in `folder`."""

    def prepare(tell: Callable[[], None]) -> Work:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        torch.set_num_threads(1)
        _quiet()

        def work(number: int) -> str:
            for made in ("cache", "set"):
                shutil.rmtree(folder / made, ignore_errors=True)
            (folder / "set").mkdir()
            make = (KINDS | BOMBS)[names[number]]
            answers = []
            for use in make(random.Random(f"{seed} {number}"), folder / "set"):
                tell()
                answers.append(refused(use))
            return "refused" if all(answers) else "accepted"

        return work

    return in_children(prepare, names, numbers, folder / EXECUTED)


def _quiet() -> None:
    """Libraries of C tell what they find on the process's own standard error."""
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def opened(place: Path | str, splits: tuple[str, ...] = ("train", "test"), **options: Any) -> Use:
    """As `train` and `evaluate` open a set, and look at its images."""
    import capsnet

    def use() -> None:
        for split in splits:
            found = capsnet.open_dataset(str(place), split, **options)
            assert isinstance(found, capsnet.ImageSet)
            found.images[:100].float().mean()

    return use


def options(chance: random.Random) -> dict[str, Any]:
    return {"size": chance.choice((None, 8, (9, 12))), "channels": chance.choice((None, 1, 3))}


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Pictures

PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("PNG", "RGBA", {}),
    "png, palette": ("PNG", "P", {"transparency": 3}),
    "png, 16 bits": ("PNG", "I;16", {}),
    "png, frames": ("PNG", "RGB", {"frames": 3}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg, cmyk": ("JPEG", "CMYK", {"progressive": True}),
    "gif": ("GIF", "P", {"frames": 3}),
    "bmp": ("BMP", "RGB", {}),
    "dib": ("DIB", "L", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff, deflate": ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
    "tiff, lzw": ("TIFF", "F", {"compression": "tiff_lzw"}),
    "tiff, fax": ("TIFF", "1", {"compression": "group4"}),
    "tiff, jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "webp": ("WEBP", "RGB", {}),
    "webp, lossless": ("WEBP", "RGBA", {"lossless": True, "frames": 3}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
    "ico": ("ICO", "RGBA", {}),
    "pcx": ("PCX", "P", {}),
    "ppm": ("PPM", "RGB", {}),
    "sgi": ("SGI", "RGB", {}),
    "tga": ("TGA", "RGB", {"compression": "tga_rle"}),
}
"""Pillow's name of the format, the mode, and how it is saved."""


def picture_in(mode: str, size: tuple[int, int]) -> Any:
    from PIL import Image

    smooth = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 255 // (sum(size) + 1)
    if mode == "I;16":
        return Image.fromarray((smooth * 257).astype(np.uint16))
    return Image.fromarray(np.stack([smooth.astype(np.uint8)] * 3, axis=2)).convert(mode)


def encoded(kind: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    form, mode, settings = PICTURES[kind]
    settings = dict(settings)
    picture, file = picture_in(mode, size), io.BytesIO()
    if frames := settings.pop("frames", 0):
        others = [picture.rotate(20 * (k + 1)) for k in range(frames - 1)]
        settings |= {"save_all": True, "append_images": others}
    if form == "JPEG":
        settings["exif"] = (
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # lies on its side
        )
    picture.save(file, form, **settings)
    return file.getvalue()


def picture_changed(content: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    if kind == 0:
        content = size_changed(content, chance)
    elif kind in (1, 2):
        content = bytes_changed(content, chance, 100)
    elif kind == 3:
        for _ in range(chance.randrange(1, 6)):
            content = byte_changed(content, chance)
    else:
        content = bytes_changed(content, chance)
    return sums_mended(content) if chance.random() < 0.7 else content


def byte_changed(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] = chance.choice((0, 255, 127, 128, chance.randrange(256)))
    return bytes(changed)


def size_changed(content: bytes, chance: random.Random) -> bytes:
    """Width or height is another wherever it stands as a number of 2 or 4 bytes, or in letters."""
    side, other = chance.choice((WIDTH, HEIGHT)), chance.choice(HUGE)
    for form in (">I", "<I", "<H", ">H"):
        if (old := struct.pack(form, side)) in content:
            return content.replace(old, struct.pack(form, min(other, 256 ** struct.calcsize(form) - 1)))
    return content.replace(str(side).encode(), str(other).encode())


def sums_mended(content: bytes) -> bytes:
    """A PNG whose checksums are right again, so that the damage comes further."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    whole, rest = content[:8], content[8:]
    while len(rest) >= 12 and (end := 8 + struct.unpack(">I", rest[:4])[0]) + 4 <= len(rest):
        whole += rest[:end] + struct.pack(">I", zlib.crc32(rest[4:end]))
        rest = rest[end + 4 :]
    return whole + rest


def picture_kind(kind: str) -> Kind:
    def make(chance: random.Random, folder: Path) -> list[Use]:
        path = folder / f"x.{chance.choice(('png', PICTURES[kind][0].lower()))}"
        path.write_bytes(picture_changed(encoded(kind), chance))
        return [*predicted(path), in_folder(path, chance)]

    return make


def predicted(path: Path) -> list[Use]:
    from capsnet.data.framing import Framing
    from capsnet.data.pictures import read_picture

    framing = Framing("black", 0.7, (0.5, 0.5))
    return [lambda: read_picture(path, (1, 28, 28), framing), lambda: read_picture(path, (3, 32, 32))]


def in_folder(path: Path, chance: random.Random) -> Use:
    """A set of two classes in which this picture is one of many, or the only one."""
    root = path.parent / "classes"
    whole = encoded("png")
    for name, count in (("a", chance.choice((1, 120))), ("b", 2)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(whole)
    shutil.copy(path, root / "a" / "damaged.png")
    return opened(root, **options(chance))


def folders(chance: random.Random, folder: Path) -> list[Use]:
    """Folders of classes with something in them that does not belong there."""
    root = folder / "set"
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                (root / split / name / f"{number}.png").write_bytes(encoded("png"))
    place = chance.choice([path for path in (root, *root.rglob("*")) if path.is_dir()])
    odd = place / chance.choice(("x.png", "n01", "train", "test", "validation", "é.png", ".hidden", "-", "x" * 250))
    name = os.fsencode(odd) if chance.random() < 0.9 else os.fsencode(place) + b"/\xff\xfe.png"
    with contextlib.suppress(OSError):
        chance.choice(ODD)(name)
    if chance.random() < 0.3:
        gone = chance.choice(list(root.rglob("*")))
        shutil.rmtree(gone) if gone.is_dir() and not gone.is_symlink() else gone.unlink()
    return [opened(root, **options(chance))]


ODD: list[Callable[[bytes], Any]] = [
    os.mkdir,
    os.mkfifo,
    lambda name: os.symlink(b"nowhere", name),
    lambda name: os.symlink(b"..", name),
    lambda name: os.symlink(name, name),
    lambda name: os.symlink(b"/dev/zero", name),
    lambda name: Path(os.fsdecode(name)).write_bytes(b""),
    lambda name: Path(os.fsdecode(name)).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"),
    lambda name: Path(os.fsdecode(name)).write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
]


# Arrays


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
    import json

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


# Bombs: small files that become large


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


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
