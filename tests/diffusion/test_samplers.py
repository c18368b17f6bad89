"""Samplers against what the papers' loop says, on models whose answer is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.samplers import sample_addsr, sample_ode
from addsr.diffusion.schedule import LEVELS, add_noise, even_levels


class Recorder:
    """A model that keeps its inputs and answers with a fixed picture per call."""

    def __init__(self, answers: list[Tensor]) -> None:
        self.answers = answers
        self.calls: list[tuple[Tensor, float, Tensor | None]] = []

    def __call__(
        self, x_t: Tensor, t: Tensor, lr: Tensor, condition: Tensor | None, fidelity: object
    ) -> Tensor:
        self.calls.append((x_t, float(t[0]), condition))
        return self.answers[len(self.calls) - 1]


def test_each_step_is_conditioned_on_the_mix_and_noised_to_the_next_level() -> None:
    lr, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 16, 16)
    answers = [torch.rand(2, 3, 16, 16) for _ in range(4)]
    model = Recorder(answers)
    result = sample_addsr(model, lr, noise, LEVELS[4], psr_weight=0.3)
    base = F.interpolate(lr, scale_factor=4, mode="bilinear", align_corners=False)
    assert [t for _, t, _ in model.calls] == [1.0, 0.75, 0.5, 0.25]
    assert torch.equal(model.calls[0][0], noise)
    assert model.calls[0][2] is None
    for k in (1, 2, 3):
        x_t, level, condition = model.calls[k]
        assert condition is not None
        torch.testing.assert_close(condition, 0.3 * answers[k - 1] + 0.7 * base)
        expected = (1 - level) * (2 * answers[k - 1] - 1) + level * noise
        torch.testing.assert_close(x_t, expected)
    assert torch.equal(result, answers[3])


def test_fewer_steps_take_the_head_of_the_same_levels() -> None:
    assert LEVELS[1] == LEVELS[4][:1]
    assert LEVELS[2] == LEVELS[4][:2]


def test_each_step_is_reported_and_clamped() -> None:
    seen: list[int] = []
    model = Recorder([torch.full((1, 3, 8, 8), 3.0), torch.full((1, 3, 8, 8), -2.0)])
    result = sample_addsr(
        model,
        torch.rand(1, 3, 2, 2),
        torch.randn(1, 3, 8, 8),
        LEVELS[2],
        on_step=lambda k, x0: seen.append(k),
    )
    assert seen == [0, 1]
    assert result.max() == 0


def test_the_flow_returns_the_gaussian_it_was_trained_on() -> None:
    """With the exact posterior mean of N(m, s^2) data, many steps map noise to that law."""
    mean, std = 0.2, 0.3  # in [-1, 1] units

    def model(x_t: Tensor, t: Tensor, lr: Tensor, condition: object, fidelity: object) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * std**2 + t**2
        x0 = mean + (1 - t) * std**2 / variance * (x_t - (1 - t) * mean)
        return (x0 + 1) / 2

    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sample = sample_ode(model, torch.rand(1, 3, 16, 16), noise, even_levels(200)) * 2 - 1
    assert abs(float(sample.mean()) - mean) < 0.02
    assert abs(float(sample.std()) - std) < 0.02


def test_guidance_moves_away_from_the_weak_prediction() -> None:
    def model(x_t: Tensor, t: Tensor, lr: Tensor, condition: object, fidelity: object) -> Tensor:
        return F.interpolate(lr, scale_factor=4)

    lr, weak = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), 0.4)
    noise = torch.randn(1, 3, 8, 8)
    result = sample_ode(model, lr, noise, (1.0,), weak_lr=weak, guidance=2.0)
    torch.testing.assert_close(result, torch.full_like(result, 0.6))


def test_noise_is_added_along_the_straight_line() -> None:
    x0, noise = torch.rand(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    t = torch.tensor([0.0, 0.25, 1.0])
    x_t = add_noise(x0, noise, t)
    torch.testing.assert_close(x_t[0], 2 * x0[0] - 1)
    torch.testing.assert_close(x_t[1], 0.75 * (2 * x0[1] - 1) + 0.25 * noise[1])
    torch.testing.assert_close(x_t[2], noise[2])
