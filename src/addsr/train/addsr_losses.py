"""AddSR's losses (arXiv 2404.01717, section 3.3): timestep-adaptive distillation, and its GAN.

    L_G = L_distillation + 0.02 L_adversarial
    L_distillation = E_k,b [ sqrt(alpha_bar(t_kb)) mu nu^(p(s_b) - 1) |x_b - x^teacher_kb|^2 ]

where s_b is the student's timestep, p(s_b) its number among `LEVELS` from 1 and t_kb the teacher's.
ADD (arXiv 2311.17042) has no factor of s: there the two losses keep their proportion at all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from addsr.diffusion.ddpm import Schedule
from addsr.errors import InputError, OptionError

from .losses import timestep_adaptive

LEVELS = (999, 749, 499, 249)
"""The student's timesteps, in the order of sampling; fewer steps end earlier."""
GAN_WEIGHT = 0.02


def level_index(timesteps: Tensor) -> Tensor:
    """Which of `LEVELS` each of `timesteps` `(B,)` is, from 0.

    Raises:
        OptionError: one of them is none of the levels.
    """
    levels = torch.tensor(LEVELS, device=timesteps.device)
    is_level = timesteps[:, None] == levels
    if not bool(is_level.any(1).all()):
        raise OptionError(
            f"timesteps: {timesteps.tolist()} must be of {', '.join(map(str, LEVELS))}"
        )
    return is_level.long().argmax(1)


def student_weights(timesteps: Tensor, base: float = 0.5, growth: float = 2.1) -> Tensor:
    """The adaptive factor `(B,)` of student timesteps: 0.5, 1.05, 2.205, 4.6305 from 999 down.

    The later the step, the more the teacher counts against the discriminator, under which late
    steps would go on inventing. `growth` 1 makes it constant.
    """
    return timestep_adaptive(level_index(timesteps), base, growth)


def teacher_weights(timesteps: Tensor) -> Tensor:
    """`sqrt(alpha_bar)` of teacher timesteps of any shape, float32: what the teacher sees well
    counts more (ADD's exponential weighting, arXiv 2311.17042)."""
    alpha_bar = Schedule.trained().alpha_bar.to(timesteps.device, torch.float32)
    return alpha_bar.sqrt()[timesteps]


def distillation(
    student: Tensor, teachers: Tensor, teacher_timesteps: Tensor, weights: Tensor
) -> Tensor:
    """The distillation loss `(B,)` per sample; the mean over them is the loss.

    Args:
        student: pictures `(B, 3, H, W)`, decoded and mapped to [0, 1], not clamped.
        teachers: `(K, B, 3, H, W)` likewise, of K draws; they are clamped here and get no gradient.
        teacher_timesteps: `(K, B)`, 0..999.
        weights: `(B,)` of each sample's student timestep (`student_weights`).

    Raises:
        InputError: the shapes do not fit together.
    """
    draws, n = teachers.shape[0], len(student)
    if teachers.shape[1:] != student.shape or teacher_timesteps.shape != (draws, n):
        raise InputError(
            f"teachers: {tuple(teachers.shape)} with timesteps {tuple(teacher_timesteps.shape)} do "
            f"not fit student {tuple(student.shape)}; give (K, *student) and (K, B)"
        )
    total = sum(
        draw_loss(student, teacher, timesteps)
        for teacher, timesteps in zip(teachers, teacher_timesteps, strict=True)
    )
    return weights * total / draws


def draw_loss(student: Tensor, teacher: Tensor, timesteps: Tensor) -> Tensor:
    """What one draw adds, `(B,)`, without the factor of the student's timestep.

    For training that keeps one teacher picture at a time.
    """
    gap = student.float() - teacher.detach().float().clamp(0, 1)
    return teacher_weights(timesteps) * gap.square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Hinge:
    """The discriminator's two losses, scalars."""

    real: Tensor
    fake: Tensor

    @property
    def total(self) -> Tensor:
        return self.real + self.fake


def hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Hinge:
    """What real logits lack to 1 and fake ones exceed -1, means over all logits of all heads."""
    return Hinge((1 - _joined(real)).relu().mean(), (1 + _joined(fake)).relu().mean())


def opposition(fake: Sequence[Tensor]) -> Tensor:
    """The student's adversarial loss: minus the mean of all logits of all heads."""
    return -_joined(fake).mean()


def r1_penalty(logits: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """The squared gradient of each head's logits towards its map `(heads,)`, with a graph.

    The loss is its mean times a weight (arXiv 1801.04406, equation 9, on features instead of
    pictures, as in ADD, arXiv 2311.17042); the released training has the weight 0.

    Args:
        logits: of real pictures, one tensor per head.
        maps: what the heads were given, with `requires_grad`.
    """
    gradients = [
        torch.autograd.grad(logit.sum(), m, create_graph=True)[0]
        for logit, m in zip(logits, maps, strict=True)
    ]
    return torch.stack([g.float().square().flatten(1).sum(1).mean() for g in gradients])


def _joined(logits: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.float().flatten(1) for part in logits], dim=1)
