"""Pictures side by side: crops for the results page, and large sheets to look at."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from addsr.metrics.pixel import luma

GAP = 8
"""White pixels between pictures."""


def as_image(picture: Tensor) -> Image.Image:
    """The PIL image of a picture `(1, 3, H, W)` in [0, 1]."""
    levels = (picture[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def busiest_window(hr: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the `side` px window of `hr` with the most detail, on a grid of 32 px.

    A rule and not a choice, so that nobody picks the flattering part.
    """
    y = luma(hr)[0]
    energy = torch.zeros_like(y)
    energy[:, 1:] += (y[:, 1:] - y[:, :-1]).abs()
    energy[1:] += (y[1:] - y[:-1]).abs()
    side = min(side, *y.shape)
    sums = energy.unfold(0, side, 32).unfold(1, side, 32).sum((-2, -1))  # (rows, columns)
    best = int(sums.argmax())
    return best // sums.shape[1] * 32, best % sums.shape[1] * 32


def row_of_crops(pictures: Sequence[Tensor], top: int, left: int, side: int) -> Image.Image:
    """The same window of every picture at 100 %, left to right."""
    return row_of_images([as_image(p[..., top : top + side, left : left + side]) for p in pictures])


def row_of_images(crops: Sequence[Image.Image]) -> Image.Image:
    """Images of one height, left to right."""
    width = sum(crop.width for crop in crops) + GAP * (len(crops) - 1)
    row = Image.new("RGB", (width, crops[0].height), "white")
    x = 0
    for crop in crops:
        row.paste(crop, (x, 0))
        x += crop.width + GAP
    return row


def sheet(columns: Mapping[str, Tensor]) -> Image.Image:
    """Whole pictures of one size side by side, each under its name."""
    images = {name: as_image(picture) for name, picture in columns.items()}
    width = sum(image.width for image in images.values()) + GAP * (len(images) - 1)
    height = max(image.height for image in images.values())
    page = Image.new("RGB", (width, height + 20), "white")
    draw = ImageDraw.Draw(page)
    x = 0
    for name, image in images.items():
        draw.text((x + 2, 4), name, fill="black")
        page.paste(image, (x, 20))
        x += image.width + GAP
    return page


def save_sheet(folder: Path, name: str, columns: Mapping[str, Tensor]) -> Path:
    """Writes `sheet(columns)` as a lossless PNG; where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    sheet(columns).save(path, compress_level=3)
    return path


def mean_difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two pictures in 8-bit levels, 0..255."""
    return float(np.float64((a - b).abs().double().mean()) * 255)


def read_attribution(manifest: Path) -> dict[str, dict[str, str]]:
    """Name of a reference -> where it comes from and its licence; empty without a manifest."""
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as rows:
        return {
            Path(row["file"]).stem: {
                "source": f"{row['source_repo']}: {row['source_path']}",
                "licence": row["licence"],
            }
            for row in csv.DictReader(rows)
            if row["file"].startswith("hr/")
        }
