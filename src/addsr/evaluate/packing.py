"""Pictures for pages: the best encoding that lets all of them fit, and the part worth showing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

LONGEST_SIDE = 16_380
"""No WebP picture is longer; a multiple of 2, 3, 4, 5 and 6."""


@dataclass(frozen=True)
class Packing:
    """How pictures are stored in a page."""

    quality: int | None
    """WebP quality; None: lossless."""
    side: int | None = None
    """Longest side in pixels of the part that is stored; None: the whole picture."""

    def __str__(self) -> str:
        how = "lossless WebP" if self.quality is None else f"WebP of quality {self.quality}"
        return how if self.side is None else f"{how}, cut to {self.side} x {self.side} pixels"

    def box(self, image: Image.Image, align: int = 1) -> Box:
        """The part of `image` that is stored (`detailed_box`)."""
        return detailed_box(image, self.side or LONGEST_SIDE, align)

    def encode(self, image: Image.Image) -> bytes:
        """`image` as a WebP file without metadata; the same bytes for the same pixels."""
        target = io.BytesIO()
        # Pillow would copy the picture's own profile and EXIF block into the file
        bare = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
        if self.quality is None:
            bare.save(target, "WEBP", lossless=True, quality=20, method=2)
        else:
            bare.save(target, "WEBP", quality=self.quality, method=4)
        return target.getvalue()


LOSSLESS = Packing(None)
PACKINGS = (
    LOSSLESS,
    *(Packing(quality) for quality in (97, 94, 91, 88, 85)),
    *(Packing(90, side) for side in (512, 448, 384, 320, 256, 192, 128, 96, 64)),
)
"""From best to smallest; where whole pictures at 85 do not fit, sharp parts beat spoilt wholes."""


def to_text(data: bytes) -> str:
    """`data` in base64."""
    return base64.b64encode(data).decode()


def choose_packing(sample: Sequence[Image.Image], count: int, budget_bytes: int) -> int:
    """Index into `PACKINGS` of the best one with which `count` pictures like `sample` should fit.

    The mean size of the sample, in base64, stands for all. The last packing is given where none
    fits, the first where there are no pictures.
    """
    for index, packing in enumerate(PACKINGS):
        used = sum(4 * len(packing.encode(image.crop(packing.box(image)))) // 3 for image in sample)
        if used * count <= budget_bytes * len(sample):
            return index
    return len(PACKINGS) - 1


def detailed_box(image: Image.Image, side: int, align: int = 1) -> Box:
    """The window of at most `side` x `side` pixels of `image` with the most gradient in it.

    Its corners are multiples of `align`, so that the same part can be cut from a picture `align`
    times smaller; of equal windows the one nearest to the middle is taken.
    """
    width, height = image.size
    longest = max(side // align, 1) * align
    w, h = min(width, longest), min(height, longest)
    if (w, h) == (width, height):
        return 0, 0, width, height
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    detail = np.zeros_like(grey)
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    detail[1:, :] += np.abs(np.diff(grey, axis=0))
    total = np.pad(detail, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # (height + 1, width + 1)
    y = np.arange(0, height - h + 1, align)[:, None]
    x = np.arange(0, width - w + 1, align)[None, :]
    inside = total[y + h, x + w] - total[y, x + w] - total[y + h, x] + total[y, x]
    off_centre = np.hypot(y + h / 2 - height / 2, x + w / 2 - width / 2)
    best = int(np.lexsort((off_centre.ravel(), -inside.ravel()))[0])
    row, column = divmod(best, x.shape[1])
    left, top = int(x[0, column]), int(y[row, 0])
    return left, top, left + w, top + h


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spread, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
