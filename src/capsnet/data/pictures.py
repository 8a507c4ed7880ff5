"""A picture file as a user has it, made into what a model was trained on."""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from capsnet.allocator import give_back
from capsnet.data.depth import (
    DEEP_MODES,
    by_parts,
    is_costly,
    is_deep,
    lower_bytes,
    measure_values,
    to_bytes,
    true_numbers,
    whole_numbers,
)
from capsnet.data.framing import Framing, PixelRange
from capsnet.data.image_set import ImageSet
from capsnet.data.kinds import check_nothing_more, check_transparency, sample_of, what_it_is
from capsnet.disk import NotAFileError, open_file
from capsnet.errors import InputError, gist

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoded, one would take more memory than a model."""

COSTLY_FORMATS = ("AVIF", "JPEG2000", "WEBP")
"""Of these pictures half as many pixels are the limit: their decoders hold several copies at a time."""

MANY_PIXELS = 2**24
"""Of larger pictures one is decoded at a time, and made smaller at once: so many pixels say all that is looked at."""

_LARGE = threading.Lock()

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
"""By Pillow's names. Not among them is what is no picture but a program that draws one (EPS)."""

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """What counts as a picture in a folder, in lower or upper case."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def measure_framing(image_set: ImageSet, sample: int = 1000) -> Framing:
    """Find out how the images of a set are framed, from its first `sample` images."""
    images = image_set.first(sample).images.mean(dim=1, dtype=torch.float32) / 255  # (N, H, W)
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    level = float(border.mean())
    if 0.05 < level < 0.95:
        return Framing()
    background: Literal["black", "white"] = "black" if level < 0.5 else "white"
    ink = (images if background == "black" else 1 - images).numpy()
    extents = [max(bottom - top, right - left) for top, bottom, left, right in map(_bounding_box, ink)]
    down, right = np.mean([_centre_of_mass(image) for image in ink], axis=0) / ink.shape[1:]
    extent = float(np.median(extents)) / max(ink.shape[1:])
    return Framing(background, round(extent, 3), (round(float(down), 3), round(float(right), 3)))


def read_picture(
    path: str | Path, shape: tuple[int, int, int], framing: Framing | None = None
) -> UInt8[Tensor, "channels height width"]:
    """Read a picture of any size, format and colour as an image of `shape` (channels, height, width); see `frame`.

    Raises `InputError` if the file is missing, no picture, damaged or larger than `MAX_PIXELS`.
    """
    pixel_range = framing.pixel_range if framing else None
    return frame(decode_picture(Path(path), str(path), pixel_range=pixel_range), shape, framing)


def frame(
    picture: Image.Image, shape: tuple[int, int, int], framing: Framing | None = None
) -> UInt8[Tensor, "channels height width"]:
    """Make a picture an image of `shape` (channels, height, width), framed as the training images are.

    A picture that already has the model's size is taken as it is. Any other is scaled to fit, keeping its aspect; of
    images that training cut squares out of, it is the middle one that is seen. If the training images have a plain
    background, the picture is turned over when its own background is the other one (ink on paper becomes white on
    black), cut to what stands on it, and that is scaled to the usual extent and centred by its centre of mass, as MNIST
    was made. Raises `InputError` unless there are 1 or 3 channels.
    """
    framing = framing or Framing()
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, but this model takes {channels}")
    if framing.whole is not None and picture.size != (width, height):
        image = frame(picture, (channels, *framing.whole), replace(framing, whole=None))
        top, left = ((side - cut) // 2 for side, cut in zip(framing.whole, (height, width), strict=True))
        return image[:, top : top + height, left : left + width].contiguous()
    picture = _as_mode(picture, "L" if channels == 1 else "RGB")
    if framing.background is None:
        picture = _fit(picture, (height, width))
    pixels = np.array(picture).reshape(picture.height, picture.width, channels)
    if framing.background is not None:
        pixels = _match_background(pixels, framing.background)
        if pixels.shape[:2] != (height, width):
            pixels = _frame(pixels, (height, width), framing.background, framing)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode_picture(
    source: Path | io.BytesIO,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    pixel_range: PixelRange | None = None,
) -> Image.Image:
    """A picture, upright and on paper, as "L" if it is grey, else "RGB". Of `formats`, by Pillow's names.

    Of a picture of more than 8 bits a pixel, `pixel_range` is what becomes 0 and 255; what lies outside is cut off. By
    default it is what the type can hold, 0 and 65,535, or, of floats, 0 and 1 if none is larger, else 0 and 255.

    Raises `InputError`, calling it by `name`, if it is missing, no picture, damaged or larger than `max_pixels`, or if
    there is more in it than colours and transparency: other bands, other pages.
    """
    with quiet_pillow(), _opened(source, name, max_pixels, formats) as picture, _turn_of(picture):
        return _as_seen(picture, name, pixel_range)


class Measured(NamedTuple):
    """Size and channels of an image, and its lowest and highest number, None if that is an ordinary one of 8 bits."""

    height: int
    width: int
    channels: int
    pixel_range: PixelRange | None = None


def measure_picture(source: Path | io.BytesIO, name: str, values: bool = True) -> Measured:
    """What there is to know of a picture, as `decode_picture` gives it, before a set is made of it.

    Only of pictures of more than 8 bits more is read than the first bytes, and not without `values`.

    Raises `InputError` as `decode_picture` does, but does not notice all damage.
    """
    with quiet_pillow(), _opened(source, name, MAX_PIXELS, FORMATS) as picture:
        deep = values and is_deep(picture)
        with _turn_of(picture) if deep else contextlib.nullcontext():
            pixel_range = measure_values(picture) if deep else None  # before Pillow loads a PNG to find its EXIF data
            turned = picture.format != "TIFF" and picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            width, height = reversed(picture.size) if turned else picture.size
            return Measured(height, width, 1 if picture.mode in GREY_MODES else 3, pixel_range)


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns of what we refuse, or read all the same.

    Filters of warnings belong to the whole process, and threads would undo each other's: who decodes in threads enters
    this around all of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _opened(
    source: Path | io.BytesIO, name: str, max_pixels: int, formats: tuple[str, ...]
) -> Iterator[ImageFile.ImageFile]:
    """A picture to decode; whatever is wrong with it raises `InputError`."""
    try:
        # As a file without a name: some pictures Pillow would map into memory, and then turn what is there wrongly.
        with _file(source) as file, Image.open(file, formats=formats) as picture:
            costly = picture.format in COSTLY_FORMATS or is_costly(picture)
            limit = min(max_pixels, MAX_PIXELS // 2) if costly else max_pixels
            if picture.width * picture.height > limit:
                raise InputError(f"{name} has {picture.width}×{picture.height} pixels; the limit is {limit:,}")
            if picture.format == "TIFF":
                check_nothing_more(picture, name)
            yield picture
    except FileNotFoundError:
        raise InputError(f"there is no picture {name}") from None
    except NotAFileError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder, not a picture") from None
    except UnidentifiedImageError:
        with _file(source) as file:
            raise InputError(f"{name} is {what_it_is(file)}") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} has too many pixels; the limit is {max_pixels:,}") from None
    except InputError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise whatever they stumble over
        raise InputError(f"{name} is damaged or cannot be read: {gist(error)}") from None


def _file(source: Path | io.BytesIO) -> contextlib.AbstractContextManager[IO[bytes]]:
    return contextlib.nullcontext(source) if isinstance(source, io.BytesIO) else open_file(source)


def _as_seen(picture: ImageFile.ImageFile, name: str, pixel_range: PixelRange | None) -> Image.Image:
    """Upright, on paper, with 8 bits a pixel, grey or in colours, and of no more than about `MANY_PIXELS`.

    No step holds more than two copies of a picture.
    """
    grey, tiff = picture.mode in GREY_MODES, picture.format == "TIFF"
    if sample_of(picture) == ("signed", 8) and pixel_range is None:
        pixel_range = (-128, 127)
    lower = lower_bytes(picture) if pixel_range else None
    seen = picture if pixel_range is None else true_numbers(picture)
    seen.load()
    for half in (seen, lower):
        if half is not None:
            ImageOps.exif_transpose(half, in_place=True)
    seen = _reduced(seen, lower, pixel_range)
    if pixel_range and seen.mode in DEEP_MODES:
        seen = Image.fromarray(to_bytes(np.asarray(seen), pixel_range))
    if seen.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would cut, not scale
        seen = _in_bytes(np.asarray(seen), white=65535)
    if seen.mode == "F":
        values = np.asarray(seen)
        highest = values.max(where=np.isfinite(values), initial=0)
        seen = _in_bytes(values, white=1 if highest <= 1 else 255)
    if seen.has_transparency_data:
        if tiff:
            check_transparency(seen, name)
        seen = _on_paper(_as_mode(seen, "RGBA"))
    return _as_mode(seen, "L" if grey else "RGB")


def _times_too_large(picture: Image.Image) -> int:
    """A side, compared with that of a picture of `MANY_PIXELS`."""
    return math.ceil(math.sqrt(picture.width * picture.height / MANY_PIXELS))


@contextlib.contextmanager
def _turn_of(picture: Image.Image) -> Iterator[None]:
    """A large picture waits for its turn, and its pixels are gone before the next one's."""
    if _times_too_large(picture) < 2:
        yield
        return
    with _LARGE:
        try:
            yield
        finally:
            picture.close()
            give_back()


def _reduced(picture: Image.Image, lower: Image.Image | None, pixel_range: PixelRange | None) -> Image.Image:
    """In strips, so that no second copy is made of a picture that is large. Colours of 16 bits then have 8."""
    times, (width, height) = _times_too_large(picture), picture.size
    if times < 2:
        return picture if lower is None or pixel_range is None else _in_8_bits(picture, lower, pixel_range)
    rows = times * max(1, MANY_PIXELS // (times * width))
    strips = []
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        strip = picture.crop(box)
        if lower is not None and pixel_range:
            strip = _in_8_bits(strip, lower.crop(box), pixel_range)
        strips.append(_reduced_strip(strip, times, pixel_range))
    whole = Image.new(strips[0].mode, (strips[0].width, math.ceil(height / times)))
    whole.info = strips[0].info
    for number, strip in enumerate(strips):
        whole.paste(strip, (0, number * rows // times))
    return whole


def _reduced_strip(strip: Image.Image, times: int, pixel_range: PixelRange | None) -> Image.Image:
    if strip.mode in DEEP_MODES and pixel_range:
        strip = Image.fromarray(to_bytes(np.asarray(strip), pixel_range))
    elif strip.mode.startswith("I;16"):  # which Pillow does not reduce
        strip = _in_bytes(np.asarray(strip), white=65535)
    elif strip.mode in ("1", "P"):  # whose numbers are no brightness
        strip = strip.convert("RGBA" if strip.has_transparency_data else "L" if strip.mode == "1" else "RGB")
    return strip.reduce(times)


def _in_8_bits(upper: Image.Image, lower: Image.Image, pixel_range: PixelRange) -> Image.Image:
    """Colours of 16 bits, scaled; transparency keeps its upper byte."""
    picture = Image.fromarray(to_bytes(whole_numbers(upper, lower), pixel_range))
    if upper.mode == "RGBA":
        picture.putalpha(upper.getchannel("A"))
    return picture


def _as_mode(picture: Image.Image, mode: str) -> Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)


def _in_bytes(values: np.ndarray, white: int) -> Image.Image:
    """Numbers from 0 to `white` as grey from 0 to 255; what is no number is black."""
    return Image.fromarray(by_parts(values, lambda part: part * 255 / white))


def _on_paper(picture: Image.Image) -> Image.Image:
    """Transparent pixels show the paper behind them: white under dark ink, black under light."""
    pixels = np.asarray(picture.reduce(1 + max(picture.size) // 1000), dtype=np.float32)
    ink = np.average(pixels[..., :3].mean(axis=2), weights=pixels[..., 3]) if pixels[..., 3].any() else 0
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white" if ink < 128 else "black"), picture)


def _match_background(pixels: np.ndarray, wanted: str) -> np.ndarray:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    found = "white" if np.median(border) > 127 else "black"
    return pixels if found == wanted else 255 - pixels


def _fit(picture: Image.Image, size: tuple[int, int], paper: int = 0) -> Image.Image:
    """Scale to fit into `size` (height, width), in the middle of an image of `paper`, black by default."""
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = min(height / picture.height, width / picture.width)
    small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    image = Image.new(picture.mode, (width, height), (paper,) * len(picture.getbands()))
    content = picture.resize(small, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    image.paste(content, ((width - small[0]) // 2, (height - small[1]) // 2))
    return image


def _frame(pixels: np.ndarray, size: tuple[int, int], background: str, framing: Framing) -> np.ndarray:
    """On the set's background, scaled to the usual extent if it fits, with the centre of mass at its usual place."""
    paper = 255 if background == "white" else 0
    if framing.extent is None:
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        return np.array(_fit(picture, size, paper)).reshape(*size, -1)
    ink = np.abs(pixels.astype(np.float32) - paper)
    top, bottom, left, right = _bounding_box(ink.mean(axis=2) / 255)
    ink = ink[top:bottom, left:right]
    room = min(side / own for side, own in zip(size, ink.shape, strict=False))
    ink = _resize(ink, min(framing.extent * max(size) / max(ink.shape[:2]), room))
    placed = _place(ink, size, np.array(framing.centre) * size - _centre_of_mass(ink.mean(axis=2)))
    return np.abs(paper - placed).round().clip(0, 255).astype(np.uint8)


def _bounding_box(ink: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is clearly darker or lighter than the background; all, if nothing is."""
    marked = ink > max(0.5 * float(ink.max()), 0.1)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return 0, ink.shape[0], 0, ink.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _resize(pixels: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    bands = [
        np.asarray(
            Image.fromarray(band).resize(
                (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
            )
        )
        for band in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(bands, axis=2)


def _centre_of_mass(mass: np.ndarray) -> np.ndarray:
    if not mass.any():
        return np.array(mass.shape) / 2
    return np.array(
        [np.average(np.arange(n) + 0.5, weights=mass.sum(axis=1 - axis)) for axis, n in enumerate(mass.shape)]
    )


def _place(content: np.ndarray, size: tuple[int, int], corner: np.ndarray) -> np.ndarray:
    """Put `content` on a black image of `size` with its upper left at `corner` (down, right), or where it fits."""
    image = np.zeros((*size, content.shape[2]), dtype=np.float32)
    content = content[: size[0], : size[1]]
    room = np.array(size) - content.shape[:2]
    top, left = np.clip(np.round(corner), 0, room).astype(int)
    image[top : top + content.shape[0], left : left + content.shape[1]] = content
    return image
