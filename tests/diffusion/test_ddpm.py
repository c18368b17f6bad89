"""The respaced schedule and its samplers; published numbers are checked in test_parity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from addsr.diffusion.ddpm import (
    Prediction,
    Schedule,
    ddim_step,
    ddpm_step,
    even_timesteps,
    fresh_noises,
    sample_latent,
    start_latent,
)
from addsr.errors import OptionError

BOTH: list[Prediction] = ["eps", "v"]


def latent(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def test_schedule_has_the_published_ends() -> None:
    alpha_bar = Schedule.trained().alpha_bar
    assert float(alpha_bar[0]) == pytest.approx(0.99915)
    assert float(alpha_bar[999]) == pytest.approx(0.004660, abs=5e-7)


def test_two_hundred_steps_are_the_published_ones() -> None:
    steps = even_timesteps(200)
    assert steps[:4] == [0, 5, 10, 15]
    assert steps[-3:] == [989, 994, 999]


@given(st.integers(1, 1000))
def test_timesteps_rise_to_the_last_and_are_as_many_as_asked_for(count: int) -> None:
    schedule = Schedule.respaced(count)
    steps = schedule.timesteps
    assert len(schedule) == len(set(steps)) == count
    assert list(steps) == sorted(steps)
    assert steps[-1] == 999
    assert count == 1 or steps[0] == 0
    assert torch.allclose((1 - schedule.betas).cumprod(0), schedule.alpha_bar)
    assert bool((schedule.posterior_variance[1:] > 0).all())


@pytest.mark.parametrize("prediction", BOTH)
def test_both_kinds_of_prediction_give_back_what_was_mixed(prediction: Prediction) -> None:
    z_0, eps, schedule = latent(0), latent(1), Schedule.respaced(10)
    for index in range(10):
        z_t = schedule.add_noise(z_0, eps, index)
        signal = float(schedule.alpha_bar[index]) ** 0.5
        output = eps if prediction == "eps" else signal * eps - (1 - signal**2) ** 0.5 * z_0
        parts = schedule.split(z_t, output, index, prediction)
        torch.testing.assert_close(parts.z_0, z_0, atol=2e-5, rtol=0)
        torch.testing.assert_close(parts.eps, eps, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prediction", BOTH)
@pytest.mark.parametrize("index", [0, 1, 17, 49])
def test_ddim_with_full_noise_is_ddpm(prediction: Prediction, index: int) -> None:
    schedule, given = Schedule.respaced(50), (latent(0), latent(1), latent(2), index, prediction)
    got = ddim_step(1.0)(schedule, *given)
    torch.testing.assert_close(got, ddpm_step(schedule, *given), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [4, 15, 20, 50])
def test_ddim_lands_on_the_noise_level_its_next_timestep_names(steps: int) -> None:
    # the published scripts tell the network one list of timesteps and compute with another
    z_0, eps = latent(0), latent(1)
    trained, schedule = Schedule.trained(), Schedule.respaced(steps)
    for index in range(steps - 1, 0, -1):
        z_t = trained.add_noise(z_0, eps, schedule.timesteps[index])
        got = ddim_step()(schedule, z_t, eps, latent(2), index, "eps")
        expected = trained.add_noise(z_0, eps, schedule.timesteps[index - 1])
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("eta", [None, 0.0, 0.5, 1.0])
def test_a_perfect_network_leads_back_to_the_clean_latent(eta: float | None) -> None:
    z_0, told = latent(0), list[int]()
    trained = Schedule.trained()

    def oracle(z_t: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        alpha_bar = float(trained.alpha_bar[told[-1]])
        return (z_t - alpha_bar**0.5 * z_0) / (1 - alpha_bar) ** 0.5

    generator = torch.Generator().manual_seed(0)
    got = sample_latent(
        oracle,
        start_latent(z_0, latent(1)),
        Schedule.respaced(4),
        fresh_noises(z_0, generator),
        step=ddpm_step if eta is None else ddim_step(eta),
    )
    assert told == [999, 666, 333, 0]
    torch.testing.assert_close(got, z_0, atol=1e-4, rtol=0)


def test_a_list_of_ones_own_is_followed() -> None:
    # those SD-Turbo was distilled for
    schedule = Schedule.of([999, 749, 499, 249])
    assert schedule.timesteps == (249, 499, 749, 999)
    assert torch.equal(schedule.alpha_bar, Schedule.trained().alpha_bar[[249, 499, 749, 999]])


def test_sampling_starts_from_the_input_or_from_noise() -> None:
    z_lr, noise = latent(0), latent(1)
    torch.testing.assert_close(
        start_latent(z_lr, noise), 0.0683 * z_lr + 0.9977 * noise, atol=5e-4, rtol=0
    )
    assert start_latent(z_lr, noise, from_noise=True) is noise


def test_impossible_settings_are_refused() -> None:
    for steps in (0, 1001):
        with pytest.raises(OptionError, match="steps"):
            Schedule.respaced(steps)
    for timesteps in ([], [3, 3], [1000], [-1]):
        with pytest.raises(OptionError, match="timesteps"):
            Schedule.of(timesteps)
    with pytest.raises(OptionError, match="eta"):
        ddim_step(1.5)
