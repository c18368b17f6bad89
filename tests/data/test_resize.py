"""The resizes of the degradation, Lanczos against Pillow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.data.resize import (
    _BLOCK,
    _blocks,
    apply_resize,
    draw_filter,
    draw_resize,
    resize_lanczos,
)
from addsr.data.spec import DegradationSpec, ResizeSpec
from addsr.errors import ConfigError


@pytest.mark.parametrize("size", [(16, 16), (13, 29), (64, 7), (90, 80), (1, 1), (3, 200)])
def test_lanczos_is_that_of_pillow(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, 64, 50, generator=torch.Generator().manual_seed(0))
    got = resize_lanczos(x, size)
    for picture, expected in zip(x.flatten(0, 1), got.flatten(0, 1), strict=True):
        pillow = Image.fromarray(picture.numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
        np.testing.assert_allclose(expected.numpy(), np.asarray(pillow), atol=2e-5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((5, 300), (5, 1300)), ((700, 4), (1025, 4)), ((4, 3000), (4, 600)), ((2, 9000), (2, 513))],
)
def test_lanczos_in_blocks_is_that_of_pillow(
    given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert max(wanted) > _BLOCK  # several blocks, with seams
    x = torch.rand(1, 1, *given, generator=torch.Generator().manual_seed(0))
    got = resize_lanczos(x, wanted)[0, 0].numpy()
    pillow = Image.fromarray(x[0, 0].numpy()).resize(wanted[::-1], Image.Resampling.LANCZOS)
    np.testing.assert_allclose(got, np.asarray(pillow), atol=2e-5)


def test_a_photos_lanczos_needs_no_matrix_of_its_whole_side() -> None:
    for low, high, weights in _blocks(8_000, 2_000, torch.zeros(1)):
        assert weights.shape[0] <= _BLOCK and weights.shape[1] == high - low < 2_100


def test_lanczos_keeps_constants_and_the_type() -> None:
    x = torch.full((1, 3, 30, 30), 0.3)
    assert torch.allclose(resize_lanczos(x, (7, 11)), torch.full((1, 3, 7, 11), 0.3), atol=1e-6)
    assert resize_lanczos(x.double(), (7, 11)).dtype == torch.float64


def test_filters_are_drawn_with_their_shares() -> None:
    rolls = [(i + 0.5) / 1200 for i in range(1200)]
    even = Counter(draw_filter(0.0, roll) for roll in rolls)
    assert even == {"area": 400, "bilinear": 400, "bicubic": 400}
    quarter = Counter(draw_filter(0.25, roll) for roll in rolls)
    assert quarter == {"lanczos": 300, "area": 300, "bilinear": 300, "bicubic": 300}
    assert {draw_filter(1.0, roll) for roll in rolls} == {"lanczos"}
    assert draw_filter(0.25, 1 - 2**-53) == "bicubic"


def test_a_drawn_resize_has_its_factor_and_filter() -> None:
    spec = ResizeSpec(shares=(0.2, 0.7, 0.1), factor=(0.5, 1.5), lanczos=1.0)
    assert draw_resize(spec, (40, 20), (0.1, 0.5, 0.5, 0.5)).size == (50, 25)
    down = draw_resize(spec, (40, 20), (0.5, 0.5, 0.5, 0.5))
    assert (down.size, down.filter) == ((30, 15), "lanczos")
    assert draw_resize(spec, (40, 20), (0.95, 0.5, 0.5, 0.5)).size == (40, 20)


def test_a_drawn_lanczos_is_applied() -> None:
    x = torch.rand(1, 3, 40, 20, generator=torch.Generator().manual_seed(0))
    spec = ResizeSpec(shares=(0.0, 1.0, 0.0), factor=(0.5, 1.0), lanczos=1.0)
    got = apply_resize(x, draw_resize(spec, (40, 20), (0.5, 0.0, 0.5, 0.5)))
    assert torch.equal(got, resize_lanczos(x, (20, 10)))


def test_wrong_shares_are_named() -> None:
    with pytest.raises(ConfigError, match=r"ResizeSpec\.lanczos = 1\.5"):
        ResizeSpec(lanczos=1.5)
    with pytest.raises(ConfigError, match=r"DegradationSpec\.final_lanczos = -1"):
        DegradationSpec(final_lanczos=-1)
    with pytest.raises(ConfigError, match=r"DegradationSpec\.mosaic = None .*MosaicSpec"):
        DegradationSpec(mosaic=None)  # pyright: ignore[reportArgumentType]
