"""Pictures as they travel between browser and server: data URLs, bounded before anything is decoded."""

import base64
import binascii
import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from capsnet.data.pictures import Framing, decode_picture, frame
from capsnet.errors import InputError

MAX_BYTES = 10_000_000
"""A photograph of a telephone has less."""
MAX_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow decodes by itself; for some of the others it starts programs."""


def read_url(url: object, shape: tuple[int, int, int], framing: Framing) -> UInt8[Tensor, "channels height width"]:
    """The picture in a data URL as an image of `shape` (channels, height, width).

    Raises `InputError` if there is none, if it is no picture, or too large.
    """
    if not isinstance(url, str) or not url:
        raise InputError("there is no picture yet")
    head, _, body = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise InputError("a picture comes as a data URL, data:image/png;base64,…")
    check_size(len(body) * 3 // 4)
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not in base64") from None
    return read_bytes(content, shape, framing)


def read_bytes(content: bytes, shape: tuple[int, int, int], framing: Framing) -> UInt8[Tensor, "channels height width"]:
    """The picture that is the content of a file, as `read_url` has it."""
    check_size(len(content))
    picture = decode_picture(
        io.BytesIO(content), "the picture", max_pixels=MAX_PIXELS, formats=FORMATS, pixel_range=framing.pixel_range
    )
    return frame(picture, shape, framing)


def check_size(size: int) -> None:
    """Raises `InputError` if a file of so many bytes is too large."""
    if size > MAX_BYTES:
        raise InputError(f"the picture has {size / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB")


def to_url(image: UInt8[Tensor, "channels height width"] | Float[Tensor, "channels height width"]) -> str:
    """An image as a PNG in a data URL; floats are from 0 to 1. Of two channels, or more than three, the first."""
    pixels = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
    pixels = pixels if len(pixels) in (1, 3) else pixels[:1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
