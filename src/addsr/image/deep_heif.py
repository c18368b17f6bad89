"""HEIC and AVIF of 10 and 12 bits per channel: HEIC by pillow-heif, AVIF by libvips.

Arrays here are uint16 `(H, W, C)` over their whole range, C of 1 to 4 as in `deep`; what the file
holds is rounded from it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from addsr.errors import DependencyError, InputError

from .deep import INSTALL, one_line, vips
from .formats import register_heif

AVIF_SIDE = 16_384
"""Longest side that libvips writes."""
_FAILED = (RuntimeError, ValueError, OSError, EOFError, SyntaxError)
_MODES = {1: "L;16", 3: "RGB;16", 4: "RGBA;16"}


def check_avif() -> None:
    """Raises DependencyError where AVIF of more than 8 bits can be neither read nor written."""
    if not _avif_works(vips()):
        raise DependencyError(f"AVIF of more than 8 bits needs a libvips with AVIF: {INSTALL}")


@functools.cache
def _avif_works(pyvips: Any) -> bool:
    # a libvips may be built without HEIF, and its libheif without an encoder of AV1
    try:
        made = pyvips.Image.black(16, 16, bands=3).cast("ushort").copy(interpretation="rgb16")
        made = made.heifsave_buffer(compression="av1", bitdepth=10)
        return pyvips.Image.new_from_buffer(made, "").get("bits-per-sample") == 10
    except (pyvips.Error, AttributeError):
        return False


def read_deep_heic(path: Path) -> np.ndarray:
    """The main picture of a HEIC, upright.

    Raises:
        InputError: it is damaged.
    """
    pillow_heif = register_heif()
    try:
        file: Any = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
        image = file[file.primary_index]
        values = np.asarray(image)
    except _FAILED as error:
        raise InputError(
            f"{path}: is damaged or cut short ({one_line(error)}); copy or download it again"
        ) from error
    width, height = image.size  # before decoding it may differ
    values = values.reshape(values.shape[0], values.shape[1], -1)[:height, :width]
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    wide = _widen(values, int(image.info["bit_depth"]))
    return _divide_by_alpha(wide) if image.mode.startswith(("RGBa", "La")) else wide


def read_deep_avif(path: Path, mode: str) -> np.ndarray:
    """The main picture of an AVIF that Pillow opens in `mode`, upright.

    Raises:
        InputError: it is damaged, or of a kind that libvips does not read.
        DependencyError: libvips is missing.
    """
    pyvips = vips()
    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
        values = image.numpy().reshape(image.height, image.width, image.bands)
        bits = image.get("bits-per-sample")
    except pyvips.Error as error:
        raise InputError(
            f"{path}: is damaged or cut short ({one_line(error)}); copy or download it again"
        ) from error
    if mode == "L":  # libvips knows AVIF in colour only
        values = values[:, :, :1]
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    return _widen(values, bits)


def write_deep_heic(
    values: np.ndarray, path: Path, bits: int, settings: dict[str, Any], profile: bytes | None
) -> None:
    """Writes `values` of 1, 3 or 4 channels as HEIC of 10 or 12 bits.

    Args:
        settings: for pillow-heif: quality, chroma, exif, xmp.

    Raises:
        RuntimeError, ValueError, OSError: it cannot be written.
    """
    pillow_heif = register_heif()
    height, width, channels = values.shape
    if profile:
        settings = {**settings, "icc_profile": profile}
    with path.open("wb") as file:
        data = _narrow(values, bits).tobytes()
        size = (width, height)
        pillow_heif.encode(_MODES[channels], size, data, file, bit_depth=bits, **settings)


def write_deep_avif(
    values: np.ndarray,
    path: Path,
    bits: int,
    settings: dict[str, Any],
    profile: bytes | None,
) -> None:
    """Writes `values` of 3 or 4 channels as AVIF of 10 or 12 bits.

    Args:
        settings: for Pillow: quality, exif, xmp.

    Raises:
        OSError: it cannot be written; DependencyError: libvips is missing.
    """
    pyvips = vips()
    height, width, bands = values.shape
    image = pyvips.Image.new_from_memory(
        _narrow(values, bits).data.cast("B"), width, height, bands, "ushort"
    )
    image = image.copy(interpretation="rgb16").copy()
    blocks = {"icc-profile-data": profile, "exif-data": settings.get("exif"),
              "xmp-data": settings.get("xmp")}  # fmt: skip
    for name, block in blocks.items():
        if block:
            image.set_type(pyvips.GValue.blob_type, name, block)
    try:
        image.heifsave(
            str(path), compression="av1", bitdepth=bits, Q=settings["quality"],
            subsample_mode="off", keep="|".join(("icc", "exif", "xmp")),
        )  # fmt: skip
    except pyvips.Error as error:
        raise OSError(one_line(error)) from error


def _widen(values: np.ndarray, bits: int) -> np.ndarray:
    """Values that fill the upper `bits` of 16, over the whole range."""
    whole = np.arange(2**bits, dtype=np.uint32) * 65535
    top = 2**bits - 1
    return ((whole + top // 2) // top).astype(np.uint16)[values >> (16 - bits)]


def _narrow(values: np.ndarray, bits: int) -> np.ndarray:
    """The nearest values of `bits`, in the upper ones of 16; C-contiguous."""
    steps = (np.arange(65536, dtype=np.uint32) * (2**bits - 1) + 32767) // 65535
    return np.ascontiguousarray((steps << (16 - bits)).astype(np.uint16)[values])


def _divide_by_alpha(values: np.ndarray) -> np.ndarray:
    """Colours that were stored multiplied by alpha, as they are."""
    alpha = values[..., -1:].astype(np.float32).clip(1) / 65535
    colour = (values[..., :-1] / alpha).round().clip(0, 65535)
    return np.concatenate([colour.astype(np.uint16), values[..., -1:]], axis=2)
