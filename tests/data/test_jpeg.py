"""JPEG on tensors against the published one and a real encoder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from addsr.data.jpeg import from_macroblocks, jpeg, to_macroblocks
from addsr.errors import InputError


def smooth_picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    fine = torch.rand(1, 3, height, width, generator=generator) * 0.1
    x = torch.nn.functional.interpolate(rough, size=(height, width), mode="bilinear")
    return (x * 0.9 + fine).clamp(0, 1)


def test_compression_is_the_published_one(golden: Path) -> None:
    stored = load_file(golden / "degradation_jpeg.safetensors")
    for case in json.loads((golden / "degradation_jpeg.json").read_text())["cases"]:
        quality = case["quality"]
        if isinstance(quality, list):
            quality = torch.tensor(quality)
        got = jpeg(stored[f"input/{case['image']}"], quality)
        expected = stored[f"output/{case['name']}"]
        assert got.shape == expected.shape
        # a tie in rounding a coefficient may flip, and moves one block
        off = (got - expected).abs() > 1e-4 * expected.abs().max() + 1e-7
        assert off.float().mean() <= 0.005, case["name"]


@pytest.mark.parametrize("quality", [25, 50])
def test_grey_pictures_come_out_as_from_a_real_encoder(quality: int) -> None:
    # Files hold the luma table turned by a quarter against the published training code, so the
    # picture is turned too. In grey, because real decoders enlarge chroma in another way; at
    # qualities whose table is integer as it is, because files round it.
    x = (smooth_picture(64, 96)[:, :1] * 255).round().expand(-1, 3, -1, -1)
    buffer = io.BytesIO()
    Image.fromarray(x[0].permute(2, 1, 0).byte().numpy()).save(buffer, "JPEG", quality=quality)
    real = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 1, 0)[None] / 255
    assert (x / 255 - real).abs().mean() > 0.015
    difference = (jpeg(x / 255, quality) - real).abs()
    assert difference.mean() < 0.5 / 255
    assert (difference < 1 / 255).float().mean() > 0.9  # blocks with a tie differ


def test_every_picture_gets_its_own_quality() -> None:
    x = smooth_picture(48, 48).expand(4, -1, -1, -1)
    got = jpeg(x, torch.tensor([10.0, 30.0, 70.0, 95.0]))
    error = (got - x).abs().mean((1, 2, 3))
    assert (error.diff() < 0).all()
    assert torch.allclose(got[1], jpeg(x[:1], 30)[0], atol=1e-6)


def test_quality_100_changes_almost_nothing() -> None:
    x = torch.full((1, 3, 32, 32), 0.4) + torch.linspace(0, 0.2, 32)
    assert (jpeg(x, 100) - x).abs().max() < 3 / 255


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_macroblocks_go_back_to_the_picture_they_came_from(height: int, width: int) -> None:
    x = torch.arange(2 * 3 * height * width, dtype=torch.float32).view(2, 3, height, width)
    blocks = to_macroblocks(x)
    assert blocks.shape[1:] == (3, 16, 16)
    assert torch.equal(from_macroblocks(blocks, x.shape), x)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        jpeg(torch.zeros(3, 8, 8), 50)
    with pytest.raises(InputError, match="for 2 pictures"):
        jpeg(torch.zeros(2, 3, 8, 8), torch.tensor([50.0, 60.0, 70.0]))
