"""Picture files in and out: what a user hands in is checked, what they get is written whole."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import struct
import warnings
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from addsr.errors import DependencyError, InputError, OutputError

from . import deep
from .formats import FORMATS, Format, check_encoder, encoder_settings, find_format, register_heif
from .metadata import (
    Metadata,
    read_metadata,
    read_tiff_metadata,
    read_tiff_orientation,
    save_arguments,
    set_tiff_tags,
)
from .options import FileOptions
from .placing import put

log = logging.getLogger(__name__)

__all__ = ["FORMATS", "check_output", "read_file", "read_image", "read_size", "write_image"]

MAX_PIXELS = 160_000_000
"""Largest picture that is opened; a small file can claim any size and fill the memory."""

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values that swap height and width."""
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_EXIF = {"exif", "Raw profile type exif"}
_DEEP_GREYS = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file, decoded and upright (EXIF orientation applied), first frame only.

    Raises:
        InputError: missing, a folder, not a picture, truncated, or more than `max_pixels`.
    """
    with _opened(Path(path), max_pixels) as image:
        if getattr(image, "n_frames", 1) > 1:
            log.warning("%s: has several frames; only the first is used", path)
        warn_of_depth(image, str(path))
        load(image, str(path))
        return upright(image)


@dataclass(frozen=True)
class File:
    """What a picture's file holds."""

    pixels: Image.Image | np.ndarray
    """Upright; uint16 `(H, W, C)` for colour of 16 bits."""
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
            if getattr(image, "n_frames", 1) > 1:
                log.warning("%s: has several frames; only the first is used", path)
            is_deep = _is_deep(image)  # first: a PNG is decoded in search of its EXIF
            metadata, profile = read_metadata(image), image.info.get("icc_profile")
            if is_deep and image.mode in ("CMYK", "LAB"):
                log.warning("%s: has 16 bits per channel, 8 of them are used", path)
            elif is_deep and image.mode not in _DEEP_GREYS:
                if deep.has_vips():
                    pixels = deep.read_deep(path, metadata.orientation)
                    return File(pixels, metadata, profile)
                log.warning(
                    "%s: has 16 bits per channel, 8 of them are used; for all: %s",
                    path, deep.INSTALL,
                )  # fmt: skip
            load(image, str(path))
            return File(upright(image), metadata, profile)
    except InputError as error:
        if not _is_for_vips(error, path):
            raise
        _vips_size(path, max_pixels)
        with path.open("rb") as file:
            metadata, profile = read_tiff_metadata(file)
        return File(deep.read_deep(path, metadata.orientation), metadata, profile)


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
        return _vips_size(Path(path), max_pixels)


def read_format(path: str | Path) -> str | None:
    """Pillow's name for the format of the picture in a file.

    Raises:
        InputError: as `read_image`, as far as the head of the file shows it.
    """
    path = Path(path)
    try:
        with _opened(path, MAX_PIXELS) as image:
            return image.format
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


def _vips_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Height and width of a TIFF that Pillow cannot open, from its head."""
    try:
        height, width = deep.read_deep_size(path)
    except DependencyError as error:
        raise InputError(
            f"{path}: this kind of TIFF needs libvips; install it: {deep.INSTALL}"
        ) from error
    check_pixels(str(path), width, height, max_pixels)
    return height, width


def _open(path: Path) -> Image.Image:
    """Pillow's `open`, with HEIC where a file is that."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            head = file.read(12)
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
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
        height, width = _vips_size(Path(path), max_pixels)
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
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the spelling and the folder") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; check its permissions") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        what = "is empty" if empty else "is no picture in a format that can be read"
        raise InputError(
            f"{path}: {what}; give PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(str(path), "", max_pixels)) from error
    except (InputError, DependencyError):
        raise
    except _BROKEN as error:
        raise InputError(_damaged(str(path), error)) from error


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


def _damaged(name: str, error: BaseException) -> str:
    return f"{name}: is damaged or cut short ({error}); copy or download it again"


def warn_of_depth(image: Image.Image, name: str) -> None:
    """Says so where an opened picture, not yet decoded, has 16 bits: results of its kind have 8."""
    if _is_deep(image):
        log.warning("%s: has 16 bits per channel; the result has 8", name)


def _is_deep(image: Image.Image) -> bool:
    """True where an opened picture, not yet decoded, has 16 bits per channel."""
    # Pillow decodes 16-bit colour into its 8-bit modes; what stands in the file only the
    # decoder's settings tell, and those are gone once the picture is loaded
    found: list[Any] = [image.mode]
    for tile in getattr(image, "tile", []):
        found.append(tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0])
    # BGR;16 is BMP's 16 bits for all three channels together
    return any(";16" in str(mode) and mode != "BGR;16" for mode in found)


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


def result_bits(path: str | Path, source_bits: int, files: FileOptions, *, is_grey: bool) -> int:
    """Bits per channel of a result in `path`: 8 or 16.

    Raises:
        OutputError: 16 are asked for and the format does not hold them.
        DependencyError: 16 are asked for and libvips, which writes them, is missing.
    """
    form = find_format(path)
    wanted = files.bit_depth == "16" or (files.bit_depth == "auto" and source_bits == 16)
    if files.bit_depth == "16" and not form.is_deep:
        raise OutputError(f"{path}: {form.name} holds 8 bits per channel; write a .png or .tif")
    if not wanted or not form.is_deep:
        return 8
    if is_grey or deep.has_vips():
        return 16
    if files.bit_depth == "16":
        deep.vips()  # says what is missing
    log.warning("%s: 8 bits per channel are written, for 16 install: %s", path, deep.INSTALL)
    return 8


def check_output(path: str | Path, width: int = 1, height: int = 1) -> None:
    """Finds out before any work whether a picture of this size can be written to `path`.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, or a format with too short sides.
        DependencyError: what writes this format is not installed.
    """
    path = Path(path)
    form = find_format(path)
    check_encoder(form)
    if form.longest_side is not None and max(width, height) > form.longest_side:
        raise OutputError(
            f"{path}: {width} x {height} is too large for {form.name}, whose sides end at "
            f"{form.longest_side}; write a .png or .tif"
        )
    with _temporary(path):
        pass


def write_image(
    image: Image.Image | np.ndarray,
    path: str | Path,
    files: FileOptions | None = None,
    metadata: Metadata | None = None,
    profile: bytes | None = None,
) -> None:
    """Writes `image` in the format of the suffix; the file appears whole or not at all.

    JPEG holds no transparency: the picture is laid on white there.

    Args:
        image: of Pillow, or uint16 `(H, W, C)` for PNG and TIFF.
        metadata: of the picture before it was enlarged; corrected here for what `image` is.
        profile: ICC; an image of Pillow may bring its own in `info`.

    Raises:
        OutputError: unknown suffix, unwritable folder, full disk.
        DependencyError: what writes this format is not installed.
    """
    path, files = Path(path), files or FileOptions()
    form = find_format(path)
    check_encoder(form)
    is_array = isinstance(image, np.ndarray)
    size = (image.shape[1], image.shape[0]) if is_array else image.size
    profile = profile if is_array else profile or image.info.get("icc_profile")
    profile = profile if form.has_profile and files.icc != "strip" else None
    told: Metadata | None = None
    if metadata is not None and files.metadata == "keep":
        told = metadata.corrected(size, files.icc == "srgb" and profile is not None)
    try:
        with _temporary(path) as temporary:
            if is_array:
                deep.write_deep(image, temporary, form, told, profile)
            else:
                options = encoder_settings(form, files)
                options |= save_arguments(told, form) if told is not None else {}
                if profile:
                    options["icc_profile"] = profile
                with _bare(_for_format(image, form, path)) as bare:
                    bare.save(temporary, format=form.name, **options)
            if form.name == "TIFF" and (told is not None or is_array):
                with temporary.open("r+b") as file:
                    set_tiff_tags(file, told or Metadata())
            put(temporary, path)
    except (OutputError, DependencyError):
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error


@contextlib.contextmanager
def _bare(image: Image.Image) -> Generator[Image.Image]:
    """`image` without `info`, out of which Pillow would write what nobody asked for."""
    if type(image) is not Image.Image:  # an opened file has more than `info` to write from
        image = image.copy()
    before = image.info  # put aside and not copied with the pixels: results are large
    image.info = {k: v for k, v in before.items() if k == "transparency"}
    try:
        yield image
    finally:
        image.info = before


def _for_format(image: Image.Image, form: Format, path: Path) -> Image.Image:
    """`image` in a mode that the format holds."""
    if image.mode in ("LA", "RGBA") and not form.has_alpha:
        log.warning("%s: %s holds no transparency; laid on white (PNG keeps it)", path, form.name)
        return _on_white(image)
    if form.name == "GIF" and image.mode != "P":
        return _to_palette(image)
    if image.mode == "LA" and form.name in ("BMP", "WEBP", "AVIF", "HEIF"):
        return image.convert("RGBA")
    return image


def _to_palette(image: Image.Image) -> Image.Image:
    """256 colours, dithered; half transparent pixels become wholly one or the other."""
    if image.mode == "L":
        return image
    rgb = image.convert("RGB")
    best = rgb.quantize(255, Image.Quantize.MEDIANCUT)
    made = rgb.quantize(palette=best, dither=Image.Dither.FLOYDSTEINBERG)
    if image.mode in ("LA", "RGBA"):
        hidden = image.getchannel("A").point([255] * 128 + [0] * 128)
        made.paste(255, mask=hidden)
        made.info["transparency"] = 255
    return made


def _on_white(image: Image.Image) -> Image.Image:
    plain = image.convert("RGBA")
    white = Image.new("RGBA", plain.size, "white")
    white.alpha_composite(plain)
    return white.convert("L" if image.mode == "LA" else "RGB")


@contextlib.contextmanager
def _temporary(path: Path) -> Generator[Path]:
    """A fresh empty file beside `path`, removed at the end if it is still there."""
    # 40 letters are at most 160 bytes: a name that just fits has room for what is put around it
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(path.stat().st_mode):
                raise OutputError(f"{path}: is a folder; give the name of a file")
        # not tempfile: its files are private, and the result should follow the user's umask
        temporary.open("xb").close()
    except OutputError:
        raise
    except FileNotFoundError as error:
        raise OutputError(f"{path}: folder {path.parent} does not exist; create it") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"{path}: name is too long; give a shorter one") from error
        raise OutputError(
            f"{path}: folder {path.parent} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
