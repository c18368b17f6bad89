"""The teacher: LR-conditioned diffusion in pixel space, trained at all noise levels.

It learns three roles at once: the ordinary one, a weakly conditioned one (LR blurred; for
guidance), and the HR-regulated one of AddSR (arXiv 2404.01717), where the LR picture is replaced
by the clean area-downscaled HR, so that as a frozen teacher it can be told what the truth looks
like.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.samplers import sample_ode
from addsr.diffusion.schedule import add_noise, even_levels
from addsr.errors import ConfigError
from addsr.models.files import load_weights
from addsr.nets import CompactConfig, CompactNet, tuples

from .config import Recipe, TeacherConfig
from .flops import forward_flops
from .losses import haar, l1
from .task import Batch, Task
from .validate import evaluate_sampler


class TeacherTask(Task):
    """x-prediction at logit-normal t with weight 1/t^2, and L1 + Haar for a share at t = 1."""

    name = "teacher"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.config: TeacherConfig = recipe.task
        self.net = CompactNet(net_config(recipe.net))
        self._split_prior()
        self.trained_net = self.track("net", self.net, recipe.optim)
        self.loss = self.compiled(self._loss)
        self.prepare = self.compiled(self._prepare)

    def _split_prior(self) -> None:
        """Freezes what sees the low-resolution picture, or with `task.prior` all the rest.

        Raises:
            ConfigError: a network that cannot do without the low-resolution picture, or a prior of
                another shape.
        """
        config, path = self.net.config, self.config.prior
        if not (path or self.config.lr_free):
            return
        if (config.conditioning, config.base) != ("time-aware", "grey"):
            raise ConfigError(
                f"net.conditioning = {config.conditioning!r}, net.base = {config.base!r}: a prior "
                "that sees no low-resolution picture needs 'time-aware' and 'grey'"
            )
        if path:
            state, _ = load_weights(Path(path))
            try:
                self.net.load_state_dict({k: v.float() for k, v in state.items()})
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ConfigError(
                    f"task.prior = {path!r}: does not fit the recipe's [net] ({reason})"
                ) from error
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self.net.sees_lr(name) == bool(path))

    def _prepare(self, hr: Tensor, lr: Tensor, choice: Tensor, z: Tensor, gate: Tensor) -> Any:
        """Per-sample roles: `(lr, t, fidelity)` from uniform and normal random numbers."""
        c = self.config
        weak = F.interpolate(
            F.avg_pool2d(lr, 4), scale_factor=4.0, mode="bilinear", align_corners=False
        )
        clean = F.avg_pool2d(hr, 4)
        pick = choice.view(-1, 1, 1, 1)
        lr = torch.where(pick < c.weak_share, weak, lr)
        lr = torch.where(pick > 1 - c.clean_share, clean, lr)
        t = torch.sigmoid(z * c.t_std + c.t_mean)
        count = round(len(hr) * c.one_step_share)
        t = torch.where(torch.arange(len(hr), device=hr.device) < count, 1.0, t)
        # gate holds two uniforms: whether the gate is random at all, and its value
        fidelity = torch.where(gate[0] < c.gate_share, gate[1], 1.0)
        if c.lr_free:
            lr, fidelity = _grey(lr), torch.zeros_like(fidelity)
        return lr, t, fidelity

    def _loss(self, hr: Tensor, lr: Tensor, noise: Tensor, t: Tensor, fidelity: Tensor) -> Any:
        c = self.config
        x = self.net(add_noise(hr, noise, t), t, lr, None, fidelity)
        count = round(len(hr) * c.one_step_share)
        one, many = x[:count], x[count:]
        # a share may be 0 or all (plain regression), and the mean over no samples is NaN
        error1 = error_haar = diffusion = haar_many = torch.zeros((), device=x.device)
        if len(one):
            error1, error_haar = l1(one, hr[:count]).mean(), haar(one, hr[:count]).mean()
        if len(many):
            # 1/t^2 turns the x-prediction error into the noise-prediction one; bounded near t = 0
            weight = 4 / t[count:].clamp(min=0.2) ** 2
            diffusion = (weight * ((many - hr[count:]) ** 2).mean(dim=(1, 2, 3))).mean()
            haar_many = haar(many, hr[count:]).mean()
        loss = (
            error1
            + c.haar_weight * error_haar
            + c.diffusion_weight * diffusion
            + c.haar_weight_diffusion * haar_many
        )
        return loss, error1.detach(), error_haar.detach(), diffusion.detach()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        n = len(batch.hr)
        z = torch.empty(n, device=self.device).normal_(generator=self.generator)
        lr, t, fidelity = self.prepare(batch.hr, batch.lr, self.rand(n), z, self.rand(2, n))
        noise = self.randn_like(batch.hr)
        loss, error1, error_haar, diffusion = self.loss(batch.hr, lr, noise, t, fidelity)
        loss.backward()
        norm = self.trained_net.step()
        return {
            "loss": loss.detach(),
            "l1": error1,
            "haar": error_haar,
            "diffusion": diffusion,
            "grad_norm": norm,
        }

    def averaged_net(self) -> CompactNet:
        """A copy of the network with the averaged weights, float32, in evaluation mode."""
        net = copy.deepcopy(self.net).float().eval().requires_grad_(False)
        net.load_state_dict(self.trained_net.state())
        return net

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        net = self.averaged_net()
        given = _grey if self.config.lr_free else lambda lr: lr
        samplers = {
            str(n): (lambda lr, z, n=n: sample_ode(net, given(lr), z, even_levels(n)))
            for n in (1, 4, 16)
        }
        return evaluate_sampler(
            samplers, pairs, device=self.device, precision=self.recipe.run.precision
        )

    def flops_per_sample(self) -> float:
        return 3 * forward_flops(self.net, self.recipe.data.crop_px)


def _grey(lr: Tensor) -> Tensor:
    return torch.full_like(lr, 0.5)


def net_config(values: dict[str, Any]) -> CompactConfig:
    """The [net] table of a recipe as a `CompactConfig`.

    Raises:
        ConfigError: an unknown field.
    """
    try:
        return CompactConfig(**tuples(values))
    except TypeError as error:
        fields = ", ".join(f.name for f in dataclasses.fields(CompactConfig))
        raise ConfigError(f"net: {error}; [net] has {fields}") from error
    except ValueError as error:
        raise ConfigError(f"net.{error}") from error
