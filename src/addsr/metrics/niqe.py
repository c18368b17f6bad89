"""NIQE, the natural image quality evaluator: how far a picture's statistics are from clean photos'.

Mittal, Soundararajan and Bovik, "Making a 'Completely Blind' Image Quality Analyzer" (2012), in
the convention of MATLAB and of most super-resolution papers: luma of BT.601 in 16..235 rounded to
integers, blocks of 96x96, two scales, no selection of sharp blocks. With luma over 0..255 (`yiq`)
it is the convention of pyiqa; the two differ by a few percent.

The pristine model (mean and covariance of the features of clean photos) of the original authors is
not part of this package; give its file. The package has one of its own, fitted by `fit_niqe`: its
figures are of another scale and are called `niqe-addsr` wherever both are shown.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError, OptionError, OutputError
from addsr.replacing import replacing

from .matlab_resize import matlab_resize
from .pixel import Luma
from .pixel import luma as luma_of

BLOCK = 96
"""Side of a block at the first scale; a picture needs at least two of them for a covariance."""

SHARP = 0.75
"""Share of the sharpest block's sharpness from which a block of a clean photo is learnt from."""

OWN_PARAMS = Path(__file__).parent / "data" / "niqe_addsr.npz"
"""The pristine model of this package, made by benchmarks/fit_niqe.py."""


@dataclass(frozen=True)
class NiqeParams:
    """The pristine model: `mean` `(36,)`, `covariance` `(36, 36)`, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor
    provenance: str = ""
    """What the model was fitted on, in words; empty in files of others."""

    def __post_init__(self) -> None:
        if self.mean.shape != (36,) or self.covariance.shape != (36, 36):
            raise InputError(
                f"params: mean {tuple(self.mean.shape)}, "
                f"covariance {tuple(self.covariance.shape)} must be (36,) and (36, 36); "
                "give the model of the original authors"
            )


def load_niqe_params(path: str | Path | None = None) -> NiqeParams:
    """The pristine model in an `.npz` file with `mu_pris_param` and `cov_pris_param`.

    None gives this package's own model: its figures (`niqe-addsr`) compare with each other, not
    with those of the authors' model.

    Raises:
        InputError: no such file, or one without these arrays.
    """
    path = OWN_PARAMS if path is None else Path(path)
    try:
        # opened here, since numpy leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            mean = torch.from_numpy(arrays["mu_pris_param"].astype(np.float64)).reshape(-1)
            covariance = torch.from_numpy(arrays["cov_pris_param"].astype(np.float64))
            provenance = str(arrays["provenance"]) if "provenance" in arrays else ""
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: is no NIQE model ({error}); give niqe_pris_params.npz as BasicSR carries it"
        ) from error
    return NiqeParams(mean, covariance, provenance)


def save_niqe_params(path: str | Path, params: NiqeParams) -> None:
    """Writes the model to an `.npz` file, the layout of BasicSR's plus `provenance`.

    BasicSR asks for the window (`gaussian_window`) too, so it is there. The same model always
    gives the same bytes.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary, temporary.open("xb") as file:
            np.savez_compressed(
                file,
                mu_pris_param=params.mean.numpy()[None],
                cov_pris_param=params.covariance.numpy(),
                gaussian_window=_window().numpy(),
                provenance=np.array(params.provenance),
            )
    except OSError as error:
        raise OutputError(f"{path}: the NIQE model cannot be written ({error})") from error


def niqe(image: Tensor, params: NiqeParams, border: int = 0, luma: Luma = "bt601") -> Tensor:
    """NIQE `(B,)` of pictures `(B, 3, H, W)` in [0, 1]; >= 0, lower is more natural (eq. 10).

    Clean photos score 2 to 5, bicubic enlargements 8 to 11. Noise is rewarded as detail is, so a
    low figure alone proves nothing. Pixels beyond whole blocks at the right and lower edge, and
    `border` pixels all around, are not used. Float64 on the CPU wherever `image` lies.

    Raises:
        InputError: less than two blocks of 96x96 fit.
        OptionError: `luma` is neither `bt601` nor `yiq`, or `border` is negative.
    """
    if border < 0:
        raise OptionError(f"border: {border} is negative; give 0 or more")
    y = luma_of(image.cpu(), luma).round()
    if border:
        y = y[:, border:-border, border:-border]
    if (y.shape[-2] // BLOCK) * (y.shape[-1] // BLOCK) < 2:
        raise InputError(
            f"size: {image.shape[-1]}x{image.shape[-2]} with border {border} holds less than two "
            f"blocks of {BLOCK}x{BLOCK}; give a larger picture"
        )
    features, _ = _blocks(y)
    return torch.stack([_distance(f, params) for f in features])


def fit_niqe(pictures: Iterable[Tensor], luma: Luma = "bt601", provenance: str = "") -> NiqeParams:
    """The pristine model of clean photos `(B, 3, H, W)` in [0, 1], each tensor of any size.

    Only blocks over `SHARP` times the sharpness of their picture's sharpest block count (section
    3.2: out-of-focus parts say nothing of quality), sharpness being the mean local deviation
    (eq. 3). One tensor is held at a time; pictures without a whole block of 96x96 add nothing.

    Score with the same `luma` that the model was fitted with.

    Raises:
        InputError: no more sharp blocks than features, too few for a covariance.
        OptionError: `luma` is neither `bt601` nor `yiq`.
    """
    rows = [torch.empty(0, 36, dtype=torch.float64)]
    for image in pictures:
        y = luma_of(image.cpu(), luma).round()
        if min(y.shape[-2:]) < BLOCK:
            continue
        features, sharpness = _blocks(y)
        rows.append(features[sharpness > SHARP * sharpness.amax(-1, keepdim=True)])
    features = torch.cat(rows)
    whole = features[~features.isnan().any(1)]
    if len(whole) <= 36:
        raise InputError(
            f"pictures: {len(whole)} sharp blocks of {BLOCK}x{BLOCK} are too few for a model; "
            "give more photos"
        )
    return NiqeParams(features.nanmean(0), torch.cov(whole.T), provenance)


def _blocks(y: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(B, blocks, 36)` at two scales and sharpness `(B, blocks)` of lumas `(B, H, W)`."""
    rows, columns = y.shape[-2] // BLOCK, y.shape[-1] // BLOCK
    y = y[:, : rows * BLOCK, : columns * BLOCK]
    normalized, deviation = normalize(y)
    half, _ = normalize(matlab_resize(y / 255, 0.5) * 255)
    features = [_features(_tiles(normalized, BLOCK)), _features(_tiles(half, BLOCK // 2))]
    return torch.cat(features, dim=-1), _tiles(deviation, BLOCK).mean((-2, -1))


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


def _tiles(x: Tensor, block: int) -> Tensor:
    """`x` `(B, H, W)` cut into blocks `(B, blocks, block, block)`."""
    return x.unfold(1, block, block).unfold(2, block, block).flatten(1, 2)


def _features(tiles: Tensor) -> Tensor:
    """18 features per block `(B, blocks, 18)` of normalized lumas in blocks: eq. 4 to 9."""
    alpha, left, right = fit_aggd(tiles.flatten(2))
    spread = _spread(alpha)
    features = [alpha, (left + right) * spread / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        # neighbours are taken within the block, around its edges: the published figures do
        product = tiles * torch.roll(tiles, shift, dims=(2, 3))
        alpha, left, right = fit_aggd(product.flatten(2))
        spread = _spread(alpha)
        left, right = left * spread, right * spread
        offset = (right - left) * torch.exp(torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha))
        features += [alpha, offset, left, right]
    return torch.stack(features, dim=-1)


def normalize(
    y: Tensor, edge: Literal["replicate", "constant"] = "replicate"
) -> tuple[Tensor, Tensor]:
    """Luma `(B, H, W)` less its local mean over its local deviation plus 1, and that deviation.

    Eq. 1 to 3. The window is a 7x7 Gaussian of sigma 7/6; outside, the edge pixel is repeated
    (`replicate`) or black (`constant`).
    """
    height, width = y.shape[-2:]
    padded = F.pad(torch.stack([y, y.square()], dim=1), (3, 3, 3, 3), mode=edge)
    smooth = torch.zeros_like(padded[..., :height, :width])
    part = torch.empty_like(smooth)
    # In a flat part the difference from the mean is rounding alone, yet its sign is counted below:
    # figures move by up to 3 % with the order of this sum. So it is the published one, all 49
    # taps of the two-dimensional window row by row, and neither separable nor left to a library.
    for i, row in enumerate(_window().tolist()):
        for j, weight in enumerate(row):
            torch.mul(padded[..., i : i + height, j : j + width], weight, out=part)
            smooth += part
    mean, power = smooth.unbind(1)
    deviation = (power - mean.square()).abs().sqrt()
    return (y - mean) / (deviation + 1), deviation


def _window() -> Tensor:
    """The Gaussian window `(7, 7)`, sum 1."""
    place = torch.arange(-3, 4, dtype=torch.float64)
    window = torch.exp(-(place[:, None].square() + place.square()) / (2 * (7 / 6) ** 2))
    return window / window.sum()


def fit_aggd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right deviation of an asymmetric generalised Gaussian over the last axis.

    `x` is float64 on the CPU. Moment matching of Lasmar et al. 2009 on the usual grid of shapes,
    0.2 to 10 by 0.001. NaN where one side is empty.
    """
    below, above = x.clamp(max=0), x.clamp(min=0)
    left_square, right_square = below.square().sum(-1), above.square().sum(-1)
    left = (left_square / torch.count_nonzero(below, -1)).sqrt()
    right = (right_square / torch.count_nonzero(above, -1)).sqrt()
    ratio = left / right
    size = x.shape[-1]
    moment = (above.sum(-1) - below.sum(-1)).square() / ((left_square + right_square) * size)
    moment = moment * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()

    shapes, table = shape_table()
    # the table rises with the shape: the nearest entry is one of the two around the insertion point
    upper = torch.searchsorted(table, moment.contiguous()).clamp(1, len(table) - 1)
    nearer = (moment - table[upper - 1]).abs() <= (table[upper] - moment).abs()
    alpha = shapes[torch.where(nearer, upper - 1, upper)]
    return torch.where(moment.isnan(), torch.nan, alpha), left, right


@cache
def shape_table() -> tuple[Tensor, Tensor]:
    """The grid of shapes and the moment ratio of a generalised Gaussian of each, rising."""
    shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
    logarithm = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, torch.exp(logarithm)


def _spread(alpha: Tensor) -> Tensor:
    """Width of a generalised Gaussian of shape `alpha` and deviation 1."""
    return torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
