"""NIQE, the natural image quality evaluator: how far a picture's statistics are from clean photos'.

Mittal, Soundararajan and Bovik, "Making a 'Completely Blind' Image Quality Analyzer" (2012), in
the convention of MATLAB and of most super-resolution papers: luma of BT.601 in 16..235 rounded to
integers, blocks of 96x96, two scales, no selection of sharp blocks. The pristine model (mean and
covariance of the features of clean photos) is not part of this package; give its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError

from .matlab_resize import matlab_resize
from .pixel import gaussian, luma

BLOCK = 96
"""Side of a block at the first scale; a picture needs at least two of them for a covariance."""


@dataclass(frozen=True)
class NiqeParams:
    """The pristine model: `mean` `(36,)`, `covariance` `(36, 36)`, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != (36,) or self.covariance.shape != (36, 36):
            raise InputError(
                f"params: mean {tuple(self.mean.shape)}, "
                f"covariance {tuple(self.covariance.shape)} must be (36,) and (36, 36); "
                "give the model of the original authors"
            )


def load_niqe_params(path: str | Path) -> NiqeParams:
    """The pristine model in an `.npz` file with `mu_pris_param` and `cov_pris_param`.

    Raises:
        InputError: no such file, or one without these arrays.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean = torch.from_numpy(arrays["mu_pris_param"].astype(np.float64)).reshape(-1)
            covariance = torch.from_numpy(arrays["cov_pris_param"].astype(np.float64))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: is no NIQE model ({error}); give niqe_pris_params.npz as BasicSR carries it"
        ) from error
    return NiqeParams(mean, covariance)


def niqe(image: Tensor, params: NiqeParams, border: int = 0) -> Tensor:
    """NIQE `(B,)` of pictures `(B, 3, H, W)` in [0, 1]; >= 0, lower is more natural.

    Clean photos score 2 to 5, bicubic enlargements 8 to 11. Noise is rewarded as detail is, so a
    low figure alone proves nothing. Pixels beyond whole blocks at the right and lower edge, and
    `border` pixels all around, are not used. Float64 on the CPU wherever `image` lies.

    Raises:
        InputError: less than two blocks of 96x96 fit.
    """
    y = luma(image.cpu()).round()
    if border:
        y = y[:, border:-border, border:-border]
    rows, columns = y.shape[-2] // BLOCK, y.shape[-1] // BLOCK
    if rows * columns < 2:
        raise InputError(
            f"size: {image.shape[-1]}x{image.shape[-2]} with border {border} holds less than two "
            f"blocks of {BLOCK}x{BLOCK}; give a larger picture"
        )
    y = y[:, : rows * BLOCK, : columns * BLOCK]
    half = matlab_resize(y / 255, 0.5) * 255
    features = torch.cat([_features(y, BLOCK), _features(half, BLOCK // 2)], dim=-1)
    return torch.stack([_distance(f, params) for f in features])


def _distance(features: Tensor, params: NiqeParams) -> Tensor:
    """Distance of one picture's block features `(blocks, 36)` from the pristine model (eq. 10)."""
    # flat blocks have no statistics (0 / 0): they are left out, feature by feature in the mean
    mean = features.nanmean(0)
    whole = features[~features.isnan().any(1)]
    if len(whole) < 2 or bool(mean.isnan().any()):
        return mean.new_tensor(float("nan"))
    covariance = (params.covariance + torch.cov(whole.T)) / 2
    gap = params.mean - mean
    # numpy's pseudo-inverse, as everyone uses: its cut-off of small singular values is 1e-15
    inverse = torch.linalg.pinv(covariance, rtol=1e-15)
    return (gap @ inverse @ gap).clamp_min(0).sqrt()


def _features(y: Tensor, block: int) -> Tensor:
    """18 features per block `(B, blocks, 18)` of a luma `(B, H, W)`: eq. 1 to 9 of the paper."""
    tiles = mscn(y).unfold(1, block, block).unfold(2, block, block)
    tiles = tiles.flatten(1, 2)  # (B, blocks, block, block)
    # neighbours are taken within the block, around its edges: the published figures do
    products = [tiles] + [
        tiles * torch.roll(tiles, shift, dims=(2, 3)) for shift in ((0, 1), (1, 0), (1, 1), (1, -1))
    ]
    tiles = torch.stack(products, dim=1).flatten(3)  # (B, 5, blocks, pixels)
    alpha, left, right = _fit_aggd(tiles)
    offset = (right - left) * torch.exp(torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha))
    pairs = torch.stack([alpha, offset, left, right], dim=-1)[:, 1:]  # (B, 4, blocks, 4)
    alone = torch.stack([alpha, (left + right) / 2], dim=-1)[:, 0]  # (B, blocks, 2)
    return torch.cat([alone, pairs.transpose(1, 2).flatten(2)], dim=-1)


def mscn(y: Tensor) -> Tensor:
    """Luma `(B, H, W)` less its local mean, divided by its local deviation plus 1 (eq. 1).

    The window is a 7x7 Gaussian of sigma 7/6; outside, the edge pixel is repeated.
    """
    kernel = gaussian(7, 7 / 6).to(y)
    window = (kernel[:, None] * kernel[None])[None, None]
    stacked = torch.stack([y, y.square()], dim=1).flatten(0, 1)[:, None]
    smooth = F.conv2d(F.pad(stacked, (3, 3, 3, 3), mode="replicate"), window)
    mean, power = smooth.unflatten(0, (-1, 2))[:, :, 0].unbind(1)
    return (y - mean) / ((power - mean.square()).abs().sqrt() + 1)


def _fit_aggd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right width of an asymmetric generalised Gaussian over the last axis.

    Moment matching of Lasmar et al. 2009 on the usual grid of shapes, 0.2 to 10 by 0.001.
    NaN where one side is empty.
    """
    below, above = x < 0, x > 0
    square = x.square()
    left = (torch.where(below, square, 0.0).sum(-1) / below.sum(-1)).sqrt()
    right = (torch.where(above, square, 0.0).sum(-1) / above.sum(-1)).sqrt()
    ratio = left / right
    moment = x.abs().mean(-1).square() / square.mean(-1)
    moment = moment * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()

    shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
    table = torch.exp(
        2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    )
    # the table rises with the shape: the nearest entry is one of the two around the insertion point
    upper = torch.searchsorted(table, moment.contiguous()).clamp(1, len(table) - 1)
    nearer = (moment - table[upper - 1]).abs() <= (table[upper] - moment).abs()
    alpha = shapes[torch.where(nearer, upper - 1, upper)]
    alpha = torch.where(moment.isnan(), torch.nan, alpha)
    spread = torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
    return alpha, left * spread, right * spread
