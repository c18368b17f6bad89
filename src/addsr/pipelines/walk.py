"""The way down from noise: our own schedule, or any scheduler of diffusers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from addsr.diffusion.ddpm import (
    TRAINED_STEPS,
    Prediction,
    Schedule,
    Step,
    ddim_step,
    ddpm_step,
    start_latent,
)
from addsr.engines.device import send
from addsr.errors import OptionError

from .config import Spacing

log = logging.getLogger(__name__)

NoiseSource = torch.Generator | Sequence[torch.Generator | None] | None
"""One generator for all, or one for each picture of a batch; None: torch's own."""
OWN = ("ddpm", "ddim")
_NAMES: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}
_TRAINED: dict[str, object] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


class Walk(Protocol):
    """One picture's way from a noisy latent to a clean one, a step per timestep."""

    timesteps: list[float]

    def start(self, z_lr: Tensor, noise: Tensor, *, from_noise: bool) -> Tensor: ...

    def model_input(self, z: Tensor, k: int) -> Tensor: ...

    def step(self, k: int, z: Tensor, output: Tensor) -> Tensor: ...


def make_walk(
    scheduler: Any,
    steps: int,
    prediction: Prediction,
    generator: torch.Generator | None,
    spacing: Spacing = "linspace",
) -> Walk:
    """A fresh walk of `steps` steps; random numbers come from `generator`.

    `spacing` is that of our own schedules, a scheduler of diffusers has one of its own.
    """
    if isinstance(scheduler, str):
        step = ddpm_step if scheduler == "ddpm" else ddim_step(0.0)
        schedule = Schedule.respaced(steps)
        if spacing == "trailing":
            schedule = Schedule.of(trailing_timesteps(steps))
        return OwnWalk(schedule, step, prediction, generator)
    return SchedulerWalk(scheduler, steps, generator)


def trailing_timesteps(steps: int) -> list[int]:
    """`steps` timesteps counted down from 999 in equal strides, 0 not among them.

    What SD-Turbo was distilled to. Evenly from 999 to 0, as the StableSR scripts respace any
    number of steps, the last of four runs of the network is at 0, where almost nothing is left to
    do, and the others lie between those it knows.

    >>> trailing_timesteps(4), trailing_timesteps(1)
    ([999, 749, 499, 249], [999])
    """
    return [round(TRAINED_STEPS - k * TRAINED_STEPS / steps) - 1 for k in range(steps)]


class OwnWalk:
    """Our DDPM and DDIM, respaced as published."""

    def __init__(
        self,
        schedule: Schedule,
        step: Step,
        prediction: Prediction,
        generator: torch.Generator | None,
    ) -> None:
        self.schedule = schedule
        self.timesteps: list[float] = list(reversed(schedule.timesteps))
        self._step = step
        self._prediction: Prediction = prediction
        self._generator = generator

    def start(self, z_lr: Tensor, noise: Tensor, *, from_noise: bool) -> Tensor:
        return start_latent(z_lr, noise, from_noise=from_noise)

    def model_input(self, z: Tensor, k: int) -> Tensor:
        return z

    def step(self, k: int, z: Tensor, output: Tensor) -> Tensor:
        index = len(self.timesteps) - 1 - k
        noise = send(draw(tuple(z.shape), self._generator), z.device)
        return self._step(self.schedule, z, output, noise, index, self._prediction)


class SchedulerWalk:
    """A scheduler of diffusers, or anything with its methods."""

    def __init__(self, scheduler: Any, steps: int, generator: torch.Generator | None) -> None:
        try:
            scheduler.set_timesteps(steps)
        except ValueError as error:
            raise OptionError(
                f"num_inference_steps: {type(scheduler).__name__} refuses {steps} ({error})"
            ) from error
        self.scheduler = scheduler
        self.timesteps: list[float] = scheduler.timesteps.tolist()
        takes = inspect.signature(scheduler.step).parameters
        self._more = {"generator": generator} if "generator" in takes else {}

    def start(self, z_lr: Tensor, noise: Tensor, *, from_noise: bool) -> Tensor:
        if from_noise:
            return noise * float(self.scheduler.init_noise_sigma)
        z: Tensor = self.scheduler.add_noise(z_lr, noise, self.scheduler.timesteps[:1])
        return z

    def model_input(self, z: Tensor, k: int) -> Tensor:
        scaled: Tensor = self.scheduler.scale_model_input(z, self.scheduler.timesteps[k])
        return scaled

    def step(self, k: int, z: Tensor, output: Tensor) -> Tensor:
        t = self.scheduler.timesteps[k]
        after: Tensor = self.scheduler.step(output, t, z, **self._more).prev_sample
        return after


def check_scheduler(scheduler: Any, prediction: Prediction) -> Any:
    """`scheduler`, if sampling can use it.

    A table of noise other than the trained one is told in the log and not refused: some, such as
    those rescaled to no signal at the end, are meant.

    Raises:
        OptionError: an unknown name, no scheduler, or one for another kind of prediction.
    """
    if isinstance(scheduler, str):
        if scheduler not in OWN:
            raise OptionError(
                f"scheduler: {scheduler!r} is unknown; use {' or '.join(OWN)}, or an object of "
                "diffusers' scheduler classes"
            )
        return scheduler
    if not all(hasattr(scheduler, name) for name in ("set_timesteps", "step", "add_noise")):
        raise OptionError(
            f"scheduler: {type(scheduler).__name__} is no scheduler; use {' or '.join(OWN)}, or an "
            "object of diffusers' scheduler classes"
        )
    config: Mapping[str, Any] = getattr(scheduler, "config", {})
    told = config.get("prediction_type", "epsilon")
    if _NAMES.get(told) != prediction:
        right = next(name for name, short in _NAMES.items() if short == prediction)
        name = type(scheduler).__name__
        raise OptionError(
            f"scheduler: {name} has prediction_type {told!r} and this model predicts {prediction}; "
            f"use {name}.from_config(scheduler.config, prediction_type={right!r})"
        )
    other = {k: config[k] for k, v in _TRAINED.items() if k in config and config[k] != v}
    if config.get("clip_sample"):
        other["clip_sample"] = True
    if other:
        log.warning(
            "scheduler: %s has %s and the model was trained with %s and clip_sample=False",
            type(scheduler).__name__,
            other,
            _TRAINED,
        )
    return scheduler


def draw(shape: tuple[int, ...], generator: NoiseSource) -> Tensor:
    """Standard normal float32 numbers on the CPU: the same for every device that samples.

    A generator on another device draws there. Of several each draws for an entry of its own.
    """
    if isinstance(generator, Sequence):
        return torch.cat([draw((1, *shape[1:]), one) for one in generator])
    device = generator.device if generator is not None else "cpu"
    return torch.randn(shape, generator=generator, device=device).cpu()
