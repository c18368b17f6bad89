from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from addsr.errors import InputError, OptionError
from addsr.metrics.matlab_resize import matlab_resize

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = json.loads((GOLDEN / "degradation_matlab_resize.json").read_text())


@pytest.mark.parametrize("case", SPEC["cases"], ids=lambda case: case["name"])
def test_resizing_gives_the_published_pictures(case: dict) -> None:
    stored = load_file(GOLDEN / "degradation_matlab_resize.safetensors")
    image, expected = stored["input/" + case["image"]], stored["output/" + case["name"]]
    if case.get("layout") == "hwc":
        image, expected = image.permute(2, 0, 1), expected.permute(2, 0, 1)
    got = matlab_resize(image, case["scale"], case["antialiasing"])
    assert got.shape == expected.shape
    limit = SPEC["tolerance"]["relative"] * expected.abs().max() + 1e-7
    assert (got - expected).abs().max() <= limit


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0.1, 4),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_a_constant_picture_stays_constant(h: int, w: int, scale: float, antialias: bool) -> None:
    got = matlab_resize(torch.full((2, h, w), 0.3, dtype=torch.float64), scale, antialias)
    assert torch.allclose(got, torch.full_like(got, 0.3), atol=1e-12)


def test_antialiasing_takes_out_what_the_small_grid_cannot_hold() -> None:
    stripes = (torch.arange(64) % 2).double().expand(64, 64)
    assert (matlab_resize(stripes, 0.25) - 0.5).abs()[:, 2:-2].max() < 0.02
    assert (matlab_resize(stripes, 0.25, antialias=False) - 0.5).abs()[:, 2:-2].max() < 1e-9
    steps = (torch.arange(64) % 4 < 1).double().expand(64, 64)
    assert (matlab_resize(steps, 0.25, antialias=False) - 0.25).abs()[:, 2:-2].max() > 0.1


def test_bad_scales_and_pictures_are_refused() -> None:
    with pytest.raises(OptionError, match="scale: 0 must be a positive number"):
        matlab_resize(torch.zeros(4, 4), 0)
    with pytest.raises(InputError, match=r"torch.uint8 .* is no float picture"):
        matlab_resize(torch.zeros(4, 4, dtype=torch.uint8), 2)
