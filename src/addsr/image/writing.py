"""Picture files out: what cannot be written is found before any work, a file appears whole."""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from addsr.errors import DependencyError, OutputError

from . import deep, deep_heif
from .formats import Format, check_encoder, encoder_settings, find_format
from .isobmff import replace_exif
from .metadata import Metadata, save_arguments, set_tiff_tags
from .options import FileOptions, IccChoice
from .placing import put

log = logging.getLogger(__name__)

_LAYOUTS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def result_bits(
    path: str | Path,
    source_bits: int,
    files: FileOptions,
    *,
    is_grey: bool,
    size: tuple[int, int] = (1, 1),
    is_told: bool = True,
) -> int:
    """Bits per channel of a result of `size` for `path`, as it is handed to `write_image`: 8 or 16.

    16 also where the file will hold 10 or 12 of them.

    Args:
        is_told: whether a warning says what will be lost for want of a library.

    Raises:
        OutputError: 16 are asked for and the format holds no more than 8.
        DependencyError: 16 are asked for and the library that writes them is missing.
    """
    form = find_format(path)
    is_forced = files.bit_depth == "16"
    wanted = is_forced or (files.bit_depth == "auto" and source_bits == 16)
    if is_forced and not form.deep_bits:
        raise OutputError(f"{path}: {form.name} holds 8 bits per channel; write a .png or .tif")
    if not wanted or not form.deep_bits:
        return 8
    try:
        _check_deep(form, is_grey, size)
    except (DependencyError, OutputError) as error:
        if is_forced:
            raise type(error)(f"{path}: {error}") from error
        if is_told:
            log.warning("%s: 8 bits per channel are written; %s", path, error)
        return 8
    if is_forced and is_told and form.deep_bits[-1] < 16:
        bits = form.deep_bits[-1]
        log.warning("%s: %s holds %d bits per channel, which are written", path, form.name, bits)
    return 16


def _check_deep(form: Format, is_grey: bool, size: tuple[int, int]) -> None:
    """Raises DependencyError or OutputError where more than 8 bits cannot be written."""
    if form.name == "AVIF":
        deep_heif.check_avif()
        if max(size) > deep_heif.AVIF_SIDE:
            raise OutputError(
                f"AVIF of more than 8 bits has sides up to {deep_heif.AVIF_SIDE}; "
                "write a .png or .tif"
            )
    elif form.name != "HEIF" and not is_grey:
        deep.vips()


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
        image: of Pillow, or uint16 `(H, W, C)` for formats of more than 8 bits.
        metadata: of the picture before it was enlarged; corrected here for what `image` is.
        profile: ICC; an image of Pillow may bring its own in `info`.

    Raises:
        OutputError: unknown suffix, unwritable folder, full disk.
        DependencyError: what writes this format is not installed.
    """
    path, files = Path(path), files or FileOptions()
    form = find_format(path)
    check_encoder(form)
    if isinstance(image, np.ndarray):
        if not form.deep_bits:
            raise OutputError(f"{path}: {form.name} holds 8 bits per channel; write a .png or .tif")
    else:
        profile = profile or image.info.get("icc_profile")
        if image.mode == "I;16" and form.name in ("AVIF", "HEIF"):
            image = np.asarray(image)[:, :, None]
    image, profile = _for_format(image, profile, form, path)
    size = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
    profile = profile if form.has_profile and files.icc != "strip" else None
    told: Metadata | None = None
    if metadata is not None and files.metadata == "keep":
        told = metadata.corrected(size, files.icc == "srgb" and profile is not None)
    try:
        with _temporary(path) as temporary:
            if isinstance(image, np.ndarray):
                _write_deep(image, temporary, form, files, told, profile)
            else:
                options = encoder_settings(form, files)
                options |= save_arguments(told, form) if told is not None else {}
                if profile:
                    options["icc_profile"] = profile
                if form.name == "AVIF" and image.mode == "L":
                    options["subsampling"] = "4:0:0"
                with _bare(image) as bare:
                    bare.save(temporary, format=form.name, **options)
            if form.name == "TIFF" and (told is not None or isinstance(image, np.ndarray)):
                with temporary.open("r+b") as file:
                    set_tiff_tags(file, told or Metadata())
            put(temporary, path)
    except (OutputError, DependencyError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # the last from pillow-heif
        raise OutputError(f"{path}: cannot be written ({deep.one_line(error)})") from error


def _write_deep(
    values: np.ndarray,
    path: Path,
    form: Format,
    files: FileOptions,
    told: Metadata | None,
    profile: bytes | None,
) -> None:
    if form.name not in ("AVIF", "HEIF"):
        deep.write_deep(values, path, form, told, profile)
        return
    # the usual number is what cameras store and every viewer shows
    bits = form.deep_bits[-1 if files.bit_depth == "16" else 0]
    settings = encoder_settings(form, files)
    settings |= save_arguments(told, form) if told is not None else {}
    if form.name == "HEIF":
        deep_heif.write_deep_heic(values, path, bits, settings, profile)
        return
    deep_heif.write_deep_avif(values, path, bits, settings, profile)
    if "exif" in settings:  # libvips adds to it what nobody said
        replace_exif(path, settings["exif"].removeprefix(b"Exif\0\0"))


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


def _for_format(
    image: Any, profile: bytes | None, form: Format, path: Path
) -> tuple[Any, bytes | None]:
    """`image` in a mode that the format holds, and the profile that goes with it."""
    if isinstance(image, np.ndarray):
        layout = _LAYOUTS[image.shape[2]]
        if holds_grey(form, layout, 16):
            return image, profile
        wide = image[:, :, [0, 0, 0, 1] if layout == "LA" else [0, 0, 0]]
        return wide, _of_colour(profile)
    if image.mode in ("LA", "RGBA") and not form.has_alpha:
        if image.getchannel("A").getextrema()[0] < 255:
            log.warning(
                "%s: %s holds no transparency; laid on white (PNG keeps it)", path, form.name
            )
        image = _on_white(image)
    if form.name == "GIF" and image.mode != "P":
        return _to_palette(image), profile
    if not holds_grey(form, image.mode, 8):
        return image.convert("RGBA" if image.mode == "LA" else "RGB"), _of_colour(profile)
    return image, profile


def holds_grey(form: Format, layout: str, bits: int) -> bool:
    """False where a picture of greys becomes one of colour in this format."""
    is_grey = layout in ("L", "LA")
    # libvips, which writes AVIF of more than 8 bits, knows it in colour only
    return not is_grey or (layout in form.greys and (bits == 8 or form.name != "AVIF"))


def result_icc(path: str | Path, files: FileOptions, layout: str, bits: int) -> IccChoice:
    """What to do about the profile of a picture: `files.icc`, or "srgb" where it cannot be kept.

    BMP and GIF hold none, and where greys become colours a profile of greys does not fit.
    """
    form = find_format(path)
    if files.icc == "keep" and not (form.has_profile and holds_grey(form, layout, bits)):
        return "srgb"
    return files.icc


def _of_colour(profile: bytes | None) -> bytes | None:
    return None if profile is not None and profile[16:20] == b"GRAY" else profile


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
