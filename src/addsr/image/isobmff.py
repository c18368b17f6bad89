"""HEIC and AVIF at the level of boxes: what their libraries do not tell, and EXIF put in place.

Formats: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF), 23091-2 (code points of colour), AV1-ISOBMFF
(av1C).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LONGEST = 1 << 24
"""Bytes of the box `meta` that are read; it holds no pixels."""


@dataclass(frozen=True)
class Stored:
    """How a file says that its main picture is stored."""

    bits: int = 8
    """Per channel."""
    primaries: int = 2
    """Code point of the colour primaries; 2: not said."""
    transfer: int = 2
    """Code point of the tone curve."""


def read_stored(file: BinaryIO) -> Stored:
    """What the file, opened at any place and left there, says of its main picture.

    `Stored()` where it cannot be told, as for a film without a still picture.
    """
    place = file.tell()
    try:
        meta = _find_meta(file)[1]
        return _describe(dict(_boxes(meta, 4))) if meta else Stored()
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, OSError):
        return Stored()  # OverflowError, OSError: a size beyond what can be sought
    finally:
        file.seek(place)


def _find_meta(file: BinaryIO) -> tuple[int, bytes]:
    """Where the content of the box `meta` starts in the file, and that content."""
    file.seek(0)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if size == 1:
            size = struct.unpack(">Q", file.read(8))[0] - 8
        if kind == b"meta":
            start = file.tell()
            # without a size it goes on to the file's end
            return start, file.read(min(size - 8, _LONGEST) if size >= 8 else _LONGEST)
        if size < 8:  # up to the file's end
            break
        file.seek(size - 8, 1)
    return 0, b""


def _boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each box in `data`."""
    for kind, first, last in _places(data, start):
        yield kind, data[first:last]


def _places(data: bytes, start: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8:
            raise ValueError("a box without an end")
        yield kind, start + 8, start + size
        start += size


def _describe(meta: dict[bytes, bytes]) -> Stored:
    properties = dict(_boxes(meta[b"iprp"]))
    every = list(_boxes(properties[b"ipco"]))
    indices = _associations(properties[b"ipma"], _primary(meta[b"pitm"]))
    own = [every[i - 1] for i in indices if 0 < i <= len(every)]
    found = Stored()
    for kind, data in own:
        if kind == b"colr" and data[:4] == b"nclx":
            primaries, transfer = struct.unpack_from(">2H", data, 4)
            found = Stored(found.bits, primaries, transfer)
    # a picture of tiles may leave the depth to them, which are first among the properties
    for kind, data in [*own, *every]:
        bits = _bits(kind, data)
        if bits:
            return Stored(bits, found.primaries, found.transfer)
    return found


def _bits(kind: bytes, data: bytes) -> int | None:
    if kind == b"pixi":
        return max(data[5 : 5 + data[4]])
    if kind == b"av1C":
        return (12 if data[2] & 0x20 else 10) if data[2] & 0x40 else 8
    if kind == b"hvcC":
        return 8 + (data[17] & 7)
    return None


def _primary(pitm: bytes) -> int:
    return struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)[0]


def _associations(ipma: bytes, item: int) -> list[int]:
    """Numbers, from 1, of the properties of an item."""
    is_wide = bool(ipma[3] & 1)
    (count,) = struct.unpack_from(">I", ipma, 4)
    place = 8
    for _ in range(count):
        one = ">I" if ipma[0] else ">H"
        (found,) = struct.unpack_from(one, ipma, place)
        place += struct.calcsize(one)
        length, place = ipma[place], place + 1
        kind, mask = (">%dH", 0x7FFF) if is_wide else (">%dB", 0x7F)
        numbers = struct.unpack_from(kind % length, ipma, place)
        place += length * (1 + is_wide)
        if found == item:
            return [number & mask for number in numbers]
    return []


def replace_exif(path: Path, block: bytes) -> None:
    """Puts `block` (TIFF's layout) in place of the EXIF that stands in the file.

    It is written behind everything else and its address changed, so nothing moves.

    Raises:
        ValueError: the file holds no EXIF, or not as libheif writes it.
    """
    with path.open("r+b") as file:
        start, meta = _find_meta(file)
        try:
            place, base = _exif_address(meta)
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise ValueError("its EXIF cannot be placed; write a .png or .tif") from error
        payload = bytes(4) + block  # no bytes before TIFF's head
        end = file.seek(0, 2)
        file.write(struct.pack(">I4s", 8 + len(payload), b"mdat") + payload)
        file.seek(start + place)
        file.write(struct.pack(">II", end + 8 - base, len(payload)))


def _exif_address(meta: bytes) -> tuple[int, int]:
    """Where in `meta` offset and length of the EXIF stand, and what the offset counts from."""
    places = {kind: (first, last) for kind, first, last in _places(meta, 4)}
    content = meta[slice(*places[b"iinf"])]
    wanted = None
    for _, info in _boxes(content, 8 if content[0] else 6):
        if info[0] == 2 and info[8:12] == b"Exif":
            (wanted,) = struct.unpack_from(">H", info, 4)
    place = places[b"iloc"][0]
    version, sizes, bases, count = struct.unpack_from(">B3xBBH", meta, place)
    if version != 0 or sizes != 0x44 or bases != 0x40:
        raise ValueError("addresses of another width")
    place += 8
    for _ in range(count):
        item, base, parts = struct.unpack_from(">HxxIH", meta, place)
        if item == wanted and parts == 1:
            return place + 10, base
        place += 10 + 8 * parts
    raise ValueError("no EXIF")
