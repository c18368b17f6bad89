"""How large a result shall be: a factor, a size to fit, a side or megapixels; one type for all."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from .errors import InputError, OptionError
from .plan import MAX_SCALE, MIN_SCALE, check_scale, target_size

Fit = Literal["inside", "cover", "stretch"]
Size = tuple[int, int]
"""Height and width."""
Box = tuple[int, int, int, int]
"""Left, top, width, height."""

DEFAULT_SCALE = 4.0
_LONGEST = 200_000
_SIZE = re.compile(r"(\d{0,6})x(\d{0,6})", re.ASCII)
_BOX = re.compile(r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Frame:
    """What one picture becomes: the part that is used, its factor, and what is done afterwards."""

    box: Box
    """Of the picture, in its own pixels, upright."""
    scale: float
    """Factor of the restorer."""
    enlarged: Size
    """What the restorer gives of the box."""
    size: Size
    """Of the result."""
    corner: tuple[int, int] | None = None
    """Top and left of the result within what was enlarged; None: it is resized to `size`."""

    @property
    def source(self) -> Size:
        """Height and width of the part that is used."""
        return self.box[3], self.box[2]

    @property
    def is_resized(self) -> bool:
        """Whether the enlarged picture is stretched along one axis."""
        return self.corner is None and self.enlarged != self.size


@Parameter(name="*")
@dataclass(frozen=True)
class Target:
    """The wanted size; one of scale, size, long_side and megapixels, else a scale of 4.

    Raises:
        OptionError: more than one of them, or a value that means nothing.
    """

    scale: Annotated[float | None, Parameter(name=["--scale", "-s"])] = None
    """Factor from 1 to 8. [default: 4]"""
    size: str | None = None
    """Pixels of the result: 3840x for a width, x2160 for a height, 3840x2160 for both."""
    fit: Fit | None = None
    """How a picture of another shape meets --size WxH: inside keeps all of it and may be smaller,
    cover fills the size and cuts what hangs over, stretch distorts. [default: inside]"""
    long_side: int | None = None
    """Pixels of the longer side of the result."""
    megapixels: float | None = None
    """Millions of pixels of the result."""
    preview: str | None = None
    """X,Y,W,H: only this part of the picture, in its pixels."""

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("scale", "size", "long_side", "megapixels")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            names = " and ".join("--" + name.replace("_", "-") for name in given)
            raise OptionError(f"{names} contradict each other; give one of them")
        if self.scale is not None:
            check_scale(self.scale)
        if self.size is not None:
            self._sides()
        if self.fit is not None and (self.size is None or 0 in self._sides()):
            raise OptionError(
                f"fit: {self.fit} says how a picture meets two sides; give --size WIDTHxHEIGHT"
            )
        if self.long_side is not None and not 1 <= self.long_side <= _LONGEST:
            raise OptionError(
                f"long side: {self.long_side} is outside of 1 to {_LONGEST}; give pixels in between"
            )
        if self.megapixels is not None and not 0 < self.megapixels <= 40_000:
            raise OptionError(
                f"megapixels: {self.megapixels:g} is not possible; give more than 0 and at most "
                "40000"
            )
        if self.preview is not None and not _BOX.fullmatch(self.preview):
            raise OptionError(
                f"preview: {self.preview!r} is no part of a picture; give X,Y,W,H in its pixels, "
                "such as 100,80,256,256"
            )

    @property
    def is_sized(self) -> bool:
        """Whether a size was asked for, and the factor is each picture's own."""
        return (self.size, self.long_side, self.megapixels) != (None, None, None)

    @property
    def factor(self) -> float:
        """The wanted scale; of no meaning where a size was asked for."""
        return DEFAULT_SCALE if self.scale is None else self.scale

    @property
    def label(self) -> str:
        """The target as a part of a file's name: x4, 3840x2160, long3840, 12mp."""
        if self.size is not None:
            width, height = self._sides()
            return f"{width or ''}x{height or ''}"
        if self.long_side is not None:
            return f"long{self.long_side}"
        if self.megapixels is not None:
            return f"{self.megapixels:g}mp"
        return f"x{self.factor:g}"

    @property
    def words(self) -> str | None:
        """What was asked for besides a factor, as options; None: nothing."""
        given = {
            "--size": self.size, "--fit": self.fit, "--long-side": self.long_side,
            "--megapixels": self.megapixels, "--preview": self.preview,
        }  # fmt: skip
        return " ".join(f"{k} {v}" for k, v in given.items() if v is not None) or None

    def frame(self, source: Size, name: str = "image") -> Frame:
        """What becomes of a picture of `source`, called `name` in messages.

        Raises:
            InputError: it would have to shrink, or grow more than 8 times; or the preview lies
                outside of it.
        """
        height, width = source
        if self.preview is not None:
            return self._preview(source, name)
        wide, high = self._wanted(source)
        if self.size is None or 0 in self._sides() or self.fit in (None, "inside"):
            scale = self._check(min(wide, high), source, name)
            return _whole(source, scale)
        scale = self._check(max(wide, high), source, name)
        columns, rows = self._sides()
        if self.fit == "stretch":
            self._check(min(wide, high), source, name)
            return Frame((0, 0, width, height), scale, target_size(source, scale), (rows, columns))
        # cover: whole pixels around what will be seen, so that no work is done for the rest
        left, used_width = _middle(width, columns / scale)
        top, used_height = _middle(height, rows / scale)
        enlarged = target_size((used_height, used_width), scale)
        corner = (max(enlarged[0] - rows, 0) // 2, max(enlarged[1] - columns, 0) // 2)
        return Frame((left, top, used_width, used_height), scale, enlarged, (rows, columns), corner)

    def _wanted(self, source: Size) -> tuple[float, float]:
        """Factors along the width and the height."""
        height, width = source
        if self.size is not None:
            columns, rows = self._sides()
            across = (columns or rows * width / height) / width
            return across, (rows or columns * height / width) / height
        if self.long_side is not None:
            scale = self.long_side / max(source)
        elif self.megapixels is not None:
            scale = math.sqrt(self.megapixels * 1e6 / (width * height))
        else:
            scale = self.factor
        return scale, scale

    def _sides(self) -> tuple[int, int]:
        """Width and height of `size`, 0 for one that is not given."""
        match = _SIZE.fullmatch(self.size or "")
        width, height = (int(side or 0) for side in match.groups()) if match else (0, 0)
        if not (width or height) or max(width, height) > _LONGEST:
            raise OptionError(
                f"size: {self.size!r} is no size; give 3840x, x2160 or 3840x2160, in pixels"
            )
        return width, height

    def _check(self, scale: float, source: Size, name: str) -> float:
        if MIN_SCALE <= scale <= MAX_SCALE:
            return scale
        what = (
            "it is larger already; ask for more, or leave this picture out"
            if scale < MIN_SCALE
            else "that is beyond 8; take a smaller size"
        )
        raise InputError(
            f"{name}: {source[1]}x{source[0]} to {self.label} would be a factor of {scale:.3g}; "
            f"{what}"
        )

    def _preview(self, source: Size, name: str) -> Frame:
        left, top, wide, high = (int(part) for part in (self.preview or "").split(","))
        height, width = source
        if not (0 < wide <= width - left and 0 < high <= height - top):
            raise InputError(
                f"{name}: preview {self.preview} lies outside of the picture of {width}x{height}; "
                "give X,Y,W,H within it"
            )
        factors = self._wanted(source)
        stretches = self.fit in ("cover", "stretch")
        scale = self._check((max if stretches else min)(factors), source, name)
        frame = _whole((high, wide), scale)
        size = frame.size
        if self.fit == "stretch":
            self._check(min(factors), source, name)
            size = (target_size((high, 1), factors[1])[0], target_size((1, wide), factors[0])[1])
        corner = (0, 0) if size == frame.enlarged else None
        return Frame((left, top, wide, high), scale, frame.enlarged, size, corner)


def _whole(source: Size, scale: float) -> Frame:
    size = target_size(source, scale)
    return Frame((0, 0, source[1], source[0]), scale, size, size, (0, 0))


def _middle(length: int, used: float) -> tuple[int, int]:
    """Start and length of the whole pixels around the middle `used` of `length`."""
    start = (length - used) / 2
    first = max(math.floor(start + 1e-9), 0)
    last = min(math.ceil(length - start - 1e-9), length)
    return first, last - first
