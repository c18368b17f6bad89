"""Pictures of a pair as tensors, cut to the protocol's crop, and their copies beside a report."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError, OutputError
from addsr.image.kinds import accept
from addsr.image.writing import write_image

from .pairs import Pair

_BROWSERS = {".png", ".webp", ".jpg", ".jpeg"}


def read_picture(path: Path, pair: Pair, *, is_input: bool = False) -> Tensor:
    """The picture of `pair` in a file, `(1, 3, H, W)` in [0, 1], cut to the crop if it is whole.

    Raises:
        InputError: it cannot be read, or its size is neither that of the pair nor of its crop.
    """
    rgb = accept(path).pictures[0].rgb
    shrink = pair.scale if is_input else 1
    (height, width), full = ((n // shrink for n in size) for size in (pair.size, pair.full))
    full_height, full_width = full
    found = (int(rgb.shape[-2]), int(rgb.shape[-1]))
    if found == (height, width):
        return rgb
    if found != (full_height, full_width):
        wanted = f"{full_width}x{full_height}"
        if pair.size != pair.full:
            wanted += f" or, cut already, {width}x{height}"
        raise InputError(
            f"{path}: is {found[1]}x{found[0]} and not {wanted}; give a picture of that size"
        )
    # on the input's pixels, so that the same part is cut from input, result and reference
    unit = pair.scale // shrink
    top = (full_height - height) // (2 * unit) * unit
    left = (full_width - width) // (2 * unit) * unit
    return rgb[..., top : top + height, left : left + width]


def to_image(result: Tensor) -> Image.Image:
    """A result `(1, 3, H, W)`, clamped to [0, 1] and rounded to the 256 levels that a file holds.

    Raises:
        InputError: it holds NaN.
    """
    if not bool(torch.isfinite(result).all()):
        raise InputError("result: holds NaN or infinity; try --dtype fp32")
    levels = (result[0].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))


def copy_beside(
    source: Path, pair: Pair, target: Path, *, is_input: bool = False, link: bool = False
) -> Path:
    """Puts what a report shows of a file at `target` with a suffix of its own; gives that path.

    Files that browsers show are copied as they are, or with `link`, for files that nobody changes
    in place, linked; others and crops are written as PNG.

    Raises:
        InputError: it cannot be read; OutputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix.lower() in _BROWSERS and pair.size == pair.full:
            target = target.with_name(target.name + source.suffix.lower())
            _copy(source, target, link)
            return target
        target = target.with_name(f"{target.name}.png")
        write_image(to_image(read_picture(source, pair, is_input=is_input)), target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _copy(source: Path, target: Path, link: bool) -> None:
    temporary = target.with_name(f".{secrets.token_hex(4)}.part")
    try:
        if link:
            with contextlib.suppress(OSError):  # another disk, or a system without links
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
