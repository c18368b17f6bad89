"""WebP compression of tensors by the real encoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features

from addsr.data.draw import Dice
from addsr.data.spec import PRESETS, DegradationSpec, WebpSpec
from addsr.data.webp import draw_webp, webp
from addsr.errors import ConfigError, DependencyError, InputError


def pictures(count: int = 2, size: tuple[int, int] = (40, 56)) -> torch.Tensor:
    coarse = torch.rand(count, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def test_the_result_is_what_pillow_reads_from_the_file_it_wrote() -> None:
    x = pictures()
    for picture, quality, got in zip(x, (30, 90), webp(x, [30, 90]), strict=True):
        levels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "WEBP", quality=quality)
        expected = np.asarray(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal((got * 255).round().byte().permute(1, 2, 0), expected)


def test_lower_quality_differs_more() -> None:
    x = pictures()
    errors = [(webp(x, [q, q]) - x).square().mean().item() for q in (0, 50, 75, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 5)])
def test_any_size_and_type_works(size: tuple[int, int]) -> None:
    got = webp(pictures(1, size).double(), [80.0])
    assert got.shape == (1, 3, *size)
    assert got.dtype == torch.float64
    assert 0 <= got.min() <= got.max() <= 1


def test_what_cannot_be_compressed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"give \(B, 3, H, W\)"):
        webp(torch.zeros(3, 8, 8), [80])
    with pytest.raises(InputError, match="1 qualities for 2 pictures"):
        webp(pictures(), [80])
    with pytest.raises(InputError, match=r"16384 x 1 is too large for WebP.*at most 16383"):
        webp(torch.zeros(1, 3, 1, 16384), [80])

    def has_none(feature: str) -> bool:
        return False

    monkeypatch.setattr(features, "check", has_none)
    with pytest.raises(DependencyError, match=r"built without WebP.*pip install"):
        webp(pictures(), [80, 80])


def test_quality_is_drawn_in_whole_numbers_of_its_range() -> None:
    spec = DegradationSpec(webp=WebpSpec(0.25, quality=(75, 80)))
    which = torch.zeros(2000, dtype=torch.long)
    draw = draw_webp(Dice([spec], which, torch.Generator().manual_seed(0)), "webp")
    assert set(draw.quality.tolist()) == {75, 76, 77, 78, 79, 80}
    assert 450 < int(draw.wanted.sum()) < 550


def test_only_the_near_clean_preset_has_webp() -> None:
    assert [name for name, spec in PRESETS.items() if spec.webp.probability] == ["near-clean"]


def test_wrong_ranges_are_named() -> None:
    with pytest.raises(ConfigError, match=r"WebpSpec\.probability = -1"):
        WebpSpec(probability=-1)
    with pytest.raises(ConfigError, match=r"WebpSpec\.quality = \(90, 101\).*<= 100"):
        WebpSpec(quality=(90, 101))
