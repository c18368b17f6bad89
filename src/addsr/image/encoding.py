"""Colour profiles: numbers of any RGB or grey profile to an encoding like sRGB's, and back.

Networks are trained on sRGB, whose numbers are steps of about equal visibility. A picture in
another space keeps its primaries while it is worked on, so that no colour leaves [0, 1], and
has its tone curve replaced by sRGB's; the result takes the profile's own curve again.
Formats: ICC.1:2022, sec. 10.6 (curves) and 10.18 (parametric curves); IEC 61966-2-1 (sRGB).
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from .options import IccChoice

log = logging.getLogger(__name__)

_SRGB_D50 = (
    (0.43607, 0.38515, 0.14307),
    (0.22249, 0.71687, 0.06061),
    (0.01392, 0.09708, 0.71410),
)
"""Linear sRGB to XYZ under D50, as its profiles state it."""
_SAME = 0.5 / 255
"""Curves that differ by less count as sRGB's: no 8-bit number would change."""
_PARAMETERS = {0: "g", 1: "gab", 2: "gabe", 3: "gabcd", 4: "gabcdef"}


@dataclass(frozen=True)
class Curve:
    """A tone curve: light = (a x + b)^g + e from x = d on, c x + f below; or a table."""

    g: float = 1.0
    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    f: float = 0.0
    table: tuple[float, ...] | None = None

    def light(self, x: Tensor) -> Tensor:
        """Linear light in [0, 1] for encoded values in [0, 1], of any shape."""
        if self.table is not None:
            return _interpolate(x, np.linspace(0, 1, len(self.table)), np.asarray(self.table))
        high = (self.a * x + self.b).clamp_min(0) ** self.g + self.e
        return torch.where(x >= self.d, high, self.c * x + self.f).clamp(0, 1)

    def encode(self, y: Tensor) -> Tensor:
        """The inverse of `light`."""
        if self.table is not None:
            return _interpolate(y, np.asarray(self.table), np.linspace(0, 1, len(self.table)))
        high = ((y - self.e).clamp_min(0) ** (1 / self.g) - self.b) / self.a
        if self.d <= 0:
            return high.clamp(0, 1)
        edge = max(self.a * self.d + self.b, 0.0) ** self.g + self.e
        low = (y - self.f) / self.c if self.c else torch.zeros_like(y)
        return torch.where(y >= edge, high, low).clamp(0, 1)


SRGB = Curve(g=2.4, a=1 / 1.055, b=0.055 / 1.055, c=1 / 12.92, d=0.04045)


@dataclass(frozen=True)
class Encoding:
    """What the numbers of a picture mean, as far as tone curve and primaries tell."""

    profile: bytes | None = None
    """The ICC profile that goes into the result's file."""
    curves: tuple[Curve, ...] | None = None
    """One for grey, three for RGB; None: sRGB's, or one that cannot be told."""
    primaries: Tensor | None = None
    """`(3, 3)`, linear RGB to XYZ under D50; None for grey, tables and no profile."""
    is_table: bool = False
    """The profile is RGB and not made of curves and primaries."""
    ends_as_srgb: bool = False
    original: bytes | None = None
    """The profile of the numbers, whatever the result's file says."""

    def for_result(self, icc: IccChoice) -> Encoding:
        """The same with the profile kept, left out, or sRGB in its place."""
        if icc == "keep" or self.original is None:
            return self
        if icc == "strip":
            return replace(self, profile=None)
        is_grey = self.primaries is None and not self.is_table
        return replace(self, profile=None if is_grey else srgb_profile(), ends_as_srgb=True)

    def to_working(self, rgb: Tensor) -> Tensor:
        """`rgb` `(B, 3, H, W)` in [0, 1] with sRGB's tone curve in place of the profile's."""
        return rgb if self.curves is None else self._each(rgb, is_back=False)

    def from_working(self, rows: Tensor) -> Tensor:
        """Rows `(B, 1 | 3, h, W)` in [0, 1] as they go into the file."""
        if self.ends_as_srgb and self.primaries is not None:
            light = SRGB.light(rows)
            matrix = torch.linalg.inv(torch.tensor(_SRGB_D50)) @ self.primaries
            return SRGB.encode(torch.einsum("ij,bjhw->bihw", matrix, light).clamp(0, 1))
        if self.ends_as_srgb or self.curves is None:
            return rows
        return self._each(rows, is_back=True)

    def _each(self, x: Tensor, *, is_back: bool) -> Tensor:
        curves = self.curves or ()
        if len(curves) == 1:
            return _swap(x, curves[0], is_back)
        parts = [_swap(x[:, i : i + 1], curve, is_back) for i, curve in enumerate(curves)]
        return torch.cat(parts, dim=1)


def _swap(x: Tensor, curve: Curve, is_back: bool) -> Tensor:
    return curve.encode(SRGB.light(x)) if is_back else SRGB.encode(curve.light(x))


def read_encoding(profile: bytes | None, *, is_grey: bool) -> Encoding:
    """What an ICC profile says about a picture; the plain `Encoding` where there is none.

    A profile for another kind of picture (RGB in a grey file) or one that cannot be read is
    left out, with a warning: programs refuse files that carry it.
    """
    if not profile:
        return Encoding()
    space = profile[16:20]
    if len(profile) < 132 or profile[36:40] != b"acsp":
        log.warning("colour profile: cannot be read; the numbers are taken as sRGB")
        return Encoding()
    if space != (b"GRAY" if is_grey else b"RGB "):
        log.warning(
            "colour profile: is for %s and the picture is %s; left out",
            space.decode("ascii", "replace").strip(), "grey" if is_grey else "RGB",
        )  # fmt: skip
        return Encoding()
    try:
        tags = _tags(profile)
        if is_grey:
            return Encoding(profile, _told((_curve(tags[b"kTRC"]),)), original=profile)
        if b"A2B0" in tags or b"rTRC" not in tags:
            return Encoding(profile, is_table=True, original=profile)
        curves = tuple(_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
        columns = [_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        primaries = torch.tensor(columns).T.contiguous()
        return Encoding(profile, _told(curves), primaries, original=profile)
    except (KeyError, struct.error, ValueError, IndexError):
        log.warning("colour profile: its curves cannot be read; it is kept, the numbers stay")
        return Encoding(profile, is_table=True, original=profile)


def _told(curves: tuple[Curve, ...]) -> tuple[Curve, ...] | None:
    x = torch.linspace(0, 1, 1024)
    same = [float((SRGB.encode(curve.light(x)) - x).abs().max()) < _SAME for curve in curves]
    return None if all(same) else curves


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    found: dict[bytes, bytes] = {}
    for i in range(min(count, 200)):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        found[name] = profile[offset : offset + size]
    return found


def _xyz(tag: bytes) -> list[float]:
    return [value / 65536 for value in struct.unpack_from(">3i", tag, 8)]


def _curve(tag: bytes) -> Curve:
    if tag[:4] == b"para":
        (kind,) = struct.unpack_from(">H", tag, 8)
        names = _PARAMETERS[kind]
        values = dict(
            zip(names, (v / 65536 for v in struct.unpack_from(f">{len(names)}i", tag, 12)),
                strict=True)
        )  # fmt: skip
        if kind in (1, 2):  # below -b/a the curve is flat at 0, or at its last parameter
            values |= {"d": -values["b"] / values["a"], "f": values.get("e", 0.0)}
        if values["g"] <= 0 or values.get("a", 1.0) == 0:
            raise ValueError("a curve that does not rise")
        return Curve(**values)
    if tag[:4] != b"curv":
        raise ValueError(f"{tag[:4]!r} is no curve")
    (count,) = struct.unpack_from(">I", tag, 8)
    if count == 0:
        return Curve()
    if count == 1:
        gamma = struct.unpack_from(">H", tag, 12)[0] / 256
        if gamma == 0:
            raise ValueError("a curve that does not rise")
        return Curve(g=gamma)
    table = np.frombuffer(tag, ">u2", count, 12).astype(float) / 65535
    if np.any(np.diff(table) < 0):
        raise ValueError("a curve that falls")
    # 16 bits make the darkest steps equal; a slope too small to see keeps them apart
    table = (table + 1e-6 * np.linspace(0, 1, count)) / (1 + 1e-6)
    return Curve(table=tuple(table.tolist()))


def _interpolate(x: Tensor, at: np.ndarray, values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.interp(x.numpy(), at, values).astype(np.float32))


def srgb_profile() -> bytes:
    """An ICC profile of sRGB, of the same bytes at any time."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # littlecms states the moment, and the same work is to give the same file
    return made[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made[36:]


def convert_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A CMYK, Lab or RGB image of 8 bits through its profile into RGB; `info` names sRGB then.

    Relative colorimetric with black point compensation, as print programs do it. CMYK without a
    profile is converted by the plain formula, which no press follows, and stays without one.
    """
    source: Any = None
    if profile:
        source = io.BytesIO(profile)
    elif image.mode == "LAB":
        source = ImageCms.createProfile("LAB")
    if source is not None:
        try:
            done = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"),
                ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )  # fmt: skip
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            log.warning("colour profile: cannot be used (%s); converted without it", error)
        else:
            assert done is not None
            done.info["icc_profile"] = srgb_profile()
            return done
    plain = image.convert("RGB")
    plain.info.pop("icc_profile", None)
    return plain
