"""Noise of each kind, its strength and who gets it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from addsr.data.draw import Dice
from addsr.data.noise import NoiseDraw, add_noise, draw_noise
from addsr.data.spec import PRESETS


def column(*values: float) -> Tensor:
    return torch.tensor(values)


def noisy(x: Tensor, draw: NoiseDraw, owner: Tensor | None = None, seed: int = 0) -> Tensor:
    return add_noise(x, draw, generator=torch.Generator().manual_seed(seed), owner=owner)


def test_gaussian_noise_has_the_strength_of_each_picture() -> None:
    x = torch.full((3, 3, 128, 128), 0.5)
    got = noisy(x, NoiseDraw(column(0.0, 0.02, 0.08), column(0, 0, 0), column(0, 0, 0)))
    assert torch.equal(got[0], x[0])
    assert (got[1] - x[1]).std().item() == pytest.approx(0.02, rel=0.03)
    assert (got[2] - x[2]).std().item() == pytest.approx(0.08, rel=0.03)


def test_poisson_noise_grows_with_the_root_of_brightness() -> None:
    x = torch.linspace(0, 255, 256).round().div(255).view(1, 1, 1, 256).expand(1, 3, 512, 256)
    got = noisy(x, NoiseDraw(column(0.0), column(0.5), column(0.0)))
    # 256 levels make 256 photons at white; no clamping near the middle
    for level in (32, 128, 192):
        spread = (got - x)[..., level].std().item()
        expected = 0.5 * (level / 255 / 256) ** 0.5
        assert spread == pytest.approx(expected, rel=0.06)
    assert torch.equal(got[..., 0], x[..., 0])


def test_poisson_noise_is_stronger_where_a_picture_has_few_levels() -> None:
    few = torch.full((1, 3, 64, 64), 128 / 255)
    few[..., ::2] = 129 / 255
    draw = NoiseDraw(column(0.0), column(0.1), column(0.0))
    # 2 levels make 2 photons: sd = 0.1 * sqrt(0.5 / 2)
    assert (noisy(few, draw) - few).std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("sigma, poisson", [(0.05, 0.0), (0.0, 1.0)])
def test_grey_noise_is_the_same_in_all_channels(sigma: float, poisson: float) -> None:
    x = torch.rand(2, 3, 32, 32) * 0.2 + 0.4
    draw = NoiseDraw(column(sigma, sigma), column(poisson, poisson), column(1, 0))
    noise = noisy(x, draw) - x
    assert torch.allclose(noise[0, 0], noise[0, 1], atol=1e-6)
    assert torch.allclose(noise[0, 0], noise[0, 2], atol=1e-6)
    assert (noise[1, 0] - noise[1, 1]).abs().mean() > 0.005


def test_pieces_get_the_noise_of_the_picture_they_belong_to() -> None:
    x = torch.full((4, 3, 16, 16), 0.5)
    draw = NoiseDraw(column(0.0, 0.05), column(0.0, 0.0), column(0.0, 0.0))
    got = noisy(x, draw, owner=torch.tensor([0, 1, 1, 0]))
    assert (got != x).flatten(1).any(1).tolist() == [False, True, True, False]


def test_the_seed_decides_the_noise() -> None:
    x = torch.rand(2, 3, 16, 16)
    draw = NoiseDraw(column(0.1, 0.0), column(0.0, 1.0), column(0, 1))
    assert torch.equal(noisy(x, draw), noisy(x, draw))
    assert not torch.equal(noisy(x, draw), noisy(x, draw, seed=1))


def test_drawn_strengths_follow_the_spec() -> None:
    dice = Dice([PRESETS["strong"]], torch.zeros(4000, dtype=torch.long), torch.Generator())
    draw = draw_noise(dice, "noise1")
    is_gaussian = draw.sigma > 0
    assert is_gaussian.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(is_gaussian, draw.poisson == 0)
    assert draw.sigma[is_gaussian].min() >= 1 / 255
    assert draw.sigma.max() <= 30 / 255
    assert draw.poisson[~is_gaussian].min() >= 0.05
    assert draw.poisson.max() <= 3
    assert draw.gray.float().mean().item() == pytest.approx(0.4, abs=0.03)
