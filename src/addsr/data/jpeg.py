"""JPEG compression with 4:2:0 chroma on tensors: a linear map, rounding, a linear map back.

Works on macroblocks of 16 x 16 pixels, `(M, 3, 16, 16)`, so that pictures of different sizes and
qualities go through in one batch. Rounding is real, so no gradient passes. The entropy coder is
lossless and therefore absent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import InputError

MACROBLOCK = 16

# Quantisation tables of ITU-T T.81, annex K.1
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47),
    (18, 21, 26, 66),
    (24, 26, 56, 99),
    (47, 66, 99, 99),
)  # the other coefficients: 99

_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(x: Tensor, quality: Tensor | float, *, pad: str = "constant") -> Tensor:
    """`x` `(B, 3, H, W)` in [0, 1] after compression at `quality` 1 to 100, one or `(B,)`.

    Sides that are no multiple of 16 are padded at the right and bottom, with zeros or, with pad
    `replicate`, with the edge as common encoders do.

    Raises:
        InputError: `x` is no batch of RGB pictures, or there is not one quality per picture.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(f"picture has shape {tuple(x.shape)}; give (B, 3, H, W)")
    quality = torch.as_tensor(quality, dtype=x.dtype, device=x.device)
    if quality.dim() > 1 or (quality.dim() == 1 and len(quality) != len(x)):
        raise InputError(f"quality has shape {tuple(quality.shape)} for {len(x)} pictures")
    blocks = to_macroblocks(x, pad)
    each = len(blocks) // len(x)
    per_block = quality.expand(len(x)).repeat_interleave(each, output_size=len(blocks))
    return from_macroblocks(jpeg_blocks(blocks, per_block), x.shape)


def jpeg_blocks(blocks: Tensor, quality: Tensor) -> Tensor:
    """Macroblocks `(M, 3, 16, 16)` in [0, 1] after compression at `quality` `(M,)`, in [0, 1]."""
    dct, steps, to_ycc, to_rgb = _constants(blocks.device, blocks.dtype)
    count = len(blocks)
    # shifting RGB by 128 shifts Y alone: the rows of Cb and Cr sum to zero
    rgb = blocks.clamp(0, 1).reshape(count, 3, 256) * 255 - 128
    ycc = (to_ycc @ rgb).view(count, 3, 16, 16)
    luma = ycc[:, 0].reshape(count, 2, 8, 2, 8).transpose(2, 3).reshape(count, 4, 64)
    chroma = F.avg_pool2d(ycc[:, 1:], 2).reshape(count, 2, 64)
    coefficients = torch.cat((luma, chroma), 1) @ dct.T  # (M, 6, 64)
    factor = torch.where(quality < 50, 50 / quality.clamp_min(1), 2 - quality / 50)
    # baseline tables hold integers from 1 on; the published training code rounds nothing, and a
    # step below 1 occurs only above quality 95
    step = (steps * factor[:, None, None]).clamp_min(1)  # (M, 6, 64)
    decoded = ((coefficients / step).round() * step) @ dct
    luma = decoded[:, :4].reshape(count, 2, 2, 8, 8).transpose(2, 3).reshape(count, 1, 256)
    chroma = decoded[:, 4:].reshape(count, 2, 8, 1, 8, 1).expand(-1, -1, -1, 2, -1, 2)
    rgb = to_rgb @ torch.cat((luma, chroma.reshape(count, 2, 256)), 1)
    return ((rgb + 128) / 255).clamp(0, 1).view(count, 3, 16, 16)


def to_macroblocks(x: Tensor, pad: str = "replicate") -> Tensor:
    """`(B, 3, H, W)` cut into `(B * rows * columns, 3, 16, 16)`, padded at the right and bottom."""
    batch, channels, height, width = x.shape
    below, right = -height % MACROBLOCK, -width % MACROBLOCK
    if below or right:
        x = F.pad(x, (0, right, 0, below), mode=pad)
    rows, columns = x.shape[-2] // MACROBLOCK, x.shape[-1] // MACROBLOCK
    x = x.reshape(batch, channels, rows, MACROBLOCK, columns, MACROBLOCK)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, MACROBLOCK, MACROBLOCK)


def from_macroblocks(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """The pictures of `shape` `(B, 3, H, W)` that `to_macroblocks` cut."""
    batch, channels, height, width = shape
    rows, columns = -(-height // MACROBLOCK), -(-width // MACROBLOCK)
    x = blocks.reshape(batch, rows, columns, channels, MACROBLOCK, MACROBLOCK)
    x = x.permute(0, 3, 1, 4, 2, 5)
    x = x.reshape(batch, channels, rows * MACROBLOCK, columns * MACROBLOCK)
    return x[..., :height, :width]


@functools.lru_cache(maxsize=8)
def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 64 x 64 DCT, the steps `(6, 64)` of 4 luma and 2 chroma blocks, colour matrices."""
    line = torch.tensor(
        [
            [
                math.cos(math.pi * (2 * n + 1) * k / 16) * (0.5 if k else 0.125**0.5)
                for n in range(8)
            ]
            for k in range(8)
        ],
        dtype=torch.float64,
    )
    # transposed, as in the published training code; a file has it the other way round, which the
    # right-angle turns of training pictures make up for
    luma = torch.tensor(_LUMA, dtype=torch.float64).T.flatten()
    chroma = torch.full((8, 8), 99.0, dtype=torch.float64)
    chroma[:4, :4] = torch.tensor(_CHROMA, dtype=torch.float64)
    steps = torch.stack([luma] * 4 + [chroma.flatten()] * 2)
    matrices = (
        torch.kron(line, line),
        steps,
        torch.tensor(_TO_YCC, dtype=torch.float64),
        torch.tensor(_TO_RGB, dtype=torch.float64),
    )
    # rounded on the host: work left on one CUDA stream would race with a reader on another
    with torch.inference_mode(False):
        dct, steps, to_ycc, to_rgb = (m.to(dtype).to(device, copy=True) for m in matrices)
    return dct, steps, to_ycc, to_rgb
