"""Picture files in: what a user hands in is checked, read with all its bits, and turned upright."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from addsr.errors import DependencyError, InputError

from . import deep, deep_heif
from .formats import BY_NAME, check_encoder, register_heif
from .metadata import Metadata, read_metadata, read_tiff_metadata, read_tiff_orientation
from .stored import describe, find_profile, is_in_planes, is_white_zero

log = logging.getLogger(__name__)

MAX_PIXELS = 160_000_000
"""Largest picture that is opened; a small file can claim any size and fill the memory."""

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values that swap height and width."""
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_EXIF = {"exif", "Raw profile type exif"}
DEEP_GREYS = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes for greys of more than 8 bits."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file, decoded and upright (EXIF orientation applied), first frame only.

    Raises:
        InputError: missing, a folder, not a picture, truncated, or more than `max_pixels`.
    """
    with _opened(Path(path), max_pixels) as image:
        _warn_of_frames(image, str(path))
        bits = describe(image).bits
        if bits > 8:
            log.warning("%s: has %d bits per channel; the result has 8", path, bits)
        return read_plain(image, str(path), bits)


@dataclass(frozen=True)
class File:
    """What a picture's file holds."""

    pixels: Image.Image | np.ndarray
    """Upright; uint16 `(H, W, C)` where Pillow holds fewer bits than the file."""
    metadata: Metadata
    profile: bytes | None
    """ICC."""


def read_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> File:
    """The picture in a file with all its bits, and what the file says about it.

    Raises:
        InputError: as `read_image`.
        DependencyError: what reads this format is not installed.
    """
    path = Path(path)
    try:
        with _opened(path, max_pixels) as image:
            _warn_of_frames(image, str(path))
            stored = describe(image)
            if image.format == "PNG":  # decoded in search of its EXIF, where damage would be hidden
                load(image, str(path))
            metadata = read_metadata(image)
            profile = find_profile(image, stored, str(path))
            if stored.bits > 8:
                pixels = _read_deep(image, path, stored.bits, metadata.orientation)
                if pixels is not None:
                    return File(pixels, metadata, profile)
            return File(read_plain(image, str(path), stored.bits), metadata, profile)
    except InputError as error:
        if not _is_for_vips(error, path):
            raise
        _, _, count = _vips_head(path, max_pixels)
        _warn_of_several(count, str(path))
        with path.open("rb") as file:
            metadata, profile = read_tiff_metadata(file)
        return File(deep.read_deep(path, metadata.orientation), metadata, profile)


def _read_deep(image: Image.Image, path: Path, bits: int, orientation: int) -> np.ndarray | None:
    """The pixels of a file of more than 8 bits; None where Pillow has to do."""
    if image.mode in ("CMYK", "LAB"):
        log.warning("%s: has %d bits per channel, 8 of them are used", path, bits)
        return None
    if image.format == "HEIF":
        return deep_heif.read_deep_heic(path)
    if image.mode in DEEP_GREYS:
        return None
    try:
        if image.format == "AVIF":
            deep_heif.check_avif()
            return deep_heif.read_deep_avif(path, image.mode)
        deep.vips()
        return deep.read_deep(path, orientation)
    except DependencyError as error:
        if is_in_planes(image):
            raise _needs_vips(path) from error
        log.warning(
            "%s: has %d bits per channel, 8 of them are used; for all: %s",
            path, bits, deep.INSTALL,
        )  # fmt: skip
        return None


def read_plain(image: Image.Image, name: str, bits: int) -> Image.Image:
    """An opened picture, of `bits` in its file, as Pillow reads it, upright.

    Raises:
        InputError: its data are damaged or cut short, or Pillow would read them wrong.
    """
    if bits > 8 and is_in_planes(image) and image.mode not in DEEP_GREYS:
        raise InputError(
            f"{name}: its channels of {bits} bits stand apart, of which 8 bits cannot be read; "
            "save it with the channels of a pixel together"
        )
    is_inverted = is_white_zero(image)
    load(image, name)
    turned = upright(image)
    if not turned.mode.startswith("I;16") or not (is_inverted or 8 < bits < 16):
        return turned
    top = 65535 if bits > 16 else 2**bits - 1
    values = np.asarray(turned).clip(0, top).astype(np.uint32)
    values = ((top - values if is_inverted else values) * 65535 + top // 2) // top
    made = Image.fromarray(values.astype(np.uint16))
    made.info = turned.info
    return made


def _warn_of_frames(image: Image.Image, name: str) -> None:
    used = "main" if image.format == "HEIF" else "first"
    _warn_of_several(getattr(image, "n_frames", 1), name, used)


def _warn_of_several(count: int, name: str, used: str = "first") -> None:
    if count > 1:
        log.warning("%s: has several pictures; only the %s one is used", name, used)


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width a file states, as stored (not turned); its pixels are not decoded.

    Raises:
        InputError: as `read_image`, as far as the head of the file shows it.
    """
    try:
        with _opened(Path(path), max_pixels) as image:
            return image.height, image.width
    except InputError as error:
        if not _is_for_vips(error, Path(path)):
            raise
        height, width, _ = _vips_head(Path(path), max_pixels)
        return height, width


def read_format(path: str | Path) -> str | None:
    """Pillow's name for the format of the picture in a file.

    Raises:
        InputError: as `read_image`, as far as the head of the file shows it.
    """
    path = Path(path)
    try:
        with _opened(path, MAX_PIXELS) as image:
            return "JPEG" if image.format == "MPO" else image.format  # of phones, and JPEG to all
    except InputError as error:
        if not _is_for_vips(error, path):
            raise
        return "TIFF"


def _stored_size(image: Any) -> tuple[int, int]:
    """Height and width before any turning; of a TIFF Pillow tells those after it."""
    if image.format != "TIFF":
        return image.height, image.width
    return int(image.tag_v2[_TIFF_HEIGHT]), int(image.tag_v2[_TIFF_WIDTH])


def _is_for_vips(error: InputError, path: Path) -> bool:
    """Whether `error` is about a TIFF that Pillow does not know."""
    if not isinstance(error.__cause__, UnidentifiedImageError):
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _vips_head(path: Path, max_pixels: int) -> tuple[int, int, int]:
    """Height, width and number of pictures of a TIFF that Pillow cannot open, from its head."""
    try:
        height, width, count = deep.read_deep_head(path)
    except DependencyError as error:
        raise _needs_vips(path) from error
    check_pixels(str(path), width, height, max_pixels)
    return height, width, count


def _needs_vips(path: Path) -> InputError:
    return InputError(f"{path}: this kind of TIFF needs libvips; install it: {deep.INSTALL}")


def _open(path: Path) -> Image.Image:
    """Pillow's `open`, with HEIC where a file is that."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
            if head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS:
                check_encoder(BY_NAME["AVIF"])
            raise
        try:
            register_heif()
        except DependencyError as error:
            raise DependencyError(f"{path}: {error}") from error
        return Image.open(path)


def read_upright_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width as `read_image` will give them; the pixels are not decoded.

    Raises:
        InputError: as `read_size`.
    """
    try:
        with _opened(Path(path), max_pixels) as image:
            orientation: Any = None
            # a PNG that does not say it in its head would be decoded for it
            if image.format != "PNG" or _PNG_EXIF & image.info.keys():
                with contextlib.suppress(*_BROKEN):  # `upright` tells of what cannot be read
                    orientation = image.getexif().get(_ORIENTATION)
            height, width = _stored_size(image)
            return (width, height) if orientation in _TURNED else (height, width)
    except InputError as error:
        if not _is_for_vips(error, Path(path)):
            raise
        height, width, _ = _vips_head(Path(path), max_pixels)
        with Path(path).open("rb") as file:
            is_turned = read_tiff_orientation(file) in _TURNED
        return (width, height) if is_turned else (height, width)


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Generator[Image.Image]:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give picture files, for example {path}/*.jpg")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; the check below is ours
            with _open(path) as image:
                check_pixels(str(path), image.width, image.height, max_pixels)
                yield image
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; check the spelling and the folder") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; check its permissions") from error
    except UnidentifiedImageError as error:
        raise InputError(_unknown(path)) from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(str(path), "", max_pixels)) from error
    except (InputError, DependencyError):
        raise
    except _BROKEN as error:
        if isinstance(error, OSError) and error.filename is not None:  # the system's, not Pillow's
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check its name, or copy it elsewhere"
            ) from error
        raise InputError(_damaged(str(path), error)) from error


def _unknown(path: Path) -> str:
    """What is wrong with a file that Pillow does not know."""
    with path.open("rb") as file:
        head = file.read(12)
    if head.startswith(_SIGNATURES) or head[8:12] in (*_HEIF_BRANDS, *_AVIF_BRANDS, b"WEBP"):
        return _damaged(str(path), "its head cannot be read")
    what = "is no picture in a format that can be read" if head else "is empty"
    return f"{path}: {what}; give PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF"


def load(image: Image.Image, name: str) -> None:
    """Decodes an opened picture; InputError where its data are damaged or cut short."""
    # Pillow maps an uncompressed TIFF into memory with the sides of the turned picture and turns it
    # then; what has no name is read and not mapped
    mapped = image if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF" else None
    path = mapped.filename if mapped else ""
    if mapped:
        mapped.filename = ""
    try:
        image.load()
    except _BROKEN as error:
        raise InputError(_damaged(name, error)) from error
    finally:
        if mapped:
            mapped.filename = path


def _damaged(name: str, reason: BaseException | str) -> str:
    words = " ".join(str(reason).split())
    return f"{name}: is damaged or cut short ({words}); copy or download it again"


def check_pixels(name: str, width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises InputError where a picture of this size would not be opened."""
    if width * height > max_pixels:
        raise InputError(_too_large(name, f"{width} x {height} is ", max_pixels))
    if width * height == 0:
        raise InputError(f"{name}: {width} x {height} has no pixels; give at least 1 x 1")


def _too_large(name: str, size: str, max_pixels: int) -> str:
    return (
        f"{name}: {size}more than the {max_pixels / 1e6:.0f} megapixels that are opened; "
        "cut it into parts or shrink it first"
    )


def upright(image: Image.Image) -> Image.Image:
    """A copy of `image` turned as its EXIF orientation says (some writers store a broken block)."""
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN as error:
        log.warning("EXIF block cannot be read (%s); the picture is taken as it is stored", error)
        return image.copy()
