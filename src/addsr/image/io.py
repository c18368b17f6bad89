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
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from addsr.errors import InputError, OutputError

from .placing import put

log = logging.getLogger(__name__)

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffixes that can be written, and Pillow's name of their format."""

MAX_PIXELS = 160_000_000
"""Largest picture that is opened; a small file can claim any size and fill the memory."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "BMP": {},
}
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values that swap height and width."""
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
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


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width a file states, as stored (not turned); its pixels are not decoded.

    Raises:
        InputError: as `read_image`, as far as the head of the file shows it.
    """
    with _opened(Path(path), max_pixels) as image:
        return image.height, image.width


def read_upright_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width as `read_image` will give them; the pixels are not decoded.

    Raises:
        InputError: as `read_size`.
    """
    with _opened(Path(path), max_pixels) as image:
        orientation: Any = None
        with contextlib.suppress(*_BROKEN):  # `upright` tells of a block that cannot be read
            orientation = image.getexif().get(_ORIENTATION)
        height, width = image.height, image.width
        return (width, height) if orientation in _TURNED else (height, width)


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Generator[Image.Image]:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; give picture files, for example {path}/*.jpg")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; the check below is ours
            with Image.open(path) as image:
                check_pixels(str(path), image.width, image.height, max_pixels)
                yield image
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the spelling and the folder") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; check its permissions") from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        what = "is empty" if empty else "is no picture in a format that can be read"
        raise InputError(f"{path}: {what}; give PNG, JPEG, WebP, TIFF, BMP or GIF") from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(str(path), "", max_pixels)) from error
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(_damaged(str(path), error)) from error


def load(image: Image.Image, name: str) -> None:
    """Decodes an opened picture; InputError where its data are damaged or cut short."""
    try:
        image.load()
    except _BROKEN as error:
        raise InputError(_damaged(name, error)) from error


def _damaged(name: str, error: BaseException) -> str:
    return f"{name}: is damaged or cut short ({error}); copy or download it again"


def warn_of_depth(image: Image.Image, name: str) -> None:
    """Says so where an opened picture, not yet decoded, has 16 bits: results of its kind have 8."""
    # Pillow decodes 16-bit colour into its 8-bit modes; what stands in the file only the
    # decoder's settings tell, and those are gone once the picture is loaded
    found: list[Any] = [image.mode]
    for tile in getattr(image, "tile", []):
        found.append(tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0])
    # BGR;16 is BMP's 16 bits for all three channels together
    if any(";16" in str(mode) and mode != "BGR;16" for mode in found):
        log.warning("%s: has 16 bits per channel; the result has 8", name)


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


def output_format(path: str | Path) -> str:
    """Pillow's format name for the suffix of `path`.

    Raises:
        OutputError: the suffix is none that can be written.
    """
    path = Path(path)
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise OutputError(
            f"{path}: suffix {path.suffix!r} cannot be written; use one of {', '.join(FORMATS)}"
        ) from None


def check_output(path: str | Path, width: int = 1, height: int = 1) -> None:
    """Finds out before any work whether a picture of this size can be written to `path`.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, or a format with too short sides.
    """
    path = Path(path)
    name = output_format(path)
    longest = _LONGEST_SIDE.get(name)
    if longest is not None and max(width, height) > longest:
        raise OutputError(
            f"{path}: {width} x {height} is too large for {name}, whose sides end at {longest}; "
            "write a .png or .tif"
        )
    with _temporary(path):
        pass


def write_image(image: Image.Image, path: str | Path) -> None:
    """Writes `image` in the format of the suffix; the file appears whole or not at all.

    JPEG holds no transparency: the picture is laid on white there. An ICC profile in
    `image.info` is kept.

    Raises:
        OutputError: unknown suffix, unwritable folder, full disk.
    """
    path = Path(path)
    name = output_format(path)
    options = dict(_OPTIONS[name])
    profile = image.info.get("icc_profile")
    if profile and name != "BMP":
        options["icc_profile"] = profile
    if image.mode in ("LA", "RGBA") and name == "JPEG":
        log.warning("%s: JPEG holds no transparency; laid on white (PNG keeps it)", path)
        image = _on_white(image)
    elif image.mode == "LA" and name in ("BMP", "WEBP"):
        image = image.convert("RGBA")
    try:
        with _temporary(path) as temporary:
            image.save(temporary, format=name, **options)
            put(temporary, path)
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error


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
