"""What files hold that is no single picture in grey or in colours: other formats, other bands, further pages."""

import contextlib
import io
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from capsnet.errors import InputError

NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 254, 258, 277, 339
"""What TIFF files have beside pixels."""

NOT_READ = (
    ", and one picture in grey or in colour is read; save as one what is to be seen, or all of it as the channels of "
    "an .npz archive"
)

HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""Brands of the format of many telephones' pictures."""

FOREIGN = (".heic", ".heif", ".dcm", ".dicom", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".psd")
"""Endings of pictures that Pillow does not read."""

MANY_PAGES = 1000
"""More are not counted."""


def what_it_is(file: IO[bytes] | io.BytesIO) -> str:
    """Of a file that Pillow does not know: what its first bytes say, and what to do."""
    with contextlib.suppress(Exception):  # whatever a damaged header leads to
        file.seek(0)
        start = file.read(132)
        if start[4:8] == b"ftyp" and start[8:12] in HEIC:
            return "a HEIC picture, which cannot be read; convert it to JPEG or PNG"
        if start[128:] == b"DICM":
            return "a DICOM file, which cannot be read; save its pixels as TIFF or PNG, or put all into an .npz archive"
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            tags = TiffImagePlugin.ImageFileDirectory_v2(start[:16] if start[2:3] == b"+" else start[:8])
            file.seek(tags.next)
            tags.load(file)
            bands, bits, kind = tags.get(SAMPLES_PER_PIXEL, 1), tags[BITS_PER_SAMPLE][0], number_kind(tags)
            if bands not in (1, 3):
                return f"a TIFF of {bands} bands{NOT_READ}"
            return (
                f"a TIFF of {'' if bands == 1 else f'{bands} × '}{bits}-bit {kind} numbers, which cannot be read; save "
                "it with whole numbers of 8 or 16 bits, or of one band with floats of 32 bits"
            )
    return "not a picture that can be read (PNG, JPEG, … are)"


def sample_of(picture: Image.Image) -> tuple[str, int]:
    """What a TIFF says of its numbers that its mode does not: "signed", "unsigned" or "float", and of how many bits."""
    tags: Any = getattr(picture, "tag_v2", {})
    return number_kind(tags), tags.get(BITS_PER_SAMPLE, (0,))[0]


def number_kind(tags: Any) -> str:
    return {1: "unsigned", 2: "signed", 3: "float"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "unknown")


def check_nothing_more(picture: Any, name: str) -> None:
    """Raises `InputError` if there are bands that would not be read, or further pages like the first."""
    bands = picture.tag_v2.get(SAMPLES_PER_PIXEL, 1)
    if bands > len(picture.getbands()):
        raise InputError(f"{name} has {bands} bands{NOT_READ}")
    if not picture.tag_v2.next:
        return
    size, pages = picture.size, 1
    try:
        while pages < MANY_PAGES:
            picture.seek(pages)
            if picture.size != size or picture.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 5:  # a smaller copy; a mask
                break
            pages += 1
    except EOFError:
        pass
    picture.seek(0)
    if pages > 1:
        raise InputError(f"{name} has {pages} pages{NOT_READ}")


def check_transparency(picture: Image.Image, name: str) -> None:
    """Raises `InputError` if what a TIFF calls transparency is another band, as of near infrared."""
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    if np.count_nonzero((alpha > 0) & (alpha < 255)) > alpha.size / 2:
        raise InputError(f"the last band of {name} is no transparency, for most of it is neither 0 nor 255{NOT_READ}")
