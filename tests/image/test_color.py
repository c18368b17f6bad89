"""Colour fixes against the published code's numbers, and streams against the whole picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from addsr.image.color import ColorFix, low_pass, match_color, match_color_bands


@pytest.fixture(scope="module")
def fixture(golden: Path) -> tuple[dict[str, Tensor], float]:
    facts = json.loads((golden / "stablesr_colorfix.json").read_text())
    return load_file(golden / "stablesr_colorfix.safetensors"), facts["tolerance"]["relative"]


def _close(got: Tensor, expected: Tensor, relative: float) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= relative * float(expected.abs().max()) + 1e-7


@pytest.mark.parametrize("case", ["signed", "unit"])
@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_both_methods_agree_with_the_published_code(
    fixture: tuple[dict[str, Tensor], float], case: str, method: ColorFix
) -> None:
    tensors, relative = fixture
    restored, reference = tensors[f"input/{case}/restored"], tensors[f"input/{case}/reference"]
    got = match_color(restored, reference, method)
    _close(got, tensors[f"output/{case}/{method}"], relative)


@pytest.mark.parametrize("case", ["signed", "unit"])
def test_the_low_band_agrees_with_the_published_code(
    fixture: tuple[dict[str, Tensor], float], case: str
) -> None:
    tensors, relative = fixture
    restored = tensors[f"input/{case}/restored"]
    low = low_pass(restored)
    _close(low, tensors[f"output/{case}/wavelet_low_of_restored"], relative)
    _close(restored - low, tensors[f"output/{case}/wavelet_high_of_restored"], relative)


@given(
    st.integers(1, 400), st.integers(1, 12), st.integers(1, 90),
    st.sampled_from(["wavelet", "adain", "none"]),
)  # fmt: skip
def test_a_stream_of_bands_gives_the_values_of_the_whole(
    height: int, width: int, rows: int, method: ColorFix
) -> None:
    restored, reference = torch.rand(1, 3, height, width), torch.rand(1, 3, height, width)
    bands = restored.split(rows, dim=-2)
    stream = match_color_bands(bands, lambda a, b: reference[..., a:b, :], height, method)
    got = torch.cat(list(stream), dim=-2)
    # AdaIN keeps the picture in float16 meanwhile; the spread of one pixel in a row amplifies it
    allowed = 1e-6 if method != "adain" else 2e-3
    torch.testing.assert_close(got, match_color(restored, reference, method), atol=allowed, rtol=0)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_colour_cast_is_taken_back(method: ColorFix) -> None:
    reference = torch.rand(1, 3, 64, 64) * 0.5 + 0.2
    cast = reference + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    assert float((match_color(cast, reference, method) - reference).abs().max()) < 1e-4


def test_one_pixel_keeps_finite_colours() -> None:
    for method in ("wavelet", "adain", "none"):
        got = match_color(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1), method)
        assert bool(torch.isfinite(got).all())
