"""Resizing against torch's own antialiased interpolation and Pillow, pieces against the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from addsr.image.resize import make_taps, resize, resize_bands, resize_rows


@pytest.mark.parametrize("size", [(17, 23), (150, 160), (31, 120)])
def test_bicubic_agrees_with_torch_away_from_borders(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, 62, 81)
    ours = resize(x, size, "bicubic")
    theirs = F.interpolate(x, size=size, mode="bicubic", antialias=True)
    by, bx = (max(6, size[0] // 4), max(6, size[1] // 4))
    torch.testing.assert_close(ours[..., by:-by, bx:-bx], theirs[..., by:-by, bx:-bx])


def test_lanczos_agrees_with_pillow_away_from_borders() -> None:
    x = torch.rand(1, 1, 80, 64)
    image = Image.fromarray(x[0, 0].numpy())
    theirs = torch.from_numpy(np.array(image.resize((20, 27), Image.Resampling.LANCZOS)))
    ours = resize(x, (27, 20), "lanczos")[0, 0]
    torch.testing.assert_close(ours[5:-5, 5:-5], theirs[5:-5, 5:-5], atol=2e-6, rtol=1e-5)


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90),
    st.lists(st.integers(1, 9), min_size=1, max_size=50),
)  # fmt: skip
def test_bands_and_row_ranges_give_the_whole_picture(
    height: int, width: int, out_h: int, out_w: int, cuts: list[int]
) -> None:
    x = torch.rand(1, 2, height, width)
    whole = resize(x, (out_h, out_w))
    assert whole.shape == (1, 2, out_h, out_w)
    bands, top = [], 0
    while top < height:
        rows = cuts[len(bands) % len(cuts)]
        bands.append(x[..., top : top + rows, :])
        top += rows
    streamed = torch.cat(list(resize_bands(bands, (height, width), (out_h, out_w))), dim=-2)
    torch.testing.assert_close(streamed, whole, atol=1e-6, rtol=1e-6)
    middle = out_h // 2
    part = resize_rows(x, (out_h, out_w), middle, out_h)
    torch.testing.assert_close(part, whole[..., middle:, :], atol=1e-6, rtol=1e-6)


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["bicubic", "lanczos"]))
def test_a_constant_stays_constant(size_in: int, size_out: int, kernel: str) -> None:
    taps = make_taps(size_in, size_out, kernel)  # type: ignore[arg-type]
    torch.testing.assert_close(taps.weight.sum(dim=1), torch.ones(size_out))
    assert int(taps.index.min()) >= 0 and int(taps.index.max()) < size_in


def test_a_ratio_keeps_positions_where_the_output_overhangs() -> None:
    ramp = torch.arange(40.0)[None, None, None].expand(1, 1, 4, 40)
    out = resize(ramp, (4, 11), "bicubic", ratio=(1.0, 4.0))
    inside = (torch.arange(10) + 0.5) * 4 - 0.5
    torch.testing.assert_close(out[0, 0, 0, 2:8], inside[2:8])
