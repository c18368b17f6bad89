"""Colour that a file states without an ICC profile, made into one.

Code points: ITU-T H.273 (ISO/IEC 23091-2), tables 2 and 3, in HEIC, AVIF and PNG. Profile:
ICC.1:2022. Adobe RGB (1998): its colour image encoding, version 2005-05.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

from .isobmff import Stored

_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}  # fmt: skip
"""x and y of red, green, blue and white. Those of sRGB (1) are left out: no profile is needed."""
_SRGB_POINTS = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_ADOBE_POINTS = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_VIDEO_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {
    1: _VIDEO_CURVE, 2: _SRGB_CURVE, 4: (2.2,), 5: (2.8,), 6: _VIDEO_CURVE, 8: (1.0,),
    13: _SRGB_CURVE, 14: _VIDEO_CURVE, 15: _VIDEO_CURVE,
}  # fmt: skip
"""Exponent, then a to d of a parametric curve of ICC, from encoded values to light."""
_HDR = {16: "PQ", 18: "HLG"}
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def hdr_name(stored: Stored) -> str | None:
    """ "PQ" or "HLG" where brightness is coded for HDR screens."""
    return _HDR.get(stored.transfer)


@functools.cache
def profile_of(stored: Stored) -> bytes | None:
    """An ICC profile for the code points of a colour picture.

    None where they mean sRGB, for HDR, which such a profile cannot say, and for unknown ones.
    """
    curve = _CURVES.get(stored.transfer)
    is_usual = stored.primaries in (1, 2) and curve in (_SRGB_CURVE, _VIDEO_CURVE)
    if is_usual or curve is None:  # what video calls its curve is shown by sRGB's all over the web
        return None
    if stored.primaries in (1, 2):
        points = _SRGB_POINTS
    elif stored.primaries in _PRIMARIES:
        points = _PRIMARIES[stored.primaries]
    else:
        return None
    return _build(_to_d50(points), curve)


@functools.cache
def profile_of_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """An ICC profile for what a PNG says; None where that is sRGB, or makes no sense.

    Args:
        gamma: from light to stored values; None: sRGB's curve.
        chromaticity: x and y of white, red, green and blue; None: sRGB's.
    """
    points = _SRGB_POINTS
    if chromaticity is not None and len(chromaticity) == 8:
        white, *others = zip(chromaticity[::2], chromaticity[1::2], strict=True)
        points = (*others, white)
    is_usual = np.abs(np.subtract(points, _SRGB_POINTS)).max() < 0.001
    if is_usual and gamma is None:
        return None
    if min(y for _, y in points) <= 0 or (gamma is not None and not 0.1 < gamma < 10):
        return None
    try:
        return _build(_to_d50(points), _SRGB_CURVE if gamma is None else (1 / gamma,))
    except (np.linalg.LinAlgError, struct.error):
        return None


@functools.cache
def adobe_profile() -> bytes:
    """An ICC profile of Adobe RGB (1998)."""
    return _build(_to_d50(_ADOBE_POINTS), (563 / 256,))


def _to_d50(points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB to XYZ under D50, adapted by Bradford's matrix."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
    primaries, white = columns[:, :3], columns[:, 3]
    matrix = primaries * np.linalg.solve(primaries, white)
    gains = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ gains @ _BRADFORD @ matrix


def _build(matrix: np.ndarray, curve: tuple[float, ...]) -> bytes:
    def numbers(values: tuple[float, ...] | np.ndarray) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))

    def text(words: str) -> bytes:
        data = words.encode("utf-16-be")
        return struct.pack(">4sIII4sII", b"mluc", 0, 1, 12, b"enUS", len(data), 28) + data

    kind = 3 if len(curve) > 1 else 0
    tone = struct.pack(">4sIHH", b"para", 0, kind, 0) + numbers(curve)
    tags = {b"desc": text("as its file states"), b"cprt": text("CC0"),
            b"wtpt": b"XYZ \0\0\0\0" + numbers(_D50)}  # fmt: skip
    for letter, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + numbers(column)
        tags[letter + b"TRC"] = tone
    start, body, entries = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        entries += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4xI4s4s4s12s4s", start + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ",
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp",
    )  # fmt: skip
    head = (head + bytes(28) + numbers(_D50)).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + entries + body
