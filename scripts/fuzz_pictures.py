"""Damaged pictures, alone and in folders of classes, for `fuzz_data.py`; and what the other kinds share."""

import contextlib
import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import bytes_changed

Use = Callable[[], Any]
Kind = Callable[[random.Random, Path], list[Use]]
"""Writes a damaged set into a folder; what is done with it then."""

WIDTH, HEIGHT = 37, 23  # of the pictures; found again in their headers
HUGE = (0, 1, 9_999, 30_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


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
    return {
        "size": chance.choice((None, 8, (9, 12))),
        "channels": chance.choice((None, 1, 3)),
        "pixel_range": chance.choice(("measured", "measured", None, (-900, 100))),
        "splits": chance.choice((("train", "test"), ("all",), ("all", "test"))),
    }


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# Pictures

PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("PNG", "RGBA", {}),
    "png, palette": ("PNG", "P", {"transparency": 3}),
    "png, 16 bits": ("PNG", "I;16", {}),
    "png, colours of 16 bits": ("PNG", "RGB;16", {}),
    "png, frames": ("PNG", "RGB", {"frames": 3}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg, cmyk": ("JPEG", "CMYK", {"progressive": True}),
    "gif": ("GIF", "P", {"frames": 3}),
    "bmp": ("BMP", "RGB", {}),
    "dib": ("DIB", "L", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff, deflate": ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
    "tiff, lzw": ("TIFF", "F", {"compression": "tiff_lzw"}),
    "tiff, 16 bits": ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    "tiff, 32 bits": ("TIFF", "I", {}),
    "tiff, signed bytes": ("TIFF", "L", {"tiffinfo": {339: 2}}),
    "tiff, unsigned 32 bits": ("TIFF", "I", {"tiffinfo": {339: 1}}),
    "tiff, four bands": ("TIFF", "RGBA", {"tiffinfo": {338: 0}}),
    "tiff, pages": ("TIFF", "F", {"frames": 4}),
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
    if mode == "RGB;16":
        return png_of_16_bits(*size)
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


def png_of_16_bits(width: int, height: int) -> bytes:
    """In colour, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels(height, width * 3).astype(int) * 16)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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

    framing, deep = Framing("black", 0.7, (0.5, 0.5)), Framing(pixel_range=(-900.0, 100.0))
    return [
        lambda: read_picture(path, (1, 28, 28), framing),
        lambda: read_picture(path, (3, 32, 32)),
        lambda: read_picture(path, (3, 32, 32), deep),
    ]


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
    layout = chance.choice(LAYOUTS)
    deep = chance.random() < 0.2
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            inner = root / layout.format(split=split, name=name)
            inner.mkdir(parents=True, exist_ok=True)
            for number in range(3):
                kind = chance.choice(list(PICTURES)) if deep else "png"
                (inner / f"{number}.{PICTURES[kind][0].lower()}").write_bytes(encoded(kind))
    place = chance.choice([path for path in (root, *root.rglob("*")) if path.is_dir()])
    odd = place / chance.choice(("x.png", "n01", "train", "test", "validation", "é.png", ".hidden", "-", "x" * 250))
    name = os.fsencode(odd) if chance.random() < 0.9 else os.fsencode(place) + b"/\xff\xfe.png"
    with contextlib.suppress(OSError):
        chance.choice(ODD)(name)
    if chance.random() < 0.3:
        gone = chance.choice(list(root.rglob("*")))
        shutil.rmtree(gone) if gone.is_dir() and not gone.is_symlink() else gone.unlink()
    return [opened(root, **options(chance))]


LAYOUTS = (
    "{split}/{name}",
    "{split}_set/{split}_set/{name}",
    "archive/set/{split}/{name}",
    "{name}/{split}",
    "archive/{name}/{split}s",
    "{name}",
    "colour/{name}",
)
"""How people pack the folders of a set; {split} and {name} of the class."""

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
