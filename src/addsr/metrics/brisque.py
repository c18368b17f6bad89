"""BRISQUE, the blind/referenceless image spatial quality evaluator.

Mittal, Moorthy and Bovik, "No-Reference Image Quality Assessment in the Spatial Domain" (2012): 36
statistics of normalized luma at two scales, and a regression onto the opinions of the LIVE
database. The regression's file is not part of this package; give one (`load_brisque`).

There are two sets of statistics under the name, and each model fits its own only:

- `matlab`, the authors': neighbours around the picture's edge, black outside, the second scale by
  MATLAB's `imresize`; a symmetric fit for the first two.
- `opencv`, of its `quality` module: no neighbours over the edge, the edge pixel repeated outside,
  the second scale by a bicubic without antialiasing; an asymmetric fit for the first two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError, OptionError

from .brisque_model import BrisqueModel, load_brisque
from .matlab_resize import matlab_resize
from .niqe import fit_aggd, normalize, shape_table
from .pixel import check_picture

__all__ = ["BrisqueModel", "brisque", "brisque_features", "load_brisque"]


def brisque(image: Tensor, model: BrisqueModel) -> Tensor:
    """BRISQUE `(B,)` of pictures `(B, 3, H, W)` in [0, 1], lower is better.

    Mostly 0..100, and cut off there by OpenCV's models; the authors' gives values beyond both for
    pictures unlike those it has learnt from. Judged on 8-bit levels of gray, as a stored file
    has them; pyiqa and piq do not round, and piq takes every other pixel for the second scale, so
    theirs differ a little with the same model. NaN for a flat picture. Float64 on the
    CPU wherever `image` lies.

    Raises:
        InputError: a side is shorter than 16 pixels.
    """
    return model.predict(brisque_features(image, model.convention))


def brisque_features(image: Tensor, convention: str = "matlab") -> Tensor:
    """The 36 statistics `(B, 36)` of pictures `(B, 3, H, W)` in [0, 1]: table I of the paper.

    18 at each scale: shape and variance of the normalized luma; then shape, mean, left and right
    variance of the products of neighbours to the right, below and along both diagonals.

    Raises:
        InputError: a side is shorter than 16 pixels.
        OptionError: the convention is neither `matlab` nor `opencv`.
    """
    if convention not in {"matlab", "opencv"}:
        raise OptionError(f"convention: {convention!r} is unknown; give 'matlab' or 'opencv'")
    check_picture("image", image)
    y = _gray(image.cpu(), convention)
    if min(y.shape[-2:]) < 16:
        raise InputError(
            f"size: {image.shape[-1]}x{image.shape[-2]} is too small for BRISQUE; "
            "give 16x16 or more"
        )
    if convention == "opencv":
        size = y.shape[-2] // 2, y.shape[-1] // 2
        half = F.interpolate(y[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]
        return torch.cat([_opencv_statistics(y), _opencv_statistics(half)], dim=1)
    return torch.cat([_matlab_statistics(y), _matlab_statistics(matlab_resize(y, 0.5))], dim=1)


def _gray(image: Tensor, convention: str) -> Tensor:
    """Gray levels `(B, H, W)` in float64, rounded as `rgb2gray` or `cvtColor` rounds 8-bit levels.

    A level more or less shifts the fitted shapes by a step of their grid here and there.
    """
    red, green, blue = (image.double().clamp(0, 1) * 255).round().unbind(1)
    if convention == "opencv":  # whole numbers over 2^15
        return ((9798 * red + 19235 * green + 3735 * blue + 2**14) / 2**15).floor()
    # the first row of the inverse of YIQ's matrix, which MATLAB uses unrounded
    return (0.298936021293776 * red + 0.587043074451121 * green + 0.114020904255103 * blue).round()


def _matlab_statistics(y: Tensor) -> Tensor:
    """18 statistics `(B, 18)` of a luma `(B, H, W)`, as the authors' code has them."""
    x, _ = normalize(y, "constant")
    variance = x.square().mean((-2, -1))
    shapes, moments = shape_table()
    ratio = variance / x.abs().mean((-2, -1)).square()  # of a Gaussian: pi / 2
    nearest = (ratio[:, None] - 1 / moments).abs().argmin(1)
    features = [torch.where(ratio.isnan(), torch.nan, shapes[nearest]), variance]
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        features += _of_products(x * torch.roll(x, shift, dims=(-2, -1)))
    return torch.stack(features, dim=1)


def _opencv_statistics(y: Tensor) -> Tensor:
    """18 statistics `(B, 18)` of a luma `(B, H, W)`, as OpenCV has them."""
    x, _ = normalize(y)
    shape, left, right = fit_aggd(x.flatten(1))
    features = [shape, (left.square() + right.square()) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        neighbour = torch.roll(x, (-down, -across), dims=(-2, -1))
        # what came around the edge does not count, though its places are counted in the mean
        if down:
            neighbour[:, -1 if down > 0 else 0] = 0
        if across:
            neighbour[:, :, -1] = 0
        features += _of_products(x * neighbour)
    return torch.stack(features, dim=1)


def _of_products(products: Tensor) -> list[Tensor]:
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian: eq. 10 to 14."""
    shape, left, right = fit_aggd(products.flatten(1))
    mean = (right - left) * torch.exp(
        torch.lgamma(2 / shape) - (torch.lgamma(1 / shape) + torch.lgamma(3 / shape)) / 2
    )
    return [shape, mean, left.square(), right.square()]
