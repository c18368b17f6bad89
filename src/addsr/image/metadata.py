"""EXIF, XMP, IPTC and resolution: read from a picture's file, corrected, handed to the encoders."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from addsr.errors import OutputError

from .formats import Format
from .xmp import correct_xmp

log = logging.getLogger(__name__)

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, TypeError)
"""What Pillow raises for tags that cannot be read."""
_EXIF_IFD, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005
_KEPT = frozenset({
    0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298,
    0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, _EXIF_IFD, _GPS,
})  # fmt: skip
"""Tags of the first directory that describe the photo; the others say how its file is stored."""
_SOFTWARE, _X_DPI, _Y_DPI, _DPI_UNIT = 0x0131, 0x011A, 0x011B, 0x0128
_WIDTH, _HEIGHT, _COLOUR_SPACE, _MAKER_NOTE = 0xA002, 0xA003, 0xA001, 0x927C
_UNTRUE = frozenset({_INTEROP, 0x9102, 0x9214, 0xA20E, 0xA20F, 0xA210, 0xA214})
"""Left out of EXIF's own directory: the pointer to the one about a camera's rules, how strongly the
source was compressed, and where things are in pixels of the source: subject, sensor."""
_XMP_TAG, _IPTC_TAG, _STRIPS, _PHOTOSHOP_IPTC = 700, 33723, 273, 0x0404
_ORIENTATION, _ICC_TAG = 0x0112, 34675
_SEGMENT = 65_500
"""Bytes that a segment of a JPEG holds, with room for its head."""


@dataclass(frozen=True)
class Metadata:
    """What a file says about its picture."""

    exif: Image.Exif | None = None
    """What describes the photo; tags about the storage of its file are left out."""
    orientation: int = 1
    """EXIF's, 1 to 8, of the pixels as they are stored."""
    xmp: bytes | None = None
    iptc: bytes | None = None
    """IPTC-IIM, as TIFF and Photoshop's blocks in JPEG hold it."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down."""
    done: Mapping[str, str] = field(default_factory=dict[str, str])
    """What was done to the picture, by name; goes into the result's XMP."""

    def with_done(self, done: Mapping[str, str]) -> Metadata:
        """The same with an account of what was done."""
        return replace(self, done=dict(done))

    def corrected(self, size: tuple[int, int], is_srgb: bool = False) -> Metadata:
        """For a result of `size` (width, height): upright, without thumbnail, by this program."""
        software = f"addsr {self.done['Version']}" if "Version" in self.done else "addsr"
        exif = _kept(self.exif)
        exif[_SOFTWARE] = software
        camera = exif.get_ifd(_EXIF_IFD)
        camera[_WIDTH], camera[_HEIGHT] = size
        if is_srgb:
            camera[_COLOUR_SPACE] = 1
        if self.dpi is not None:
            exif[_X_DPI], exif[_Y_DPI], exif[_DPI_UNIT] = *self.dpi, 2
        return replace(self, exif=exif, xmp=correct_xmp(self.xmp, size, software, self.done))


def _kept(exif: Image.Exif | None) -> Image.Exif:
    """A copy with what describes the photo; directories that cannot be read are left out."""
    kept = Image.Exif()
    if exif is None:
        return kept
    for tag in {*exif, _EXIF_IFD, _GPS} & _KEPT:
        try:
            if tag in (_EXIF_IFD, _GPS):
                found = exif.get_ifd(tag)
                kept.get_ifd(tag).update({k: v for k, v in found.items() if k not in _UNTRUE})
            else:
                kept[tag] = exif[tag]
        except BROKEN as error:
            log.warning("EXIF tag %#06x cannot be read (%s); it is left out", tag, error)
    try:
        kept.tobytes()
    except (*BROKEN, ArithmeticError, AttributeError) as error:
        # values of a wrong type are read without a word and cannot be written
        log.warning("EXIF block holds what cannot be written (%s); it is left out", error)
        return Image.Exif()
    return kept


def read_metadata(image: Image.Image) -> Metadata:
    """What an opened image says; blocks that cannot be read are left out with a warning."""
    info: dict[Any, Any] = image.info
    found: Image.Exif | None = None
    try:
        found = image.getexif()
        exif = _kept(found)
    except BROKEN as error:
        log.warning("EXIF block cannot be read (%s); it is left out", error)
        exif = None
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    xmp = packet.encode() if isinstance(packet, str) else packet
    iptc: Any = None
    tags: Any = getattr(image, "tag_v2", None)
    if tags is not None:
        xmp = xmp or tags.get(_XMP_TAG)
        iptc = _raw(tags, _IPTC_TAG)
    elif isinstance(info.get("photoshop"), dict):
        iptc = info["photoshop"].get(_PHOTOSHOP_IPTC)
    if image.format in ("JPEG", "MPO") and not info.get("jfif_unit"):
        info = {}  # Pillow says 72 where the EXIF says nothing
    return Metadata(exif, _turn(found), _bytes(xmp), _bytes(iptc), _resolution(info, found))


def read_tiff_metadata(file: BinaryIO) -> tuple[Metadata, bytes | None]:
    """The same and the ICC profile of a TIFF that Pillow cannot open, read from its start."""
    try:
        exif = _tiff_tags(file)
        # of the directory that Pillow keeps within
        iptc = _raw(getattr(exif, "_info", None) or exif, _IPTC_TAG)
        xmp = _bytes(exif.get(_XMP_TAG))
        metadata = Metadata(_kept(exif), _turn(exif), xmp, iptc, _resolution({}, exif))
        return metadata, _bytes(exif.get(_ICC_TAG))
    except BROKEN as error:
        log.warning("TIFF tags cannot be read (%s); they are left out", error)
        return Metadata(), None


def read_tiff_orientation(file: BinaryIO) -> int:
    """The same's orientation alone, 1 where it cannot be read."""
    try:
        return _turn(_tiff_tags(file))
    except BROKEN:
        return 1


def _tiff_tags(file: BinaryIO) -> Image.Exif:
    exif, head = Image.Exif(), file.read(16)
    if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF, whose head Pillow reads half of
        exif.bigtiff, exif.endian = True, "<" if head[:2] == b"II" else ">"
        exif.load_from_fp(file, struct.unpack(f"{exif.endian}Q", head[8:])[0])
    else:
        file.seek(0)
        exif.load_from_fp(file)
    return exif


def _turn(exif: Image.Exif | None) -> int:
    found: Any = exif.get(_ORIENTATION) if exif is not None else 1
    return found if found in range(1, 9) else 1


def _raw(directory: Any, tag: int) -> bytes | None:
    """The bytes of a tag, of whatever type; Photoshop states IPTC's as numbers of 32 bits."""
    # Pillow decodes the first of such numbers and forgets the others
    data = getattr(directory, "_tagdata", {}).get(tag)
    return data or _bytes(directory.get(tag))


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, tuple):  # some writers state bytes as a list of numbers
        try:
            return bytes(value)
        except (TypeError, ValueError):
            return None
    return value if isinstance(value, bytes) and value else None


def _resolution(info: Mapping[Any, Any], exif: Image.Exif | None) -> tuple[float, float] | None:
    try:
        if "dpi" in info:
            x, y = (float(one) for one in info["dpi"])
        elif exif is not None and exif.get(_X_DPI) and exif.get(_DPI_UNIT, 2) in (2, 3):
            per_inch = 2.54 if exif.get(_DPI_UNIT, 2) == 3 else 1.0
            x, y = (float(exif[tag]) * per_inch for tag in (_X_DPI, _Y_DPI))
        else:
            return None
    except (*BROKEN, ZeroDivisionError):
        return None
    # 1 is what writers state who know the shape of a pixel only
    return (x, y) if 1 < x < 1e5 and 1 < y < 1e5 else None


def save_arguments(metadata: Metadata, form: Format) -> dict[str, Any]:
    """Keyword arguments of Pillow's `save`; TIFF takes its own with `set_tiff_tags`."""
    found: dict[str, Any] = {}
    if metadata.dpi is not None and form.name in ("PNG", "JPEG", "TIFF", "BMP"):
        found["dpi"] = metadata.dpi
    if form.name == "TIFF":
        return found
    if form.has_exif and metadata.exif is not None:
        found["exif"] = _exif_block(metadata.exif, form)
    if not form.has_xmp or metadata.xmp is None:
        return found
    if form.name == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        found["pnginfo"] = chunks
    elif form.name == "JPEG":
        found["extra"] = _jpeg_segments(metadata)
    else:
        found["xmp"] = metadata.xmp
    return found


def _exif_block(exif: Image.Exif, form: Format) -> bytes:
    block = exif.tobytes()
    if form.name == "JPEG" and len(block) > _SEGMENT:
        log.warning("EXIF block is too long for JPEG; the camera maker's private part is left out")
        exif.get_ifd(_EXIF_IFD).pop(_MAKER_NOTE, None)
        block = exif.tobytes()
    return block if form.name != "JPEG" or len(block) <= _SEGMENT else b""


def _jpeg_segments(metadata: Metadata) -> bytes:
    found = b""
    head = b"http://ns.adobe.com/xap/1.0/\0"
    if metadata.xmp and len(metadata.xmp) + len(head) <= _SEGMENT:
        found += _segment(0xE1, head + metadata.xmp)
    elif metadata.xmp:
        log.warning("XMP block is too long for JPEG; it is left out (PNG and TIFF hold it)")
    if metadata.iptc and len(metadata.iptc) <= _SEGMENT:
        block = b"8BIM" + struct.pack(">HHI", _PHOTOSHOP_IPTC, 0, len(metadata.iptc))
        found += _segment(
            0xED, b"Photoshop 3.0\0" + block + metadata.iptc + b"\0" * (len(metadata.iptc) % 2)
        )
    return found


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def set_tiff_tags(file: BinaryIO, metadata: Metadata) -> None:
    """Puts the metadata into a finished TIFF, opened for reading and writing.

    The directory is written anew at the end with them and the head points there: encoders give
    no way to nested directories such as EXIF's. Without a resolution in `metadata` the file states
    none; libvips makes one up.
    """
    head = file.read(8)
    if head[2:4] not in (b"*\0", b"\0*"):
        raise OutputError("TIFF: is larger than 4 GB and takes no EXIF; write a .png")
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    for tag in list(tags):  # decoded at the first look only, and what is not decoded is not written
        tags[tag] = tags[tag]
    if metadata.dpi is None:
        for tag in (_X_DPI, _Y_DPI, _DPI_UNIT):
            tags.pop(tag, None)
    exif = metadata.exif
    for tag in exif or ():
        assert exif is not None
        if tag not in (_EXIF_IFD, _GPS):
            tags[tag] = exif[tag]
    for tag in (_EXIF_IFD, _GPS):
        if exif is not None and exif.get_ifd(tag):
            nested = TiffImagePlugin.ImageFileDirectory_v2(head, group=tag)
            for key, value in exif.get_ifd(tag).items():
                nested[key] = value
            tags.tagtype[tag] = 4
            tags[tag] = dict(nested)
    for tag, block in ((_XMP_TAG, metadata.xmp), (_IPTC_TAG, metadata.iptc)):
        if block:
            tags.tagtype[tag] = 1 if tag == _XMP_TAG else 7
            tags[tag] = block
    end = file.seek(0, 2)
    file.write(b"\0" * (end % 2))
    offset = end + end % 2
    file.write(_directory(tags, offset))
    file.seek(4)
    file.write(struct.pack("<I" if head[:2] == b"II" else ">I", offset))


def _directory(tags: TiffImagePlugin.ImageFileDirectory_v2, offset: int) -> bytes:
    """`tags` as they stand at `offset` of a file whose pixels stay where they are."""
    order = "<" if tags.prefix == b"II" else ">"
    tags.tagtype[_STRIPS] = 4
    strips: Any = tags[_STRIPS]
    strips = strips if isinstance(strips, tuple) else (strips,)
    made = bytearray(tags.tobytes(offset))
    # Pillow takes the pixels to follow the directory and moves their addresses
    for entry in range(2, 2 + 12 * len(tags), 12):
        tag, _, count, place = struct.unpack_from(f"{order}HHII", made, entry)
        if tag == _STRIPS:
            start = entry + 8 if count == 1 else place - offset
            struct.pack_into(f"{order}{count}I", made, start, *strips)
    return bytes(made)
