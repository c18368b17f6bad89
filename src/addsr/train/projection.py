"""AddSR's opponent: projected heads on a frozen network's maps, of pictures or of latents.

With DINO's files the maps are DINO's, of two differently augmented views, and the condition is what
DINOv2 says of the input. Without them both are the frozen teacher's own, of noised latents (as in
arXiv 2403.12015): nothing has to be fetched, and nothing decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from addsr.errors import ModelError, OptionError
from addsr.nets.projected import ProjectedHeads
from addsr.nets.views import ViewSpec, draw_view, show

from .addsr_losses import Hinge, hinge, opposition, r1_penalty
from .passes import noised

Maps = Callable[[Tensor], list[Tensor]]
"""Maps `(B, C, N)` of pictures `(B, 3, H, W)` in [0, 1], or of clean latents."""


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The two sides of the hinge loss, and the penalty without its weight."""

    hinge: Hinge
    r1: Tensor

    def total(self, r1_weight: float) -> Tensor:
        return self.hinge.total + r1_weight * self.r1


class ProjectedDiscriminator:
    """Heads that learn on maps of a frozen network, and the loss with which they are opposed.

    Args:
        maps: gives the maps; gradients pass through it to the student.
        heads: what learns.
        views: how pictures are augmented, each call with draws of its own; None for latents.
        generator: all draws are its.
    """

    def __init__(
        self,
        maps: Maps,
        heads: ProjectedHeads,
        generator: torch.Generator,
        views: ViewSpec | None = None,
    ) -> None:
        self.maps, self.heads, self.generator, self.views = maps, heads, generator, views

    def learn(
        self, real: Tensor, fake: Tensor, condition: Tensor | None, *, with_r1: bool = False
    ) -> DiscriminatorLoss:
        """The heads' loss on real and made pictures (or latents); only heads get gradients."""
        with torch.no_grad():
            maps_real, maps_fake = self._seen(real), self._seen(fake.detach())
        if with_r1:
            maps_real = [m.requires_grad_(True) for m in maps_real]
        logits_real = self.heads(maps_real, condition)
        loss = hinge(logits_real, self.heads(maps_fake, condition))
        zero = loss.real.new_zeros(())
        return DiscriminatorLoss(
            loss, r1_penalty(logits_real, maps_real).mean() if with_r1 else zero
        )

    def oppose(self, fake: Tensor, condition: Tensor | None) -> Tensor:
        """The student's adversarial loss; the heads get no gradient, and iterate no norm."""
        maps = self._seen(fake)
        was_training = self.heads.training
        wanted = [p.requires_grad for p in self.heads.parameters()]
        try:
            self.heads.eval().requires_grad_(False)
            return opposition(self.heads(maps, condition))
        finally:
            self.heads.train(was_training)
            for parameter, wants in zip(self.heads.parameters(), wanted, strict=True):
                parameter.requires_grad_(wants)

    def _seen(self, x: Tensor) -> list[Tensor]:
        if self.views is not None:
            x = show(x, draw_view(x, self.views, self.generator))
        return [m.float() for m in self.maps(x)]


class BlockMaps:
    """Maps of the named blocks of a frozen diffusion U-Net, of a noised latent.

    Args:
        unet: the network whose modules are listened to.
        run: `run(z_t, t)` runs it under whatever condition holds; it is stopped after the last
            block that is listened to, so the rest costs nothing.
        blocks: module names, in the order in which they run; each has one tensor, or a tuple that
            begins with one, as output.
    """

    def __init__(
        self, unet: nn.Module, run: Callable[[Tensor, Tensor], Any], blocks: Sequence[str]
    ) -> None:
        if not blocks:
            raise OptionError("blocks: none to listen to; give names of modules")
        known = dict(unet.named_modules())
        unknown = [name for name in blocks if name not in known]
        if unknown:
            raise OptionError(f"blocks: {', '.join(unknown)} is no module of the teacher")
        self.unet, self.run, self.blocks = unet, run, tuple(blocks)
        self._modules = known

    def __call__(self, z: Tensor, noise: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Maps `(B, C, N)` of the clean latent `z` noised to `timesteps` `(B,)`."""
        found: dict[str, Tensor] = {}

        def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[name] = output if isinstance(output, Tensor) else output[0]
                if len(found) == len(self.blocks):
                    raise _Enough

            return hook

        hooks = [self._modules[n].register_forward_hook(listen(n)) for n in self.blocks]
        try:
            self.run(noised(z, noise, timesteps), timesteps)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in self.blocks if name not in found]
        if missing:
            raise ModelError(f"blocks: {', '.join(missing)} did not run; give blocks that do")
        return [found[name].flatten(2) for name in self.blocks]

    @torch.no_grad()
    def condition(self, z_lr: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The mean over all places of the last map of the input's latent, `(B, C)`."""
        return self(z_lr, noise, timesteps)[-1].float().mean(-1)


class _Enough(Exception):
    """All that was asked for has been seen."""
