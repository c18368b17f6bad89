"""How a file says that its picture is stored: bits per channel, and what its colours mean."""

from __future__ import annotations

import logging
from typing import Any

from PIL import Image

from .cicp import adobe_profile, hdr_name, profile_of, profile_of_gamma
from .isobmff import Stored, read_stored
from .metadata import BROKEN
from .png_chunks import read_code_points

log = logging.getLogger(__name__)

_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_EXIF_IFD, _COLOUR_SPACE, _INTEROP, _INTEROP_INDEX = 0x8769, 0xA001, 0xA005, 1
_USUAL_GAMMA = 0.45455
"""What PNG writers state for sRGB, whose curve is no power."""


def describe(image: Image.Image) -> Stored:
    """Bits per channel and code points of an opened picture, not yet decoded."""
    file: Any = getattr(image, "fp", None)
    if image.format in ("AVIF", "HEIF") and file is not None:
        return read_stored(file)
    if image.format == "TIFF":
        bits = max(getattr(image, "tag_v2", {}).get(_BITS, (8,)))
        return Stored(max(8, bits))
    # Pillow decodes 16-bit colour into its 8-bit modes; what stands in the file only the
    # decoder's settings tell, and those are gone once the picture is loaded
    found: list[Any] = [image.mode]
    for tile in getattr(image, "tile", []):
        found.append(tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0])
    # BGR;16 is BMP's 16 bits for all three channels together
    is_deep = any(";16" in str(mode) and mode != "BGR;16" for mode in found)
    points = read_code_points(file) if image.format == "PNG" and file is not None else None
    return Stored(16 if is_deep else 8, *(points or (2, 2)))


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in an opened TIFF and Pillow leaves it so, as it does for 16 bits."""
    return image.mode.startswith("I;16") and _tag(image, _PHOTOMETRIC) == 0


def is_in_planes(image: Image.Image) -> bool:
    """Whether an opened TIFF holds its channels apart; Pillow reads that right for 8 bits alone."""
    return _tag(image, _PLANES) == 2


def _tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None


def find_profile(image: Image.Image, stored: Stored, name: str) -> bytes | None:
    """The ICC profile of an opened picture, or one for what its file says in other ways.

    Those are code points (HEIC, AVIF, PNG), gamma and primaries of a PNG, and the mark that cameras
    put into the EXIF of pictures in Adobe RGB.
    """
    info: dict[Any, Any] = image.info
    if info.get("icc_profile"):
        return info["icc_profile"]
    if not image.mode.startswith(("RGB", "P")):
        return None
    if hdr_name(stored):
        log.warning(
            "%s: its brightness is meant for HDR screens (%s); it is used as it is and the result "
            "looks flat: convert it to SDR first",
            name, hdr_name(stored),
        )  # fmt: skip
        return None
    if (stored.primaries, stored.transfer) != (2, 2):
        return profile_of(stored)
    if image.format == "PNG" and "srgb" not in info and info.get("gamma"):
        gamma, points = float(info["gamma"]), info.get("chromaticity")
        is_usual = abs(gamma - _USUAL_GAMMA) < 0.01
        return profile_of_gamma(None if is_usual else gamma, points)
    return adobe_profile() if _is_adobe(image) else None


def _is_adobe(image: Image.Image) -> bool:
    try:
        exif = image.getexif()
        # 2 is written by some cameras though EXIF knows 1 and 65535 only; DCF's mark is "R03"
        if exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE) == 2:
            return True
        return str(exif.get_ifd(_INTEROP).get(_INTEROP_INDEX, "")).startswith("R03")
    except BROKEN:
        return False  # whoever reads the EXIF for itself tells of it
