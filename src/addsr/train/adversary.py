"""The student's opponent: discriminator losses, its updates, and the gradient it gives.

The discriminator learns first, on the student's output as it stands; the student then opposes the
updated one, with the verdict on the real pictures kept from the update (a pass saved, one update
stale). On pixels it sees a random window of each crop: a window moves the grid of its strides
against that of the generator, so no fixed grid can hide, and costs less than the whole crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.nets import Discriminator, DiscriminatorConfig

from .config import OptimConfig, StudentConfig
from .task import Task

R1_INTERVAL = 2
"""Every how many updates the penalty is taken, with as many times its weight."""

_HEAD_JITTER = 0.1
"""Standard deviation of the penalty's noise on features, which have unit variance there."""


class Adversary:
    """Relativistic pairing GAN (arXiv 2501.05441) with feature matching and approximate R1 and R2.

    Args:
        task: gives device, generator, compilation and the place where trained networks are kept.
        config: the student's.
        optim: optimiser of the discriminator.
        feature_widths: channels of the feature maps that get heads; may be empty.
    """

    def __init__(
        self,
        task: Task,
        config: StudentConfig,
        optim: OptimConfig,
        feature_widths: Sequence[int],
    ) -> None:
        self.task, self.config = task, config
        self.net = Discriminator(
            DiscriminatorConfig(
                width=config.discriminator_width,
                scales=config.discriminator_scales,
                feature_widths=tuple(feature_widths) if config.head_share else (),
            )
        )
        self.trained = task.track("discriminator", self.net, optim)
        self.penalty = torch.zeros((), device=task.device)
        self.updates = 0
        self.window = (0, 0)
        self.real: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        self._judge = task.compiled(self._judge_patches)
        self._penalise = task.compiled(self._penalise_patches)
        self._judge_features = task.compiled(self._judge_heads)
        self._oppose = task.compiled(self._oppose_patches)
        self._oppose_features = task.compiled(self._oppose_heads)

    # --- the discriminator's side --------------------------------------------------------------

    def learn(
        self,
        hr: Tensor,
        x: Tensor,
        enlarged: Tensor,
        maps_hr: Sequence[Tensor] = (),
        maps_x: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """One update on real `hr` and detached `x`, both `(B, 3, H, W)`; gives figures to log."""
        c, share = self.config, self.config.head_share
        self.net.requires_grad_(True)
        self._move_window(hr.shape[-1])
        hr, x, enlarged = self._cut(hr), self._cut(x), self._cut(enlarged)
        loss, logits, maps = self._judge(hr, x, enlarged)
        total = (1 - share) * loss
        figures = {"loss_d": loss.detach()}
        if self.updates % R1_INTERVAL == 0:
            quarter = len(hr) // 4
            both = torch.cat([hr[:quarter], x[-quarter:]])
            condition = torch.cat([enlarged[:quarter], enlarged[-quarter:]])
            penalty = self._penalise(both, condition, self.task.randn_like(both))
            total = total + R1_INTERVAL * c.r1_weight * penalty
            # cloned: it is logged after later steps have reused a graph's memory
            self.penalty = penalty.detach().clone()
        head_logits: list[Tensor] = []
        if share:
            jitter = [self.task.randn_like(m) * _HEAD_JITTER for m in (*maps_hr, *maps_x)]
            loss, penalty, head_logits = self._judge_features(
                list(maps_hr), [m.detach() for m in maps_x], jitter
            )
            total = total + share * (loss + c.r1_weight * penalty)
            figures["loss_heads"] = loss.detach()
        total.backward()
        self.trained.step()
        self.net.requires_grad_(False)
        self.real = (logits, maps, head_logits)
        self.updates += 1
        return {**figures, "r1": self.penalty}

    def _judge_patches(self, hr: Tensor, x: Tensor, enlarged: Tensor) -> Any:
        n = len(hr)
        logits, maps = self.net.patches(torch.cat([hr, x]), torch.cat([enlarged, enlarged]))
        real, fake = [q[:n] for q in logits], [q[n:] for q in logits]
        return (
            relativistic(real, fake),
            [q.detach().clone() for q in real],
            [m[:n].detach().clone() for m in maps],
        )

    def _penalise_patches(self, picture: Tensor, enlarged: Tensor, jitter: Tensor) -> Tensor:
        """|D(x + sigma n) - D(x)|^2 for the gradient penalty: no second derivatives
        (arXiv 2501.08316)."""
        n = len(picture)
        moved = picture + self.config.r1_sigma * jitter
        logits, _ = self.net.patches(torch.cat([picture, moved]), torch.cat([enlarged, enlarged]))
        return _unsteadiness([(q[:n], q[n:]) for q in logits])

    def _judge_heads(
        self, maps_hr: list[Tensor], maps_x: list[Tensor], jitter: list[Tensor]
    ) -> Any:
        count = len(maps_hr)
        real, fake = self.net.heads(maps_hr), self.net.heads(maps_x)
        real_moved = self.net.heads(maps_hr, jitter[:count])
        fake_moved = self.net.heads(maps_x, jitter[count:])
        pairs = list(zip((*real, *fake), (*real_moved, *fake_moved), strict=True))
        loss = relativistic(real, fake)
        return loss, _unsteadiness(pairs), [q.detach().clone() for q in real]

    # --- the student's side --------------------------------------------------------------------

    def oppose(
        self, leaf: Tensor, enlarged: Tensor, maps_x: Sequence[Tensor] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient of the adversarial loss with respect to `leaf`, and figures to log.

        To be called after `learn` on the same batch. `leaf` is the student's output, cut off from
        its graph; `maps_x` are features computed from it.
        """
        share = self.config.head_share
        logits, maps, head_logits = self.real
        part = self._cut(leaf.detach()).requires_grad_(True)
        loss, gan, matching = self._oppose(part, self._cut(enlarged), logits, maps)
        (inner,) = torch.autograd.grad(loss, part)
        gradient = torch.zeros_like(leaf)
        top, left = self.window
        side = part.shape[-1]
        gradient[..., top : top + side, left : left + side] = (1 - share) * inner
        figures = {"gan": gan, "matching": matching}
        if share:
            loss = self._oppose_features(list(maps_x), head_logits)
            (through_maps,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            gradient = gradient + share * through_maps
            figures["gan_heads"] = loss.detach()
        return gradient, figures

    def _oppose_patches(
        self, x: Tensor, enlarged: Tensor, real: list[Tensor], maps_real: list[Tensor]
    ) -> Any:
        fake, maps_fake = self.net.patches(x, enlarged)
        gan = relativistic(fake, real)
        matching = x.new_zeros(())
        for a, b in zip(maps_fake, maps_real, strict=True):
            b = b.float()
            matching = matching + (a.float() - b).abs().mean() / (b.abs().mean() + 1e-3)
        matching = matching / len(maps_fake)
        return gan + self.config.feature_matching * matching, gan.detach(), matching.detach()

    def _oppose_heads(self, maps_x: list[Tensor], real: list[Tensor]) -> Tensor:
        return relativistic(self.net.heads(maps_x), real)

    # --- windows -------------------------------------------------------------------------------

    def _move_window(self, size: int) -> None:
        side = self.config.discriminator_crop or size
        # on the host and from the count of updates: a slice may not wait for the device
        dice = torch.Generator().manual_seed(self.task.recipe.run.seed * 1_000_003 + self.updates)
        top, left = torch.randint(size - side + 1, (2,), generator=dice).tolist()
        self.window = (top, left)

    def _cut(self, x: Tensor) -> Tensor:
        side = self.config.discriminator_crop or x.shape[-1]
        top, left = self.window
        part = x[..., top : top + side, left : left + side]
        return part.contiguous(memory_format=torch.channels_last)


def relativistic(winner: Sequence[Tensor], loser: Sequence[Tensor]) -> Tensor:
    """Relativistic pairing loss (arXiv 2501.05441): softplus of how far `winner` lags behind."""
    losses = [F.softplus(b.float() - a.float()).mean() for a, b in zip(winner, loser, strict=True)]
    return torch.stack(losses).mean()


def _unsteadiness(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([((a.float() - b.float()) ** 2).mean() for a, b in pairs]).mean()
