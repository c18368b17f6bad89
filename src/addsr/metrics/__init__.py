"""Measures of picture quality: pictures are float `(B, 3, H, W)` in [0, 1], figures `(B,)`.

`pixel` and `structure` compare with a reference or an input, `spectrum` shows where detail is
missing or made up, `niqe`, `piqe` and `brisque` need no reference, `distributions` and `phi`
compare sets of pictures; `lpips`, `dists` and `adapters` need weights of others. `catalog` lists
all of them.
"""

from __future__ import annotations

from .brisque import brisque
from .brisque_model import BrisqueModel, load_brisque
from .niqe import NiqeParams, fit_niqe, load_niqe_params, niqe, save_niqe_params
from .piqe import piqe
from .pixel import gradient, high_frequency_share, lr_psnr, psnr_rgb, psnr_y, ssim_y
from .spectrum import laplacian_energy, radial_spectrum, spectrum_error
from .structure import gmsd, haarpsi, ms_ssim

__all__ = [
    "BrisqueModel",
    "NiqeParams",
    "brisque",
    "fit_niqe",
    "gmsd",
    "gradient",
    "haarpsi",
    "high_frequency_share",
    "laplacian_energy",
    "load_brisque",
    "load_niqe_params",
    "lr_psnr",
    "ms_ssim",
    "niqe",
    "piqe",
    "psnr_rgb",
    "psnr_y",
    "radial_spectrum",
    "save_niqe_params",
    "spectrum_error",
    "ssim_y",
]
