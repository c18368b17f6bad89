"""Losses against their plain definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from addsr.train.losses import haar, l1, low_frequency, timestep_adaptive


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
