"""The student: adversarial diffusion distillation to 1, 2 and 4 steps (AddSR, arXiv 2404.01717).

Differences from the released AddSR code follow the paper's intent: the refinement input in
training is the one of inference, and the timestep-adaptive weight is that of the step trained.
Beyond the paper: every step is trained on the student's own earlier predictions. Instead of
unrolling the sampler in each iteration, part of the last iteration's outputs return as inputs of
the next step (`_Chain`); the weights differ by one update, the cost is nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS, add_noise
from addsr.errors import ConfigError
from addsr.models.files import load_weights
from addsr.nets import CompactNet
from addsr.nets.compact import enlarge

from .adversary import R1_INTERVAL, Adversary
from .config import OptimConfig, Recipe, StudentConfig
from .flops import discriminator_flops, forward_flops
from .losses import haar, l1, low_frequency, sharpen, timestep_adaptive
from .task import Batch, Task
from .teacher import net_config
from .validate import evaluate_sampler


@dataclass
class _Chain:
    """Samples on their way through the sampler: what step k + 1 of each needs from step k."""

    hr: Tensor
    lr: Tensor
    noise: Tensor
    prediction: Tensor


class StudentTask(Task):
    """Relativistic GAN, distillation from the teacher, perceptual and pixel losses."""

    name = "student"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.config: StudentConfig = recipe.task
        c = self.config
        side, scales = recipe.data.crop_px, c.discriminator_scales
        window = c.discriminator_crop or side
        if window > side or window % (16 * 2 ** (scales - 1)):
            raise ConfigError(
                f"task.discriminator_crop = {c.discriminator_crop} is not allowed with data.crop_px"
                f" = {side}; give a multiple of {16 * 2 ** (scales - 1)} up to it, or 0 for all"
            )
        self.net = CompactNet(net_config(recipe.net))
        self.trained_net = self.track("net", self.net, recipe.optim)
        self.teacher = self._load_teacher()
        discriminator_optim = OptimConfig(
            learning_rate=c.discriminator_rate,
            betas=recipe.optim.betas,
            clip=10.0,
            warmup_steps=recipe.optim.warmup_steps,
        )
        self.adversary = Adversary(self, c, discriminator_optim, self.teacher.config.widths)
        # tables and not numbers: the compiled code is then the same whatever the recipe's weights
        self.levels = torch.tensor(LEVELS[4], device=device)
        self.refinement = torch.tensor([0.0, *[c.psr_weight] * 3], device=device)
        self.adaptive = self._adaptive_weights().to(device)
        self.chain: list[_Chain] = []
        self.uses_features = c.perceptual_weight > 0 or c.head_share > 0
        if recipe.run.compile:
            # two gradients are taken through the same feature maps, one after the other
            functorch.donated_buffer = False
        self.forward = self.compiled(self._forward)
        self.perceive = self.compiled(self._perceive)
        self.reconstruct = self.compiled(self._reconstruct)
        self.target = self.compiled(self._target)

    def _load_teacher(self) -> CompactNet:
        path = self.config.teacher
        if not path:
            raise ConfigError("task.teacher = '' is not allowed; give the teacher's weights file")
        state, metadata = load_weights(Path(path))
        teacher = CompactNet(net_config(metadata["config"]))
        teacher.load_state_dict({k: v.float() for k, v in state.items()})
        dtype = torch.bfloat16 if self.recipe.run.precision == "bf16" else torch.float32
        teacher = teacher.to(self.device, dtype)
        teacher = teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return teacher.eval().requires_grad_(False)

    def _adaptive_weights(self) -> Tensor:
        """The distillation loss's weight `(4,)` at each of the four levels."""
        c = self.config
        weights = timestep_adaptive(torch.arange(4), c.ta_base, c.ta_growth)
        if not c.ta_adaptive:
            weights = (weights * torch.tensor(c.shares)).sum().expand(4).clone()
        return weights

    def counts(self, batch: int) -> list[int]:
        """How many samples of a batch stand at each of the four levels; they fall and add up."""
        counts = [int(batch * s) for s in self.config.shares]
        counts[0] += batch - sum(counts)
        return counts

    def fresh_samples(self, batch: int) -> int:
        return self.counts(batch)[0]

    # --- one training step -------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        hr, lr, noise, previous, index = self._assemble(batch)
        gate = self.rand(2, len(hr))
        fidelity = torch.where(gate[0] < c.gate_share, gate[1], c.fidelity)
        x = self.forward(lr, noise, previous, index, fidelity)
        leaf = x.detach().requires_grad_(True)
        enlarged = enlarge(lr)

        aim = sharpen(hr, c.sharpen) if c.sharpen else hr
        maps_x, maps_hr = [], []
        if self.uses_features:
            low, high = c.perceptual_t
            t = low + (high - low) * self.rand(len(hr))
            maps_x, maps_hr = self.perceive(leaf, hr, lr, self.randn_like(hr), t)
        figures_d = self.adversary.learn(hr, leaf.detach(), enlarged, maps_hr, maps_x)

        t, target = self.rand(len(hr)).clamp(0.02, 0.98), hr
        if c.distill_weight:
            noise_t = self.randn_like(hr)
            seen = F.avg_pool2d(hr, 4) if c.regulation == "hr" else lr
            with torch.no_grad():
                target = self.target(leaf.detach(), seen, t, noise_t)
        rec, figures = self.reconstruct(leaf, hr, aim, index, target, t, maps_x, maps_hr)
        (gradient,) = torch.autograd.grad(rec, leaf, retain_graph=self.uses_features)
        gradient_adv, figures_g = self.adversary.oppose(leaf, enlarged, maps_x)

        warm = min(1.0, self.trained_net.updates / max(1, c.adversarial_warmup))
        ratio = gradient.norm() / (gradient_adv.norm() + 1e-12)
        weight = warm * (c.adversarial_share * ratio).clamp(max=c.adversarial_cap)
        # what the knob means: at fidelity 1 only reconstruction counts, at 0 realism counts double
        realism = (2 * (1 - fidelity)).view(-1, 1, 1, 1)
        x.backward(gradient + weight * realism * gradient_adv)
        norm = self.trained_net.step()

        self._advance(hr, lr, noise, leaf.detach())
        return {
            "loss": rec.detach(),
            **figures,
            **figures_g,
            **figures_d,
            "adv_weight": weight,
            "adv_share": weight / ratio,
            "grad_norm": norm,
        }

    def _assemble(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Fresh samples at level 0 and the chain's at 1..3, as one batch."""
        noise = self.randn_like(batch.hr)
        base = enlarge(batch.lr)
        counts = self.counts(self.recipe.run.batch)
        if not self.chain:  # the first iteration has no predictions yet: the enlarged LR stands in
            self.chain = [
                _Chain(batch.hr[:n], batch.lr[:n], noise[:n], base[:n]) for n in counts[1:]
            ]
        parts = [_Chain(batch.hr, batch.lr, noise, base), *self.chain]
        index = torch.cat(
            [
                torch.full((len(p.hr),), k, device=self.device, dtype=torch.long)
                for k, p in enumerate(parts)
            ]
        )
        memory = torch.channels_last

        def join(name: str) -> Tensor:
            return torch.cat([getattr(p, name) for p in parts]).contiguous(memory_format=memory)

        return join("hr"), join("lr"), join("noise"), join("prediction"), index

    def _advance(self, hr: Tensor, lr: Tensor, noise: Tensor, prediction: Tensor) -> None:
        """Keeps the heads of levels 0..2 as the next iteration's samples of levels 1..3."""
        counts = self.counts(self.recipe.run.batch)
        starts = [sum(counts[:k]) for k in range(4)]
        prediction = prediction.clamp(0, 1)
        self.chain = [
            _Chain(*(v[s : s + n].clone() for v in (hr, lr, noise, prediction)))
            for s, n in zip(starts[:3], counts[1:], strict=True)
        ]

    def _forward(
        self, lr: Tensor, noise: Tensor, previous: Tensor, index: Tensor, fidelity: Tensor
    ) -> Tensor:
        """One sampler step of each sample, at its own level, as `sample_addsr` does it."""
        t = self.levels[index]
        x_t = add_noise(previous, noise, t)
        w = self.refinement[index].view(-1, 1, 1, 1)
        condition = w * previous + (1 - w) * enlarge(lr)
        return self.net(x_t, t, lr, condition, fidelity)

    def _target(self, x: Tensor, seen: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The teacher's x0 from the student's noised prediction, conditioned on `seen`."""
        return self.teacher(add_noise(x.clamp(0, 1), noise, t), t, seen).clamp(0, 1)

    def _perceive(self, x: Tensor, hr: Tensor, lr: Tensor, noise: Tensor, t: Tensor) -> Any:
        """The frozen teacher's feature maps of both pictures, noised alike."""
        enlarged = enlarge(lr)
        maps_x = self.teacher.encode(add_noise(x, noise, t), t, lr, enlarged)[:3]
        with torch.no_grad():
            maps_hr = self.teacher.encode(add_noise(hr, noise, t), t, lr, enlarged)[:3]
        return list(maps_x), list(maps_hr)

    def _reconstruct(
        self,
        x: Tensor,
        hr: Tensor,
        aim: Tensor,
        index: Tensor,
        target: Tensor,
        t: Tensor,
        maps_x: list[Tensor],
        maps_hr: list[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        pixel, low, high = l1(x, aim).mean(), low_frequency(x, hr).mean(), haar(x, aim).mean()
        # (1 - t) is this schedule's sqrt(alpha_bar): noisier teachers count less
        distill = (
            self.adaptive[index] * (1 - t) * 4 * ((x - target) ** 2).mean(dim=(1, 2, 3))
        ).mean()
        perceptual = x.new_zeros(())
        for a, b in zip(maps_x, maps_hr, strict=True):
            scale = b.float().abs().mean(dim=(0, 2, 3), keepdim=True) + 1e-3
            perceptual = perceptual + ((a.float() - b.float()).abs() / scale).mean() / len(maps_x)
        loss = (
            c.l1_weight * pixel
            + c.low_weight * low
            + c.haar_weight * high
            + c.distill_weight * distill
            + c.perceptual_weight * perceptual
        )
        return loss, {
            "l1": pixel.detach(),
            "haar": high.detach(),
            "distill": distill.detach(),
            "perceptual": perceptual.detach(),
        }

    # --- the rest ----------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        net = copy.deepcopy(self.net).float().eval().requires_grad_(False)
        net.load_state_dict(self.trained_net.state())
        w, f = self.config.psr_weight, self.config.fidelity
        samplers = {
            str(n): (
                lambda lr, z, n=n: sample_addsr(net, lr, z, LEVELS[n], psr_weight=w, fidelity=f)
            )
            for n in (1, 2, 4)
        }
        return evaluate_sampler(
            samplers, pairs, device=self.device, precision=self.recipe.run.precision
        )

    def flops_per_sample(self) -> float:
        c, px = self.config, self.recipe.data.crop_px
        g = forward_flops(self.net, px)
        d = discriminator_flops(self.adversary.net, c.discriminator_crop or px)
        # the student forward and back, the teacher's target; two passes of the teacher's encoder
        # (about 0.3 of the network) and two gradients through it
        work = 3 * g + (g if c.distill_weight else 0) + (4 * 0.3 * g if self.uses_features else 0)
        # D: real and fake forward and back, the penalty on half a batch twice, fake and gradient
        return work + (2 * 3 + 3 / R1_INTERVAL + 2) * d

    def extra_state(self) -> dict[str, Any]:
        chain = [vars(c) for c in self.chain]
        return {
            **super().extra_state(),
            "chain": chain,
            "adversary_updates": self.adversary.updates,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.chain = [_Chain(**c) for c in state["chain"]]
        self.adversary.updates = state["adversary_updates"]
