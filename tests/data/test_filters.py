"""Filtering by FFT against the published filters and the direct sum."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from addsr.data.filters import filter2d, gaussian_window, pad_reflect, sharpen_usm
from addsr.errors import InputError


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "degradation_filters.safetensors")


def assert_close(got: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= relative * expected.abs().max() + 1e-7


def test_shared_and_own_kernels_filter_as_published(stored: dict[str, Tensor]) -> None:
    image = stored["input/image"]
    shared = stored["input/kernel_shared"]
    assert_close(filter2d(image, shared[0]), stored["output/filter2d_shared"])
    own = stored["input/kernel_per_image"]
    assert_close(filter2d(image, own), stored["output/filter2d_per_image"])


def test_unsharp_masks_are_the_published_ones(golden: Path, stored: dict[str, Tensor]) -> None:
    for case in json.loads((golden / "degradation_filters.json").read_text())["usm"]:
        got = sharpen_usm(
            stored[f"input/{case['image']}"],
            weight=case["weight"],
            radius=case["radius"],
            sigma=case["sigma"],
            threshold=case["threshold"],
        )
        assert_close(got, stored[f"output/{case['name']}"])
        kernel = stored[f"output/{case['name']}_kernel"]
        assert_close(gaussian_window(len(kernel)).float(), kernel)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    reach=st.integers(0, 10),
    seed=st.integers(0, 99),
)
@example(height=1, width=1, reach=10, seed=0)
def test_any_size_is_filtered_like_the_direct_sum(
    height: int, width: int, reach: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 2, height, width, generator=generator)
    kernel = torch.rand(2 * reach + 1, 2 * reach + 1, generator=generator)
    kernel /= kernel.sum()
    expected = [
        scipy.ndimage.correlate(plane.numpy().astype(np.float64), kernel.numpy(), mode="mirror")
        for plane in x[0]
    ]
    got = filter2d(x, kernel)[0].numpy()
    np.testing.assert_allclose(got, np.stack(expected), rtol=0, atol=2e-6)


def test_reflection_goes_on_where_the_picture_is_narrower_than_the_reach() -> None:
    line = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    assert pad_reflect(line, 5)[0, 0, 0].tolist() == [2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]


def test_constant_pictures_stay_constant() -> None:
    x = torch.full((2, 3, 33, 47), 0.3)
    assert torch.allclose(filter2d(x, gaussian_window(21, 2.0).float()), x, atol=1e-6)
    assert torch.allclose(sharpen_usm(x), x, atol=1e-6)


def test_kernels_of_the_wrong_shape_are_refused() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InputError, match="odd k"):
        filter2d(x, torch.ones(4, 4))
    with pytest.raises(InputError, match="3 kernels for 2 pictures"):
        filter2d(x, torch.ones(3, 5, 5))
