"""How the images of a training set are framed, so that foreign pictures can be framed alike."""

from dataclasses import dataclass
from typing import Literal

from capsnet.errors import InputError


@dataclass(frozen=True)
class Framing:
    """What stands where on the images of a set. `Framing()`: pictures are scaled to fit, and nothing else.

    `background` is "black" or "white" where the set has a plain background, else None. `extent` is the usual size
    of what stands on that background, as a share of the image's longer side (20/28 in MNIST), or None where things
    shall stay as large as they are, and where; `centre` is where its centre of mass usually lies, as a share of height
    and width. Where the model sees squares cut out of the images, `whole` is the height and width of those.
    """

    background: Literal["black", "white"] | None = None
    extent: float | None = 1.0
    centre: tuple[float, float] = (0.5, 0.5)
    whole: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        shares = (1.0 if self.extent is None else self.extent, *self.centre)
        sound = all(isinstance(s, int | float) and s is not True and 0 < s <= 1 for s in shares)
        if self.background not in ("black", "white", None) or len(shares) != 3 or not sound:
            raise InputError(f"{self} is no framing: extent and centre are shares of the image, above 0 and up to 1")
