"""PIQE, the perception-based image quality evaluator: how many lively blocks look damaged.

Venkatanath et al., "Blind Image Quality Evaluation Using Perception Based Features" (2015), in
the convention of MATLAB's `piqe`. No model file is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .niqe import normalize
from .pixel import check_picture, precise

BLOCK = 16
SEGMENT = 6
THRESHOLD = 0.1
"""Variance from which a block counts, and deviation under which a piece of its rim is damaged."""


def piqe(image: Tensor) -> Tensor:
    """PIQE `(B,)` of pictures `(B, 3, H, W)` in [0, 1]; 0..100, lower is better.

    MATLAB calls 0-20 excellent, 21-35 good, 36-50 fair, 51-80 poor, above that bad. It judges
    8-bit levels: compare pictures that were stored without loss, a lossy WebP of the same picture
    scores up to 9 more or less.
    """
    check_picture("image", image)
    # single precision decides where levels halfway between two integers go; the figures that
    # others publish are rounded so, and one level more or less can flip a block
    red, green, blue = image.float().unbind(1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    # the brightest pixel becomes 255, as in MATLAB; black pictures stay black
    peak = gray.amax((-2, -1), keepdim=True)
    gray = (255 * gray / torch.where(peak > 0, peak, torch.ones_like(peak))).round()
    normalized, _ = normalize(_pad_to_blocks(precise(gray)))
    blocks = normalized.unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK).flatten(1, 2)
    variance = blocks.flatten(2).var(-1)  # (B, blocks)

    active = variance > THRESHOLD
    damaged = _has_flat_rim(blocks) & active
    noisy = _is_noisy(blocks, variance) & active
    zero = torch.zeros_like(variance)
    score = torch.where(damaged, 1 - variance, zero) + torch.where(noisy, variance, zero)
    return 100 * (score.sum(-1) + 1) / (active.sum(-1) + 1)


def _has_flat_rim(blocks: Tensor) -> Tensor:
    """Whether any 6-pixel piece of a block's four edges is flat (blocking, blur) `(B, blocks)`."""
    rims = torch.stack(
        [blocks[..., 0, :], blocks[..., -1, :], blocks[..., :, 0], blocks[..., :, -1]], dim=2
    )
    pieces = rims.unfold(-1, SEGMENT, 1)  # (B, blocks, 4, pieces, 6)
    return (pieces.std(-1) < THRESHOLD).flatten(2).any(-1)


def _is_noisy(blocks: Tensor, variance: Tensor) -> Tensor:
    """Whether the middle of a block varies as its surround does (eq. 8 and 9) `(B, blocks)`."""
    middle = blocks[..., 7:9]
    # MATLAB deletes the two middle columns one after the other, and so the second time one too far
    surround = torch.cat([blocks[..., :7], blocks[..., 8:9], blocks[..., 10:]], dim=-1)
    ratio = middle.flatten(2).std(-1) / surround.flatten(2).std(-1)
    ratio = torch.nan_to_num(ratio, nan=0.0)
    deviation = variance.sqrt()
    beta = (deviation - ratio).abs() / torch.maximum(deviation, ratio)
    return deviation > 2 * beta


def _pad_to_blocks(gray: Tensor) -> Tensor:
    """`gray` `(B, H, W)` mirrored (edge repeated) below and to the right to multiples of 16."""
    for axis in (-2, -1):
        size = gray.shape[axis]
        place = torch.arange(-(-size // BLOCK) * BLOCK, device=gray.device) % (2 * size)
        gray = gray.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
    return gray
