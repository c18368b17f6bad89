"""What the loop asks of a task, and what every task shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .compiling import Compiler
from .config import OptimConfig, Recipe
from .optim import Trained, rate_factor


@dataclass(frozen=True)
class Batch:
    """Training pictures: `hr` `(B, 3, H, W)` and `lr` `(B, 3, H/4, W/4)` in [0, 1]."""

    hr: Tensor
    lr: Tensor
    latent: Tensor | None = None
    """What a diffusion model sampled for `lr`, scaled, `(B, 4, H/8, W/8)`; few tasks need it."""
    text: Tensor | None = None
    """The embedded prompts of the pictures `(B, tokens, width)`; None: all are empty."""


class Task(ABC):
    """A set of trained networks and one training step; the loop knows nothing else of it."""

    name: str
    licence: str = "Apache-2.0"
    """Of the weights that come of it, for their files."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.generator = torch.Generator(device).manual_seed(recipe.run.seed + 1)
        self.trained: dict[str, Trained] = {}
        self.compiled = Compiler(recipe.run)

    def track(self, name: str, net: nn.Module, optim: OptimConfig) -> Trained:
        """Registers a network to be trained, checkpointed and averaged under `name`."""
        run = self.recipe.run
        trained = Trained(
            net,
            optim,
            precision=run.precision,
            ema=run.ema,
            device=self.device,
            passes=run.accumulate,
        )
        self.trained[name] = trained
        return trained

    def set_progress(self, step: int, progress: float) -> None:
        """Sets learning rates; `progress` is the share of the run done, 0 to 1."""
        factor = rate_factor(self.recipe.optim, step, progress)
        for trained in self.trained.values():
            trained.set_rate(factor)

    def fresh_samples(self, batch: int) -> int:
        """How many new pairs a pass of `batch` samples takes from the source."""
        return batch

    def check_pairs(self, pairs: list[Batch]) -> None:  # noqa: B027 (most tasks can use all)
        """Raises a ConfigError for validation pairs that `validate` could not use."""

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One pass forward and back; gives figures to log, as scalars on the device.

        The networks are updated after `run.accumulate` passes, which `Trained` counts.
        """

    @abstractmethod
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Figures and a picture grid `(3, H, W)` on validation pairs, with averaged weights."""

    @abstractmethod
    def flops_per_sample(self) -> float:
        """Floating-point operations of one training sample, for the throughput figure."""

    def facts(self) -> dict[str, str]:
        """What else the headers of its weights files say, for those who use them."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Further tensors and numbers that a full resume needs."""
        return {"generator": self.generator.get_state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` gave."""
        self.generator.set_state(state["generator"].cpu())

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) from the task's generator."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `x`, channels_last, from the task's generator."""
        noise = torch.empty_like(x, memory_format=torch.channels_last)
        return noise.normal_(generator=self.generator)
