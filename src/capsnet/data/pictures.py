"""A picture file as a user has it, made into what a model was trained on."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoded, one would take more memory than a model."""


@dataclass(frozen=True)
class Framing:
    """How the images of a training set are framed, so that foreign pictures can be framed alike.

    `background` is "black" or "white" where the set has a plain background, else None. `extent` is the usual size
    of what stands on that background, as a share of the image's side (20/28 in MNIST); `centre` is where its centre
    of mass usually lies, as a share of height and width.
    """

    background: Literal["black", "white"] | None = None
    extent: float = 1.0
    centre: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        shares = (self.extent, *self.centre)
        if self.background not in ("black", "white", None) or len(shares) != 3 or not all(0 < s <= 1 for s in shares):
            raise InputError(f"{self} is no framing: extent and centre are shares of the image, above 0 and up to 1")


def measure_framing(image_set: ImageSet, sample: int = 1000) -> Framing:
    """Find out how the images of a set are framed, from its first `sample` images."""
    images = image_set.images[:sample].float().mean(dim=1) / 255  # (N, H, W)
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
    return frame(decode_picture(Path(path), str(path)), shape, framing)


def frame(
    picture: Image.Image, shape: tuple[int, int, int], framing: Framing | None = None
) -> UInt8[Tensor, "channels height width"]:
    """Make a picture an image of `shape` (channels, height, width), framed as the training images are.

    A picture that already has the model's size is taken as it is. Any other is scaled to fit, keeping its aspect. If
    the training images have a plain background, the picture is turned over when its own background is the other one
    (ink on paper becomes white on black), cut to what stands on it, and that is scaled to the usual extent and centred
    by its centre of mass, as MNIST was made. Raises `InputError` unless there are 1 or 3 channels.
    """
    framing = framing or Framing()
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, but this model takes {channels}")
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(picture, dtype=np.float32).reshape(picture.height, picture.width, channels)
    if framing.background is not None:
        pixels = _match_background(pixels, framing.background)
    if pixels.shape[:2] != (height, width):
        pixels = _frame(pixels, (height, width), framing)
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def decode_picture(
    source: Path | io.BytesIO,
    name: str,
    mode: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """A picture, upright and on paper, in `mode` ("L" or "RGB"; by default "L" if it is grey).

    Of `formats`, by Pillow's names; by default of any. Raises `InputError`, calling it by `name`, if it is missing, no
    picture, damaged or larger than `max_pixels`.
    """
    try:
        with warnings.catch_warnings(), Image.open(source, formats=formats) as picture:
            warnings.simplefilter("ignore")  # Pillow warns of what we refuse below, or read all the same
            if picture.width * picture.height > max_pixels:
                raise InputError(f"{name} has {picture.width}×{picture.height} pixels; the limit is {max_pixels:,}")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would cut, not scale
                upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8))
            if upright.mode == "F":
                values = np.nan_to_num(np.asarray(upright), nan=0, posinf=0, neginf=0)
                upright = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
            if upright.has_transparency_data:
                upright = _on_paper(upright.convert("RGBA"))
            return upright.convert(mode or ("L" if upright.mode in ("1", "L") else "RGB"))
    except FileNotFoundError:
        raise InputError(f"there is no picture {name}") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that can be read (PNG, JPEG, … are)") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} has too many pixels; the limit is {max_pixels:,}") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged files
        raise InputError(f"{name} is damaged or cannot be read: {error}") from None


def _on_paper(picture: Image.Image) -> Image.Image:
    """Transparent pixels show the paper behind them: white under dark ink, black under light."""
    pixels = np.asarray(picture, dtype=np.float32)
    ink = np.average(pixels[..., :3].mean(axis=2), weights=pixels[..., 3]) if pixels[..., 3].any() else 0
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white" if ink < 128 else "black"), picture)


def _match_background(pixels: np.ndarray, wanted: str) -> np.ndarray:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    found = "white" if np.median(border) > 127 else "black"
    return pixels if found == wanted else 255 - pixels


def _frame(pixels: np.ndarray, size: tuple[int, int], framing: Framing) -> np.ndarray:
    """Scale to fit into `size`, on the set's background, centred."""
    if framing.background is None:
        content = _resize(pixels, min(size[0] / pixels.shape[0], size[1] / pixels.shape[1]))
        return _place(content, size, (np.array(size) - content.shape[:2]) / 2)
    paper = 255 if framing.background == "white" else 0
    ink = np.abs(pixels - paper)
    top, bottom, left, right = _bounding_box(ink.mean(axis=2) / 255)
    ink = ink[top:bottom, left:right]
    ink = _resize(ink, framing.extent * min(size) / max(ink.shape[:2]))
    return np.abs(paper - _place(ink, size, np.array(framing.centre) * size - _centre_of_mass(ink.mean(axis=2))))


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
