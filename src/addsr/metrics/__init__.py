"""Measures of picture quality: pictures are float `(B, 3, H, W)` in [0, 1], figures `(B,)`.

`pixel` compares with a reference or an input, `niqe` and `piqe` need none, `report` scores
pictures and folders.
"""

from __future__ import annotations

from .niqe import NiqeParams, load_niqe_params, niqe
from .piqe import piqe
from .pixel import gradient, high_frequency_share, lr_psnr, psnr_y, ssim_y

__all__ = [
    "NiqeParams",
    "gradient",
    "high_frequency_share",
    "load_niqe_params",
    "lr_psnr",
    "niqe",
    "piqe",
    "psnr_y",
    "ssim_y",
]
