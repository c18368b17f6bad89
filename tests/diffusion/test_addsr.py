"""The samplers of AddSR and SeeSR against the equations, with toy networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from addsr.diffusion.addsr import (
    LEVELS,
    PSR_WEIGHT,
    RELEASED_PSR_WEIGHT,
    SEESR_STEPS,
    Cue,
    FewStep,
    few_step_levels,
    leading_timesteps,
    refinement,
    sample_addsr_latent,
    sample_seesr_latent,
)
from addsr.diffusion.ddpm import start_latent
from addsr.errors import OptionError

SHAPE = (2, 4, 3, 5)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def first_cue() -> Cue:
    generator = torch.Generator().manual_seed(9)
    return Cue(torch.rand(2, 4, 3, 5, generator=generator), normal(8, 2, 1, 6))


def network(z_t: Tensor, t: Tensor, cue: Cue) -> Tensor:
    """Looks at all that it is given."""
    seen = cue.picture + cue.tokens.mean((1, 2))[:, None, None, None]
    return 0.6 * z_t + 0.3 * seen + t[:, None, None, None] / 4000


def decode(z_0: Tensor) -> Tensor:
    return 1.7 * z_0  # beyond [-1, 1], as decoders are


def embed(picture: Tensor) -> Tensor:
    return picture.mean((1, 2, 3))[:, None, None].expand(-1, 1, 6)


def alpha_bar(t: int) -> float:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return float(np.prod(1 - betas[: t + 1]))


def transcribed(z: Tensor, noises: list[Tensor], levels: tuple[int, ...], weight: float) -> Tensor:
    """Equations of 2.1 one by one, in float64."""
    given = first_cue()
    lr, z_t = given.picture.double(), z.double()
    picture, tokens = lr, given.tokens.double()
    for k, t in enumerate(levels):
        eps = network(z_t, torch.full((2,), t).double(), Cue(picture, tokens))
        z_0 = (z_t - (1 - alpha_bar(t)) ** 0.5 * eps) / alpha_bar(t) ** 0.5
        if k + 1 < len(levels):
            after = alpha_bar(levels[k + 1])
            z_t = after**0.5 * z_0 + (1 - after) ** 0.5 * noises[k].double()
            x_0 = decode(z_0).clip(-1, 1) / 2 + 0.5
            picture = weight * x_0 + (1 - weight) * lr
            tokens = embed(picture)
    return z_0


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_each_number_of_steps_follows_the_equations(steps: int, weight: float) -> None:
    z, noises = normal(0), [normal(k) for k in range(1, steps)]
    levels = few_step_levels(steps)
    taken: list[FewStep] = []
    source = iter(noises)
    got = sample_addsr_latent(
        network,
        z,
        first_cue(),
        source,
        refine=refinement(decode, first_cue(), embed=embed, weight=weight),
        timesteps=levels,
        on_step=taken.append,
    )
    torch.testing.assert_close(
        got.double(), transcribed(z, noises, levels, weight), rtol=1e-4, atol=1e-4
    )
    assert next(source, None) is None
    assert [(step.index, step.timestep) for step in taken] == list(enumerate(levels))
    assert torch.equal(taken[-1].z_0, got)


def test_fewer_steps_stop_earlier_in_the_same_list() -> None:
    assert LEVELS[4] == (999, 749, 499, 249)
    assert all(LEVELS[n] == LEVELS[4][:n] for n in (1, 2, 3))
    assert (PSR_WEIGHT, RELEASED_PSR_WEIGHT) == (0.5, 0.4)
    for wrong in (0, 5, 50):
        with pytest.raises(OptionError, match=f"steps: {wrong} is not possible"):
            few_step_levels(wrong)


def test_without_refinement_all_steps_look_at_the_same() -> None:
    cue, cues = first_cue(), list[Cue]()

    def watch(z_t: Tensor, t: Tensor, seen: Cue) -> Tensor:
        cues.append(seen)
        return network(z_t, t, seen)

    sample_addsr_latent(watch, normal(0), cue, iter([normal(k) for k in range(3)]))
    assert len(cues) == 4
    assert all(seen is cue for seen in cues)


def test_weight_0_decodes_nothing_and_tokens_are_kept_unless_asked_for() -> None:
    first = first_cue()

    def refuse(_z_0: Tensor) -> Tensor:
        raise AssertionError("decoded")

    kept = refinement(refuse, first, weight=0.0)(normal(0))
    assert kept.picture is first.picture
    assert kept.tokens is first.tokens
    half = refinement(decode, first)(normal(0))
    assert torch.allclose(half.picture, 0.5 * (decode(normal(0)).clamp(-1, 1) / 2 + 0.5)
                          + 0.5 * first.picture)  # fmt: skip
    assert half.tokens is first.tokens
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="psr_weight"):
            refinement(decode, first, weight=wrong)


def test_arithmetic_is_float32_whatever_the_network_works_in() -> None:
    def half(z_t: Tensor, _t: Tensor, _cue: Cue) -> Tensor:
        assert z_t.dtype == torch.float32
        return (0.99 * z_t).bfloat16()

    z = normal(0)
    got = sample_addsr_latent(half, z, first_cue(), iter(()), timesteps=(999,))
    assert got.dtype == torch.float32
    eps = (0.99 * z).bfloat16().double()
    wanted = (z.double() - (1 - alpha_bar(999)) ** 0.5 * eps) / alpha_bar(999) ** 0.5
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [((249, 999), "do not fall"), ((1000, 749), "from 0 to 999"), ((999, 999), "different")],
)
def test_timesteps_that_are_none_are_refused(wrong: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sample_addsr_latent(network, normal(0), first_cue(), iter(()), timesteps=wrong)


@pytest.mark.parametrize("steps", [2, 50, 333])
def test_seesr_walks_as_the_scheduler_of_stable_diffusion_does(steps: int) -> None:
    from diffusers import DDPMScheduler

    theirs: Any = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="leading",
        clip_sample=False,
    )
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == leading_timesteps(steps)[::-1]
    z, taken = normal(0), list[tuple[int, Tensor]]()

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        return 0.6 * z_t + t[:, None, None, None] / 4000

    def noises(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield torch.randn(SHAPE, generator=generator)

    got = sample_seesr_latent(
        predict,
        z,
        noises(torch.Generator().manual_seed(5)),
        steps=steps,
        on_step=lambda t, _eps, z: taken.append((t, z)),
    )
    generator = torch.Generator().manual_seed(5)
    for t in theirs.timesteps:
        z = theirs.step(predict(z, t.expand(2)), t, z, generator=generator).prev_sample
    torch.testing.assert_close(got, z, rtol=1e-3, atol=1e-4)
    assert [t for t, _ in taken] == theirs.timesteps.tolist()


def test_seesr_takes_any_number_of_steps() -> None:
    assert leading_timesteps(SEESR_STEPS)[-1] == 981
    assert leading_timesteps(1000) == list(range(1000))
    for steps in (501, 700, 999):
        found = leading_timesteps(steps)
        assert len(set(found)) == steps
        assert found[-1] <= 999
    for wrong in (0, 1001):
        with pytest.raises(OptionError, match="is not between 1 and 1000"):
            leading_timesteps(wrong)


def test_both_start_at_999_from_a_picture_or_from_noise() -> None:
    z_lr, noise = normal(1), normal(2)
    share = alpha_bar(999)
    wanted = share**0.5 * z_lr + (1 - share) ** 0.5 * noise
    torch.testing.assert_close(start_latent(z_lr, noise), wanted)
    assert start_latent(z_lr, noise, from_noise=True) is noise
