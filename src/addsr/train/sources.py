"""Where training pictures come from, as [data] says."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from addsr.data.pool import PairPool
from addsr.data.shards import load_pictures
from addsr.data.spec import PRESETS, DegradationSpec, Preset
from addsr.errors import ConfigError, InputError

from .config import STABLESR, DataConfig
from .losses import sharpen


def stablesr_degradation() -> DegradationSpec:
    """StableSR's degradation as published (arXiv 2305.07015; Real-ESRGAN's at half strength).

    The preset `mild` departs from it: half as often a second round, fewer final sinc filters, and
    resizes with antialiasing.
    """
    mild = PRESETS["mild"]
    return replace(
        mild,
        resize1=replace(mild.resize1, antialias=0.0),
        second_order=1.0,
        resize2=replace(mild.resize2, antialias=0.0),
        final_sinc=0.8,
        final_antialias=0.0,
    )


def make_pool(
    data: DataConfig, seed: int, device: torch.device, *, chunk: int | None = None
) -> PairPool:
    """The pool of degraded pairs for `data`.

    Raises:
        ConfigError: a pattern of data.train that matches nothing, or no picture that can be used.
    """
    paths: list[Path] = []
    for pattern in data.train:
        found = sorted(glob.glob(pattern)) if any(c in pattern for c in "*?[") else [pattern]
        if not found:
            raise ConfigError(
                f"data.train = {pattern!r} matches nothing; give folders or tar shards"
            )
        paths += [Path(p) for p in found]
    try:
        pictures = load_pictures(paths)
    except InputError as error:
        raise ConfigError(f"data.train: {error}") from error
    if data.sharpen:
        pictures = [sharpened(batch, data.sharpen, device) for batch in pictures]
    preset: Preset = stablesr_degradation() if data.mixture == STABLESR else data.mixture
    return PairPool(
        pictures,
        crop_px=data.crop_px,
        size=data.pool,
        reuse=data.reuse,
        preset=preset,
        seed=seed,
        device=device,
        chunk=chunk,
        rescaled=data.rescaled,
        textured=data.textured,
        turned=data.turned,
    )


@torch.no_grad()
def sharpened(pictures: Tensor, amount: float, device: torch.device) -> Tensor:
    """uint8 `pictures` `(N, 3, S, S)` with steeper edges, on the device they came from.

    Once for all crops: the mask is wide, and at a crop's border it would be cut short each time.
    """
    out = torch.empty_like(pictures)
    for start in range(0, len(pictures), 16):
        few = pictures[start : start + 16]
        x = sharpen(few.to(device).float() / 255, amount).clamp(0, 1)
        out[start : start + 16] = (x * 255).round().to(torch.uint8).to(pictures.device)
    return out
