"""An upscaler whose pictures take a hundredth of a second, and pictures for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from addsr import Upscaler


@pytest.fixture()
def up(weights: str) -> Iterator[Upscaler]:
    with Upscaler(weights, device="cpu") as made:
        yield made


@pytest.fixture()
def photos(tmp_path: Path) -> Path:
    """A folder of six photos of mixed sizes and kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, suffix in enumerate((".png", ".jpg", ".webp", ".png", ".bmp", ".tif")):
        size = (10 + 7 * k, 31 - 4 * k)
        Image.linear_gradient("L").resize(size).convert("RGB").save(folder / f"{k}{suffix}")
    return folder
