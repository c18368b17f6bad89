"""A `torch.save` archive gone over by hand before two readers are trusted to see the same in it.

Python's `zipfile`, which looks for harm, and torch's own reader, which loads, find their way by
different fields of a zip. A file made so that they differ would be checked in one place and read in
another. So: one list of entries at the end of the file, each entry once, in a place of its own,
under the name and with the size that stands in front of its bytes.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_WIDE = 0xFFFFFFFF
_HAS_UTF8_NAME, _HAS_SIZES_BEHIND, _IS_ENCRYPTED = 1 << 11, 1 << 3, 1 << 0


class Entry(NamedTuple):
    """A file in the archive."""

    name: str
    start: int
    """Place of its first byte in the archive."""
    bytes: int


def entries_of(path: Path) -> list[Entry]:
    """All files of the archive, in the order of their places.

    Raises:
        ValueError: it is compressed, or the fields of the archive contradict one another.
        zipfile.BadZipFile: it is none.
    """
    with zipfile.ZipFile(path) as archive:
        listed, start_of_list = archive.infolist(), archive.start_dir
    names = {entry.filename.lower() for entry in listed}  # torch does not tell capitals apart
    if len(names) < len(listed):
        raise ValueError("is an archive that has a name twice")
    found: list[Entry] = []
    with path.open("rb") as file:
        _check_end(file, start_of_list, len(listed))
        end = 0
        for entry in sorted(listed, key=lambda one: one.header_offset):
            if entry.header_offset < end:
                raise ValueError(f"is an archive whose entries overlap at {entry.filename!r}")
            start = _check_local(file, entry)
            end = start + entry.file_size
            found.append(Entry(entry.filename, start, entry.file_size))
        if end > start_of_list:
            raise ValueError("is an archive whose entries reach into its list of them")
    return found


def _check_end(file: IO[bytes], start_of_list: int, count: int) -> None:
    """ValueError unless the record at the very end tells what Python took for the list."""
    differ = ValueError("is an archive whose end does not tell where its list of entries is")
    end = file.seek(0, 2) - _END.size
    file.seek(end)
    mark, *_, entries, size, start, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\x05\x06" or comment:
        raise differ
    if end >= _LOCATOR.size + _END64.size:
        file.seek(end - _LOCATOR.size)
        mark, _, place, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if mark == b"PK\x06\x07":
            end -= _LOCATOR.size + _END64.size
            if place != end:
                raise differ
            file.seek(end)
            mark, *_, entries64, size64, start64 = _END64.unpack(file.read(_END64.size))
            # the narrow fields may say the same, or nothing
            narrow = ((entries, entries64, 0xFFFF), (size, size64, _WIDE), (start, start64, _WIDE))
            if mark != b"PK\x06\x06" or any(n not in (wide, most) for n, wide, most in narrow):
                raise differ
            entries, size, start = entries64, size64, start64
    if (entries, start, start + size) != (count, start_of_list, end):
        raise differ


def _check_local(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Place of the first byte of `entry`, once what stands before it agrees with the list."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise ValueError(f"is an archive without {entry.filename!r} where its list has it")
    _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes = _LOCAL.unpack(header)
    if {method, entry.compress_type} != {zipfile.ZIP_STORED}:
        raise ValueError("is compressed, which torch.save never does")
    if (flags | entry.flag_bits) & _IS_ENCRYPTED:
        raise ValueError("is encrypted, which torch.save never does")
    sizes = {packed, size} - {_WIDE}  # a wide one stands in the extra field
    if flags & _HAS_SIZES_BEHIND:
        sizes -= {0}
    if entry.compress_size != entry.file_size or not sizes <= {entry.file_size}:
        raise ValueError(f"is an archive that gives two sizes of {entry.filename!r}")
    raw = file.read(name_bytes)
    # orig_filename: zipfile cuts names at a zero byte and turns separators
    if raw.decode("utf-8" if flags & _HAS_UTF8_NAME else "cp437") != entry.orig_filename:
        raise ValueError(f"is an archive that gives two names of {entry.filename!r}")
    if entry.orig_filename != entry.filename:
        raise ValueError(f"is an archive with the name {entry.orig_filename!r}")
    return entry.header_offset + _LOCAL.size + name_bytes + extra_bytes
