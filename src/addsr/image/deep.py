"""Pictures of 16 bits per channel in colour, which Pillow cannot hold: read and written by libvips.

Arrays here are uint16 `(H, W, C)`, C of 1 to 4: grey, grey + alpha, RGB, RGBA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from addsr.errors import DependencyError, InputError

from .formats import Format
from .metadata import Metadata
from .png_chunks import set_png_chunks

INSTALL = "pip install 'addsr[deep]'"
_TURNS = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: x.swapaxes(0, 1)[::-1],
}  # fmt: skip


def vips() -> Any:
    """The module pyvips.

    Raises:
        DependencyError: it is not installed, or without its library.
    """
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise DependencyError(
            f"16 bits per channel in colour need libvips; install it: {INSTALL}"
        ) from error
    return pyvips


def read_deep_head(path: Path) -> tuple[int, int, int]:
    """Height, width and number of pictures that the head of a file states.

    Raises:
        InputError: it is damaged; DependencyError: libvips is missing.
    """
    pyvips = vips()
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
    except pyvips.Error as error:
        raise InputError(
            f"{path}: is damaged or cut short ({one_line(error)}); copy or download it again"
        ) from error
    return image.height, image.width, image.get_n_pages()


def read_deep(path: Path, orientation: int = 1) -> np.ndarray:
    """The first picture of a PNG or TIFF of 16 bits or floats, upright, as uint16.

    Floats are taken as light in [0, 1] as stored; what lies outside is clipped.

    Raises:
        InputError: it is damaged, or of no layout that can be used.
        DependencyError: libvips is missing.
    """
    pyvips = vips()
    try:
        options = {"access": "sequential", "fail_on": "truncated"}
        image = pyvips.Image.new_from_file(str(path), **options)
        if image.bands > 4 or image.format not in ("uchar", "ushort", "float", "double"):
            raise InputError(
                f"{path}: {image.bands} channels of {image.format} cannot be used; "
                "save it as RGB of 16 bits"
            )
        if image.interpretation in ("cmyk", "lab", "labs"):
            raise InputError(
                f"{path}: {image.interpretation} of 16 bits cannot be used; save it as RGB"
            )
        values = image.numpy().reshape(image.height, image.width, image.bands)
    except pyvips.Error as error:
        raise InputError(
            f"{path}: is damaged or cut short ({one_line(error)}); copy or download it again"
        ) from error
    if values.dtype.kind == "f":
        values = (np.nan_to_num(values).clip(0, 1) * 65535).round()
    elif values.dtype == np.uint8:
        values = values.astype(np.uint16) * 257
    turned = _TURNS.get(orientation, _TURNS[1])(values)
    return np.ascontiguousarray(turned.astype(np.uint16, copy=False))


def write_deep(
    values: np.ndarray, path: Path, form: Format, metadata: Metadata | None, profile: bytes | None
) -> None:
    """Writes uint16 `(H, W, C)` as PNG or TIFF to `path`, with profile and what PNG holds.

    Raises:
        OSError: it cannot be written; DependencyError: libvips is missing.
    """
    pyvips = vips()
    height, width, bands = values.shape
    image = pyvips.Image.new_from_memory(
        np.ascontiguousarray(values).data.cast("B"), width, height, bands, "ushort"
    )
    dpi = (metadata and metadata.dpi) or None
    dots = {"xres": dpi[0] / 25.4, "yres": dpi[1] / 25.4} if dpi else {}
    image = image.copy(interpretation="grey16" if bands < 3 else "rgb16", **dots).copy()
    blob = pyvips.GValue.blob_type
    if profile:
        image.set_type(blob, "icc-profile-data", profile)
    try:
        if form.name == "PNG":
            # libvips makes up EXIF and writes XMP where no other program looks for it
            image.pngsave(
                str(path), bitdepth=16, compression=form.settings["compress_level"], keep="icc"
            )
            set_png_chunks(path, metadata)
        else:
            image.tiffsave(str(path), compression="deflate", predictor="horizontal", keep="icc")
    except pyvips.Error as error:
        raise OSError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """What an error says, without the breaks that libraries put in."""
    return " ".join(str(error).split())
