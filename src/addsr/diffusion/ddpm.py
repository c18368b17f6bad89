"""The latent diffusion schedule of Stable Diffusion, respaced, and its two ways down.

`z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) eps` at 1000 timesteps. A sampler of n steps walks
a sublist of them; networks are told the original timestep, formulas use the tables of the sublist:
one list for both, where StableSR's DDIM scripts use two that do not match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from addsr.errors import OptionError

Prediction = Literal["eps", "v"]
"""What a network says: the noise, or `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0`."""

TRAINED_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Timesteps, rising, and the share of signal at each; float64, on the CPU."""

    timesteps: tuple[int, ...]
    """Original timesteps, 0..999: what a network is told."""
    alpha_bar: Tensor
    """`(n,)`, falling."""

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def trained(cls) -> Schedule:
        """All 1000 steps; the square roots of beta are evenly spaced from 0.00085 to 0.012."""
        low, high = 0.00085**0.5, 0.0120**0.5
        betas = torch.linspace(low, high, TRAINED_STEPS, dtype=torch.float64) ** 2
        return cls(tuple(range(TRAINED_STEPS)), (1 - betas).cumprod(0))

    @classmethod
    def respaced(cls, steps: int) -> Schedule:
        """`steps` evenly spread timesteps from 0 to 999; a single one is 999.

        Raises:
            OptionError: `steps` is not 1 to 1000.
        """
        if not 1 <= steps <= TRAINED_STEPS:
            raise OptionError(f"steps: {steps} is not between 1 and {TRAINED_STEPS}")
        return cls.of(even_timesteps(steps))

    @classmethod
    def of(cls, timesteps: Iterable[int]) -> Schedule:
        """The schedule that visits `timesteps`, in any order, and no others.

        Raises:
            OptionError: one of them is not 0..999, is there twice, or there are none.
        """
        given = list(timesteps)
        chosen = sorted(set(given))
        if not chosen or len(chosen) < len(given) or chosen[0] < 0 or chosen[-1] >= TRAINED_STEPS:
            raise OptionError(f"timesteps: {given} must be different numbers from 0 to 999")
        return cls(tuple(chosen), cls.trained().alpha_bar[chosen])

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """`alpha_bar` of the step that comes after in sampling, 1 after the last."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Of `q(z_prev | z_t, z_0)`; 0 at index 0."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of z_0 and z_t in the mean of `q(z_prev | z_t, z_0)`."""
        before, rest = self.alpha_bar_prev, 1 - self.alpha_bar
        clean = self.betas * before.sqrt() / rest
        noisy = (1 - before) * (1 - self.betas).sqrt() / rest
        return clean, noisy

    def split(self, z_t: Tensor, output: Tensor, index: int, prediction: Prediction) -> Split:
        """Clean latent and noise that `z_t` consists of, after a network's output at `index`.

        Nothing is clipped.
        """
        signal, noise = self._roots(index)
        if prediction == "eps":
            return Split((z_t - noise * output) / signal, output)
        return Split(signal * z_t - noise * output, signal * output + noise * z_t)

    def posterior(self, z_0: Tensor, z_t: Tensor, index: int) -> tuple[Tensor, float]:
        """Mean and variance of `q(z_prev | z_t, z_0)`."""
        clean, noisy = (float(weight[index]) for weight in self.posterior_weights)
        return clean * z_0 + noisy * z_t, float(self.posterior_variance[index])

    def add_noise(self, z_0: Tensor, noise: Tensor, index: int) -> Tensor:
        """`z_t` of a clean latent at `index` (which is the timestep in `Schedule.trained()`)."""
        signal, spread = self._roots(index)
        return signal * z_0 + spread * noise

    def _roots(self, index: int) -> tuple[float, float]:
        alpha_bar = float(self.alpha_bar[index])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


@dataclass(frozen=True)
class Split:
    """The two parts of a noisy latent."""

    z_0: Tensor
    eps: Tensor


Step = Callable[[Schedule, Tensor, Tensor, Tensor, int, Prediction], Tensor]
"""`step(schedule, z_t, output, noise, index, prediction)` gives the latent at the next index."""


def ddpm_step(
    schedule: Schedule,
    z_t: Tensor,
    output: Tensor,
    noise: Tensor,
    index: int,
    prediction: Prediction,
) -> Tensor:
    """`z_prev` drawn from the posterior with `noise`, of which the last step takes none."""
    z_0 = schedule.split(z_t, output, index, prediction).z_0
    mean, variance = schedule.posterior(z_0, z_t, index)
    return mean + variance**0.5 * noise if index else mean


def ddim_step(eta: float = 0.0) -> Step:
    """A step of DDIM (arXiv 2010.02502, equation 12); `eta` 1 is DDPM, 0 takes no noise.

    Raises:
        OptionError: `eta` is not 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise OptionError(f"eta: {eta} is not between 0 and 1")

    def step(
        schedule: Schedule,
        z_t: Tensor,
        output: Tensor,
        noise: Tensor,
        index: int,
        prediction: Prediction,
    ) -> Tensor:
        parts = schedule.split(z_t, output, index, prediction)
        before = float(schedule.alpha_bar_prev[index])
        variance = eta**2 * float(schedule.posterior_variance[index])
        # rounding may leave a tiny negative number at the last step
        z = before**0.5 * parts.z_0 + max(1 - before - variance, 0.0) ** 0.5 * parts.eps
        return z + variance**0.5 * noise if variance else z

    return step


def sample_latent(
    model: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    schedule: Schedule,
    noises: Iterator[Tensor],
    *,
    step: Step = ddpm_step,
    prediction: Prediction = "eps",
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """The clean latent `(B, 4, h, w)` that sampling from `z` leads to.

    Args:
        model: `(z_t, t)` to the network output; t `(B,)` is the original timestep.
        z: noisy latent at the schedule's largest timestep.
        noises: standard normal latents, one is taken per step (`fresh_noises`).
        on_step: called with the timestep, the network output and the latent after the step; may
            give another latent to go on with.
    """
    for index in reversed(range(len(schedule))):
        timestep = schedule.timesteps[index]
        output = model(z, torch.full((len(z),), timestep, device=z.device)).float()
        z = step(schedule, z, output, next(noises), index, prediction)
        if on_step is not None:
            other = on_step(timestep, output, z)
            z = z if other is None else other
    return z


def fresh_noises(like: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal float32 tensors of the shape of `like`, drawn where `generator` lives."""
    while True:
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        yield noise.to(like.device)


def start_latent(z_lr: Tensor, noise: Tensor, *, from_noise: bool = False) -> Tensor:
    """Where sampling begins: the low-resolution latent noised to timestep 999, or mere `noise`.

    At 999 the signal's share is 0.0683 and not 0: starting from mere noise, as the paper's own
    protocol does, lets brightness and colour drift.
    """
    return noise if from_noise else Schedule.trained().add_noise(z_lr, noise, TRAINED_STEPS - 1)


def even_timesteps(steps: int) -> list[int]:
    """`steps` timesteps from 0 to 999, rounded to even at ties; a single one is 999.

    The stride is added up as in OpenAI's guided-diffusion, whose respacing everybody shares, for
    the sum's rounding decides ties at some odd numbers of steps.

    >>> even_timesteps(4)
    [0, 333, 666, 999]
    """
    if steps == 1:
        return [TRAINED_STEPS - 1]
    stride = (TRAINED_STEPS - 1) / (steps - 1)
    position, found = 0.0, list[int]()
    for _ in range(steps):
        found.append(round(position))
        position += stride
    return found
