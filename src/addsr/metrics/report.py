"""Scores of pictures and folders: every figure per picture, and their means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError

from .niqe import NiqeParams, niqe
from .piqe import piqe
from .pixel import gradient, high_frequency_share, lr_psnr, psnr_y, ssim_y

Scores = dict[str, float]

HIGHER_IS_BETTER: dict[str, bool | None] = {
    "psnr_y": True,
    "ssim_y": True,
    "niqe": False,
    "piqe": False,
    "lr_psnr": True,
    "gradient": None,
    "gradient_hr": None,
    "hf": None,
    "hf_hr": None,
}
"""Every figure and its direction; None: the reference's own value (ratio 1) is the goal."""


def score_picture(
    sr: Tensor,
    hr: Tensor | None = None,
    lr: Tensor | None = None,
    niqe_params: NiqeParams | None = None,
) -> Scores:
    """The figures of one result `(1, 3, H, W)` in [0, 1]; what needs an absent input is left out.

    All are measured on 8-bit levels, as a stored file holds them (rounding lowers the NIQE of a
    blurred picture by 0.1). Always there: `piqe`, `gradient`, `hf`. With `hr`: `psnr_y`,
    `ssim_y` (border 4) and the ratios to the reference `gradient_hr` and `hf_hr`. With `lr`:
    `lr_psnr`. With `niqe_params`: `niqe`, where two blocks of 96x96 fit.

    Raises:
        InputError: sizes do not belong together, or more than one picture.
    """
    if sr.shape[0] != 1:
        raise InputError(f"sr: a batch of {sr.shape[0]}; give one picture (1, 3, H, W) at a time")
    sr = round_to_8_bit(sr)
    figures = {"piqe": piqe(sr), "gradient": gradient(sr), "hf": high_frequency_share(sr)}
    if hr is not None:
        figures["psnr_y"] = psnr_y(sr, hr)
        figures["ssim_y"] = ssim_y(sr, hr)
        figures["gradient_hr"] = figures["gradient"] / gradient(hr)
        figures["hf_hr"] = figures["hf"] / high_frequency_share(hr)
    if lr is not None:
        figures["lr_psnr"] = lr_psnr(sr, lr)
    if niqe_params is not None and (sr.shape[-2] // 96) * (sr.shape[-1] // 96) >= 2:
        figures["niqe"] = niqe(sr, niqe_params)
    return {name: float(figures[name]) for name in HIGHER_IS_BETTER if name in figures}


def score_folder(
    sr: str | Path,
    hr: str | Path | None = None,
    lr: str | Path | None = None,
    niqe_params: NiqeParams | None = None,
) -> dict[str, Scores]:
    """Name without suffix -> figures (`score_picture`) of every picture in the folder `sr`.

    The files of the same name in `hr` and `lr` are its reference and input, whatever their suffix.

    Raises:
        InputError: a folder holds no pictures, or not the one that is needed.
    """
    results = picture_files(sr)
    references = picture_files(hr) if hr is not None else None
    inputs = picture_files(lr) if lr is not None else None

    def partner(
        name: str, files: dict[str, Path] | None, folder: str | Path | None
    ) -> Tensor | None:
        if files is None:
            return None
        if name not in files:
            raise InputError(f"{folder}: holds no picture named {name}; the folders do not match")
        return read_picture(files[name])

    return {
        name: score_picture(
            read_picture(path),
            partner(name, references, hr),
            partner(name, inputs, lr),
            niqe_params,
        )
        for name, path in results.items()
    }


def mean_scores(scores: Mapping[str, Scores]) -> Scores:
    """The mean of each figure that every picture has; infinite and undefined values count.

    Raises:
        InputError: no pictures.
    """
    if not scores:
        raise InputError("scores: no pictures to take the mean of; give at least one")
    rows = list(scores.values())
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}


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


def round_to_8_bit(image: Tensor) -> Tensor:
    """`image` clamped to [0, 1] and rounded to the 256 levels that a file holds."""
    return (image.clamp(0, 1) * 255).round() / 255
