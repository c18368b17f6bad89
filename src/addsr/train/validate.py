"""Validation pictures: reading them, sampling them and making a grid to look at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from addsr.data.shards import decode_picture, read_picture
from addsr.errors import ConfigError, InputError

from .task import Batch

log = logging.getLogger(__name__)

Sampler = Callable[[Tensor, Tensor], Tensor]


def load_pairs(folder: str, limit: int = 0) -> list[Batch]:
    """Pairs of `folder/hr/NAME` and `folder/lr/NAME` (any suffix) as batches of one, on the CPU.

    Raises:
        ConfigError: no such folder, no name stands in both, or a picture that cannot be read or is
            not four times as large as its other.
    """
    root = Path(folder)
    hr = {p.stem: p for p in sorted((root / "hr").glob("*")) if p.is_file()}
    lr = {p.stem: p for p in sorted((root / "lr").glob("*")) if p.is_file()}
    names = [n for n in hr if n in lr]
    if not names:
        raise ConfigError(f"data.val = {folder!r}: no picture stands in both hr/ and lr/ there")
    if limit:
        names = names[:: max(1, len(names) // limit)][:limit]
    pairs = [Batch(_read(hr[n]), _read(lr[n])) for n in names]
    for name, pair in zip(names, pairs, strict=True):
        (height, width), small = pair.hr.shape[-2:], pair.lr.shape[-2:]
        if (height, width) != (4 * small[0], 4 * small[1]):
            raise ConfigError(
                f"data.val = {folder!r}: {name} has {width} x {height} pixels in hr/ and "
                f"{small[1]} x {small[0]} in lr/; give pictures four times as large in hr/"
            )
    return pairs


def _read(path: Path) -> Tensor:
    try:
        array = decode_picture(read_picture(path), str(path))
    except InputError as error:
        raise ConfigError(f"data.val: {error}") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def luma(x: Tensor) -> Tensor:
    """BT.601 luma in 16..235 `(B, H, W)` of a picture in [0, 1]."""
    r, g, b = x.unbind(1)
    return 65.481 * r + 128.553 * g + 24.966 * b + 16


def evaluate_sampler(
    samplers: dict[str, Sampler], pairs: list[Batch], *, device: torch.device, precision: str
) -> tuple[dict[str, float], Tensor | None]:
    """Mean PSNR-Y and SSIM-Y (crop 4), LR-PSNR and gradient share per sampler, and a picture grid.

    Noise is the same for every sampler and every call, so that changes are the network's. Where a
    pair has a sampled latent, samplers get that in place of noise.
    """
    from addsr.metrics.pixel import psnr_y, ssim_y

    if not pairs:
        return {}, None
    sums: dict[str, float] = {}
    rows: list[Tensor] = []
    grid_every = max(1, len(pairs) // 6)
    for index, pair in enumerate(pairs):
        hr, lr = pair.hr.to(device), pair.lr.to(device)
        noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(index)).to(device)
        if pair.latent is not None:
            noise = pair.latent.to(device)
        tiles = [F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)]
        for name, sampler in samplers.items():
            with torch.autocast(
                device.type, torch.bfloat16, enabled=precision == "bf16" and device.type == "cuda"
            ):
                sr = sampler(lr, noise).float()
            tiles.append(sr)
            lr_error = (luma(F.avg_pool2d(sr, 4)) - luma(lr)).pow(2).mean()
            figures = {
                "psnr_y": psnr_y(sr, hr).mean(),
                "ssim_y": ssim_y(sr, hr).mean(),
                "lr_psnr": 20 * torch.log10(255 / lr_error.sqrt().clamp(min=1e-3)),
                "gradient": gradient(sr) / gradient(hr),
            }
            for key, value in figures.items():
                label = f"{key}/{name}"
                sums[label] = sums.get(label, 0.0) + float(value)
        if index % grid_every == 0 and len(rows) < 8:
            rows.append(torch.cat([*tiles, hr], dim=-1)[0].cpu())
    width = min(r.shape[-1] for r in rows)
    grid = torch.cat([r[..., :width] for r in rows], dim=-2)
    return {k: v / len(pairs) for k, v in sums.items()}, grid


def gradient(x: Tensor) -> Tensor:
    """Mean magnitude of neighbouring differences, a measure of sharpness."""
    y = luma(x)
    return (
        ((y[:, 1:, :-1] - y[:, :-1, :-1]) ** 2 + (y[:, :-1, 1:] - y[:, :-1, :-1]) ** 2)
        .sqrt()
        .mean()
    )


def save_grid(grid: Tensor, path: Path) -> None:
    """Writes a picture `(3, H, W)` in [0, 1] as a lossless WebP (or by the suffix of `path`)."""
    array = (grid.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]
