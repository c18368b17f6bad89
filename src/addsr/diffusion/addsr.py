"""How AddSR (arXiv 2404.01717) and SeeSR (arXiv 2311.16518) go from noise to a latent.

AddSR predicts the clean latent at one to four fixed timesteps and noises it anew in between; from
the second step on the networks look at what was predicted so far (prediction-based
self-refinement). SeeSR takes fifty steps of DDPM with guidance. Both predict the noise. Networks,
VAE and tagger are callables here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from addsr.errors import OptionError

from .ddpm import TRAINED_STEPS, Schedule, sample_latent

LEVELS: dict[int, tuple[int, ...]] = {
    1: (999,),
    2: (999, 749),
    3: (999, 749, 499),
    4: (999, 749, 499, 249),
}
"""AddSR's timesteps by their number: fewer steps stop earlier in the same list."""

PSR_WEIGHT = 0.5
"""The prediction's share in what the networks look at, as documented."""
RELEASED_PSR_WEIGHT = 0.4
"""The share that is in effect in the released program, whatever it is asked for."""

SEESR_STEPS = 50
SEESR_GUIDANCE = 5.5


@dataclass(frozen=True)
class Cue:
    """What the networks look at in a step."""

    picture: Tensor
    """For the ControlNet: `(B, 3, 8h, 8w)` in [0, 1]."""
    tokens: Tensor
    """For the image attention: what the tagger made of a picture, `(B, tokens, width)`."""


Predict = Callable[[Tensor, Tensor, Cue], Tensor]
"""`predict(z_t, t, cue)` gives the noise in `z_t`; t is `(B,)`.

The cue is the same object for as long as it does not change: what depends on it alone needs to be
computed once.
"""


@dataclass(frozen=True)
class FewStep:
    """One step as it was taken."""

    index: int
    timestep: int
    cue: Cue
    z_t: Tensor
    eps: Tensor
    z_0: Tensor
    """The prediction."""


def few_step_levels(steps: int) -> tuple[int, ...]:
    """The timesteps of `steps` steps.

    Raises:
        OptionError: AddSR was not trained for as many.
    """
    if steps not in LEVELS:
        raise OptionError(f"steps: {steps!r} is not possible; AddSR takes 1, 2, 3 or 4")
    return LEVELS[steps]


def sample_addsr_latent(
    predict: Predict,
    z: Tensor,
    cue: Cue,
    noises: Iterator[Tensor],
    *,
    refine: Callable[[Tensor], Cue] | None = None,
    timesteps: Sequence[int] = LEVELS[4],
    on_step: Callable[[FewStep], Tensor | None] | None = None,
) -> Tensor:
    """The clean latent `(B, 4, h, w)`, float32, that the last step predicts.

    Arithmetic is float32 whatever the networks work in: at 999 an error of the predicted noise
    counts 14.6 times.

    Args:
        z: noisy latent at the first timestep (`start_latent`), or mere noise.
        cue: what the first step looks at.
        noises: standard normal latents, one for each step after the first.
        refine: makes the next step's cue of the latent predicted last (`refinement`); None: all
            steps look at `cue`.
        timesteps: falling.
        on_step: called after each prediction; may give another one to go on with.

    Raises:
        OptionError: timesteps that do not fall or are not 0..999.
    """
    if list(timesteps) != sorted(timesteps, reverse=True):
        raise OptionError(f"timesteps: {list(timesteps)} do not fall")
    schedule = Schedule.of(timesteps)
    last = len(schedule) - 1
    z_t = z_0 = z.float()
    for k, timestep in enumerate(timesteps):
        if k > 0:
            cue = cue if refine is None else refine(z_0)
            z_t = schedule.add_noise(z_0, next(noises).float(), last - k)
        t = torch.full((len(z_t),), timestep, device=z_t.device)
        eps = predict(z_t, t, cue).float()
        z_0 = schedule.split(z_t, eps, last - k, "eps").z_0
        if on_step is not None:
            other = on_step(FewStep(k, timestep, cue, z_t, eps, z_0))
            z_0 = z_0 if other is None else other
    return z_0


def refinement(
    decode: Callable[[Tensor], Tensor],
    first: Cue,
    *,
    embed: Callable[[Tensor], Tensor] | None = None,
    weight: float = PSR_WEIGHT,
) -> Callable[[Tensor], Cue]:
    """AddSR's self-refinement: `refine(z_0)` mixes the decoded prediction with the first picture.

    The picture is `weight * x_0 + (1 - weight) * x_LR`, where x_LR is always the first one. At 0
    nothing is decoded; 1 is the paper's first version.

    Args:
        decode: from a scaled latent `(B, 4, h, w)` to a picture in [-1, 1], which is clamped here.
        embed: the tagger's tokens for a picture in [0, 1]; None: those of `first` are kept.
        weight: 0 to 1; `RELEASED_PSR_WEIGHT` for what the released program does.

    Raises:
        OptionError: `weight` is not 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise OptionError(f"psr_weight: {weight!r} is outside of 0 to 1; give a number in between")

    def refine(z_0: Tensor) -> Cue:
        picture = first.picture
        if weight > 0:
            seen = decode(z_0).float().clamp(-1, 1) / 2 + 0.5
            picture = weight * seen + (1 - weight) * picture
        return Cue(picture, first.tokens if embed is None else embed(picture))

    return refine


def sample_seesr_latent(
    predict: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    noises: Iterator[Tensor],
    *,
    steps: int = SEESR_STEPS,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """The clean latent `(B, 4, h, w)` after `steps` steps of DDPM, as SeeSR samples.

    Args:
        predict: `(z_t, t)` to the predicted noise, after guidance; t is `(B,)`.
        z: the low-resolution latent noised to 999 (`start_latent`): the first timestep, such as
            981, is a little below, as published.
        noises: standard normal latents, one for each step.
        on_step: called with the timestep, the predicted noise and the latent after the step; may
            give another latent to go on with.

    Raises:
        OptionError: `steps` is not 1 to 1000.
    """
    schedule = Schedule.of(leading_timesteps(steps))
    return sample_latent(predict, z.float(), schedule, noises, on_step=on_step)


def leading_timesteps(steps: int, offset: int = 1) -> list[int]:
    """`steps` timesteps upwards from `offset` in equal strides: "leading" in diffusers' words.

    Stable Diffusion 2's own spacing, which SeeSR inherits.

    >>> leading_timesteps(4)
    [1, 251, 501, 751]

    Raises:
        OptionError: `steps` is not 1 to 1000.
    """
    if not 1 <= steps <= TRAINED_STEPS:
        raise OptionError(f"steps: {steps} is not between 1 and {TRAINED_STEPS}")
    stride = TRAINED_STEPS // steps
    # with a stride of 1 there is no room for an offset above the last
    return [min(k * stride + offset, TRAINED_STEPS - steps + k) for k in range(steps)]
