"""A network so small that a picture takes a hundredth of a second, and pictures for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from addsr import Upscaler
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    net = CompactNet(TINY)
    save_weights(path, net.state_dict(), {"kind": "compact", "config": TINY.to_dict()})
    return str(path)


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
