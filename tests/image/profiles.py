"""ICC profiles made for tests, and pictures in them."""

from __future__ import annotations

import struct

PROPHOTO = ((0.79767, 0.13519, 0.03134), (0.28804, 0.71188, 0.00009), (0.0, 0.0, 0.82491))
ADOBE = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))


def gamma(value: float) -> bytes:
    """A `curv` tag of a pure power."""
    return struct.pack(">4sIIH", b"curv", 0, 1, round(value * 256)) + b"\0\0"


def srgb_curve() -> bytes:
    """A `para` tag of sRGB's curve."""
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return struct.pack(">4sIHH5i", b"para", 0, 3, 0, *(round(v * 65536) for v in values))


def table(values: list[int]) -> bytes:
    """A `curv` tag of 16-bit values."""
    return struct.pack(f">4sII{len(values)}H", b"curv", 0, len(values), *values)


def make_profile(curve: bytes, primaries: tuple[tuple[float, ...], ...] | None = None) -> bytes:
    """A profile of one curve: RGB with `primaries` (rows to X, Y, Z), else grey."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return struct.pack(">4sI3i", b"XYZ ", 0, *(round(v * 65536) for v in values))

    text = b"made for a test"
    named = struct.pack(">4sII", b"desc", 0, len(text) + 1) + text + bytes(1 + 78)
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"desc": named,
            b"cprt": b"text\0\0\0\0" + text + b"\0"}  # fmt: skip
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        columns = list(zip(*primaries, strict=True))
        for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
            tags[letter + b"XYZ"] = xyz(column)
            tags[letter + b"TRC"] = curve
    body, entries = b"", b""
    start = 132 + 12 * len(tags)
    for name, data in tags.items():
        entries += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr",
                       b"RGB " if primaries else b"GRAY", b"XYZ ")  # fmt: skip
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def make_cmyk_profile(paper: int = 250, black: int = 40) -> bytes:
    """A printer's profile of one table: lightness falls from `paper` to `black` with the inks."""
    grid = b""
    for inks in range(16):
        share = 1 - inks.bit_count() / 4
        grid += bytes([round(black + (paper - black) * share), 128, 128])
    unit = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramps = bytes(range(256))
    a2b = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + ramps * 4 + grid + ramps * 3
    tags = {b"A2B0": a2b, b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)}
    start = 132 + 12 * len(tags)
    body, entries = b"", b""
    for name, data in tags.items():
        entries += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK",
                       b"Lab ")  # fmt: skip
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body
