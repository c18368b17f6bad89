"""WebP compression by the real encoder, on the host.

WebP predicts each block from its decoded neighbours, so that it cannot be run for all blocks at
once as JPEG is. libwebp takes about 0.7 ms for a picture of 64 x 64 pixels and 2 ms for 128 x 128,
there and back: affordable for the few pictures that are drawn for it, and what comes out is exactly
what a website serves. On a device it costs one wait for the stream it is called on.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from addsr.errors import DependencyError, InputError

from .draw import Dice

MAX_SIDE = 16383
"""The longest side the format can hold, in pixels."""


class WebpDraw(NamedTuple):
    """Who is compressed and how much, each `(B,)`, on the host."""

    wanted: Tensor
    quality: Tensor


def draw_webp(dice: Dice, webp: str) -> WebpDraw:
    """Drawn from the `WebpSpec` in field `webp` of each picture's spec."""
    return WebpDraw(dice.chance(f"{webp}.probability"), dice.uniform(f"{webp}.quality").round())


def webp(x: Tensor, quality: Sequence[float]) -> Tensor:
    """`x` `(B, 3, H, W)` in [0, 1] after WebP compression (lossy, 4:2:0 chroma).

    What comes out holds multiples of 1/255. `quality` is one number from 0 to 100 per picture, as
    encoders take it.

    Raises:
        InputError: `x` is no batch of RGB pictures, has a side above 16,383 pixels, or there is
            not one quality per picture.
        DependencyError: Pillow was built without WebP.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(f"picture has shape {tuple(x.shape)}; give (B, 3, H, W)")
    if len(quality) != len(x):
        raise InputError(f"{len(quality)} qualities for {len(x)} pictures; give one for each")
    if max(x.shape[-2:]) > MAX_SIDE:
        raise InputError(
            f"picture of {x.shape[-1]} x {x.shape[-2]} is too large for WebP; "
            f"give sides of at most {MAX_SIDE} pixels"
        )
    if not features.check("webp"):
        raise DependencyError(
            "this Pillow was built without WebP, which the degradation asks for; "
            "pip install --upgrade --force-reinstall pillow, or use a preset without WebP"
        )
    levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    pictures = levels.cpu().numpy()  # waits for this stream, and for no other
    decoded = [_through(picture, q) for picture, q in zip(pictures, quality, strict=True)]
    out = torch.from_numpy(np.stack(decoded)).to(x.device).permute(0, 3, 1, 2)
    return out.to(x.dtype) / 255


def _through(picture: np.ndarray, quality: float) -> np.ndarray:
    file = io.BytesIO()
    # method 4 is the encoder's own choice between speed and size
    Image.fromarray(picture).save(file, format="WEBP", quality=round(quality), method=4)
    with Image.open(file) as decoded:
        return np.asarray(decoded.convert("RGB"))
