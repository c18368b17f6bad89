"""Losses against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from addsr.train.losses import haar, l1, low_frequency, sharpen, timestep_adaptive


def test_haar_is_the_undecimated_transform_of_the_difference() -> None:
    a, b = torch.rand(2, 3, 16, 20), torch.rand(2, 3, 16, 20)
    kernels = (
        torch.tensor([[[1.0, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]])[:, None] / 4
    )

    def bands(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernels).view(
            2, 3, 3, *(s - 1 for s in x.shape[-2:])
        )

    expected = 0
    for scale in (1, 2):
        x, y = F.avg_pool2d(a, scale), F.avg_pool2d(b, scale)
        expected = expected + (bands(x) - bands(y)).abs().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(haar(a, b), expected)


def test_a_constant_shift_has_no_high_frequencies_but_an_l1() -> None:
    a = torch.rand(1, 3, 8, 8)
    assert haar(a, a + 0.1).max() < 1e-6
    torch.testing.assert_close(l1(a, a + 0.1), torch.tensor([0.1]))
    torch.testing.assert_close(low_frequency(a, a + 0.1), torch.tensor([0.1]))


def test_timestep_adaptive_weights_are_the_published_four() -> None:
    weights = timestep_adaptive(torch.arange(4))
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.05, 2.205, 4.6305]))


def test_sharpening_steepens_an_edge_and_leaves_flat_parts_alone() -> None:
    ramp = ((torch.arange(128.0) - 60) / 8).clamp(0, 1) * 0.6 + 0.2  # a blurred step
    x = ramp.view(1, 1, 1, -1).expand(1, 3, 64, -1).contiguous()
    y = sharpen(x)
    assert y[..., 52:60].min() < 0.17 and y[..., 68:76].max() > 0.83
    assert (y[..., :16] - x[..., :16]).abs().max() < 1e-3
    assert y.min() >= 0 and y.max() <= 1
    faint = torch.full((1, 3, 64, 64), 0.5)
    faint[..., 32:] += 8 / 255  # within the threshold: noise, not an edge
    torch.testing.assert_close(sharpen(faint), faint)
    torch.testing.assert_close(sharpen(x, amount=0), x)


def test_sharpening_is_the_unsharp_mask_of_its_definition() -> None:
    scipy_ndimage = pytest.importorskip("scipy.ndimage")
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def blur(a: np.ndarray) -> np.ndarray:
        return scipy_ndimage.gaussian_filter(a, sigma=(0, 0, 8, 8), mode="mirror", truncate=3.0)

    picture = x.numpy()
    detail = picture - blur(picture)
    share = blur((np.abs(detail) * 255 > 10).astype(np.float32))
    expected = picture + share * (np.clip(picture + 0.5 * detail, 0, 1) - picture)
    np.testing.assert_allclose(sharpen(x).numpy(), expected, atol=1e-5)
