"""What Pillow and libvips leave out of PNG, or make up: EXIF, XMP, resolution, code points."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from .metadata import Metadata

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_OURS = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")


def set_png_chunks(path: Path, metadata: Metadata | None) -> None:
    """Puts what `metadata` says in place of the texts and the EXIF of the PNG in `path`.

    XMP goes into an uncompressed iTXt chunk, as its specification (part 3) asks. Without a
    resolution in `metadata` the file states none.
    """
    part = path.with_name(f"{path.name}.chunks")
    has_dpi = metadata is not None and bool(metadata.dpi)
    try:
        with path.open("rb") as source, part.open("wb") as target:
            target.write(source.read(len(_SIGNATURE)))
            while True:
                head = source.read(8)
                length, kind = struct.unpack(">I4s", head)
                if kind == b"IDAT":
                    target.write(head)
                    shutil.copyfileobj(source, target, 1 << 20)
                    break
                rest = source.read(length + 4)
                if kind not in _OURS and (kind != b"pHYs" or has_dpi):
                    target.write(head + rest)
                if kind == b"IHDR" and metadata is not None:
                    _write_told(target, metadata)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_told(target: BinaryIO, metadata: Metadata) -> None:
    if metadata.exif is not None:
        target.write(_chunk(b"eXIf", metadata.exif.tobytes().removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        # keyword, not compressed, no language, no translated keyword
        target.write(_chunk(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_code_points(file: BinaryIO) -> tuple[int, int] | None:
    """Colour primaries and tone curve of a PNG's cICP, None without one.

    The file, opened at any place, is left there.
    """
    place = file.tell()
    try:
        file.seek(len(_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"cICP" and length == 4:
                return tuple(file.read(2))  # type: ignore[return-value]
            if kind == b"IDAT":
                break
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)
