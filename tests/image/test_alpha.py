"""Hidden colours are replaced by the visible ones around them; masks keep their shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from addsr.image.alpha import enlarge_alpha, fill_transparent


def test_black_under_transparency_does_not_reach_the_edge() -> None:
    rgb = torch.zeros(1, 3, 40, 60)
    rgb[..., :25] = torch.tensor([0.9, 0.5, 0.1])[:, None, None]
    alpha = torch.zeros(1, 1, 40, 60)
    alpha[..., :25] = 1
    filled = fill_transparent(rgb, alpha)
    torch.testing.assert_close(filled, rgb[..., :1].expand_as(filled), atol=1e-5, rtol=0)


@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
def test_opaque_pixels_keep_their_colour(height: int, width: int, share: float) -> None:
    rgb = torch.rand(1, 3, height, width)
    alpha = (torch.rand(1, 1, height, width) < share).float()
    filled = fill_transparent(rgb, alpha)
    assert bool(torch.isfinite(filled).all())
    torch.testing.assert_close(filled * alpha, rgb * alpha)
    assert float(filled.min()) >= 0 and float(filled.max()) <= 1


def test_a_picture_that_is_wholly_transparent_becomes_plain() -> None:
    assert float(fill_transparent(torch.rand(1, 3, 5, 5), torch.zeros(1, 1, 5, 5)).max()) == 0


def test_a_mask_does_not_ring_and_flat_parts_stay_exact() -> None:
    alpha = torch.zeros(1, 1, 16, 16)
    alpha[..., 8:] = 1
    large = enlarge_alpha(alpha, (64, 64), 0, 64)
    assert float(large[..., :26].abs().max()) == 0
    assert float((large[..., 38:] - 1).abs().max()) < 1e-6
    assert bool((large[0, 0, 0].diff() >= -1e-6).all())
