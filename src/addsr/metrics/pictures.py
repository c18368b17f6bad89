"""Reading picture files for measuring: the levels as they are stored, nothing turned or converted
but to RGB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError


def picture_files(folder: str | Path) -> dict[str, Path]:
    """Name without suffix -> file of the pictures in a folder, sorted by name.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    suffixes = {".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
    entries: Iterable[Path] = sorted(folder.iterdir()) if folder.is_dir() else ()
    files = {path.stem: path for path in entries if path.suffix.lower() in suffixes}
    if not files:
        raise InputError(f"{folder}: holds no pictures; give a folder of PNG, WebP or JPEG files")
    return files


def read_picture(path: str | Path) -> Tensor:
    """A picture file as `(1, 3, H, W)` float32 in [0, 1].

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            levels = np.array(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture ({error})") from error
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
