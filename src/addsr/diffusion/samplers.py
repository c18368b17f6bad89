"""Samplers as free functions over a model callable `(x_t, t, lr, condition, fidelity) -> x0`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | Tensor], Tensor]
OnStep = Callable[[int, Tensor], None]


def sample_addsr(
    model: Model,
    lr: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    *,
    psr_weight: float = 0.5,
    fidelity: float | Tensor = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """The restored picture `(B, 3, 4h, 4w)` in [0, 1] after `len(levels)` steps.

    AddSR's sampler with prediction-based self-refinement (arXiv 2404.01717): each step
    predicts x0; the next one is conditioned on `psr_weight * x0 + (1 - psr_weight) * x_LR` and
    starts from x0 noised to the next level. The same noise field serves every step, so the result
    is a function of (lr, noise) and a tile of a picture sees the noise of its place.

    Args:
        model: returns x0 in [0, 1] units.
        lr: low-resolution picture `(B, 3, h, w)` in [0, 1].
        noise: standard normal `(B, 3, 4h, 4w)`.
        levels: falling noise levels, the first is 1 (`schedule.LEVELS`).
        on_step: called with the step's index and its clamped x0.
    """
    x_t, condition, x0 = noise, None, noise
    for k, level in enumerate(levels):
        if k > 0:
            x_t = (1 - level) * (x0 * 2 - 1) + level * noise
            base = F.interpolate(lr, size=noise.shape[-2:], mode="bilinear", align_corners=False)
            condition = psr_weight * x0 + (1 - psr_weight) * base
            del base  # not kept while the model runs
        t = torch.full((len(lr),), level, device=lr.device)
        x0 = model(x_t, t, lr, condition, fidelity).float().clamp(0, 1)
        if on_step is not None:
            on_step(k, x0)
    return x0


def sample_ode(
    model: Model,
    lr: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    *,
    weak_lr: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """The teacher's deterministic sample `(B, 3, 4h, 4w)` in [0, 1] along the straight-line flow.

    Euler steps: from x0 and x_t the noise estimate is `eps = (x_t - (1 - t) x0) / t`, carried to
    the next level. With `guidance` g other than 1 the prediction is `x0_weak + g (x0 - x0_weak)`,
    where x0_weak sees `weak_lr` (a blurred input keeps structure that an empty one would lose).
    """
    x_t, x0 = noise, noise
    for k, level in enumerate(levels):
        t = torch.full((len(lr),), level, device=lr.device)
        x0 = model(x_t, t, lr, None, 1.0).float()
        if guidance != 1.0 and weak_lr is not None:
            weak = model(x_t, t, weak_lr, None, 1.0).float()
            x0 = weak + guidance * (x0 - weak)
        x0 = x0.clamp(0, 1)
        if k + 1 < len(levels):
            below = levels[k + 1]
            clean = x0 * 2 - 1
            eps = (x_t - (1 - level) * clean) / level
            x_t = (1 - below) * clean + below * eps
    return x0
