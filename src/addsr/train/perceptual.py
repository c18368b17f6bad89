"""Perceptual losses: LPIPS where its weights are at hand, else a compact teacher's features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.resources import as_file
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.schedule import add_noise
from addsr.errors import ConfigError, ModelError
from addsr.metrics.lpips import Lpips, load_lpips
from addsr.models.files import load_weights
from addsr.models.hub import embedded
from addsr.nets import CompactNet
from addsr.nets.compact import enlarge

from .latent_config import CfwTaskConfig
from .teacher import net_config


class PerceptualLoss(ABC):
    """A distance of pictures in the features of a frozen network."""

    name: str

    @abstractmethod
    def __call__(self, x: Tensor, hr: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
        """Mean distance of `x` from `hr` `(B, 3, H, W)` in [0, 1], to be differentiated for `x`.

        `lr` is the input of both; `noise` is standard normal and of their shape.
        """


class LpipsLoss(PerceptualLoss):
    """LPIPS (2018), the number that `addsr.metrics.lpips` measures, with gradients."""

    name = "lpips"

    def __init__(self, net: Lpips) -> None:
        self.net = net

    def __call__(self, x: Tensor, hr: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            maps_hr = [unit(m) for m in self.net.backbone.maps(self._normalised(hr))]
        total = x.new_zeros(())
        maps_x = self.net.backbone.maps(self._normalised(x))
        for map_x, map_hr, head in zip(maps_x, maps_hr, self.net.heads, strict=True):
            gap = (unit(map_x) - map_hr).square()
            total = total + torch.einsum("bchw,c->bhw", gap, head).mean()
        return total

    def _normalised(self, picture: Tensor) -> Tensor:
        return (picture.float() * 2 - 1 - self.net.shift) / self.net.scale


class TeacherLoss(PerceptualLoss):
    """Relative difference of a compact teacher's feature maps of the slightly noised pictures."""

    name = "teacher features"

    def __init__(self, teacher: CompactNet, t: float) -> None:
        self.teacher, self.t = teacher, t

    def __call__(self, x: Tensor, hr: Tensor, lr: Tensor, noise: Tensor) -> Tensor:
        t = x.new_full((len(x),), self.t)
        enlarged = enlarge(lr)
        maps_x = self.teacher.encode(add_noise(x.float(), noise, t), t, lr, enlarged)[:3]
        with torch.no_grad():
            maps_hr = self.teacher.encode(add_noise(hr, noise, t), t, lr, enlarged)[:3]
        total = x.new_zeros(())
        for a, b in zip(maps_x, maps_hr, strict=True):
            scale = b.abs().mean(dim=(0, 2, 3), keepdim=True) + 1e-3
            total = total + ((a - b).abs() / scale).mean() / len(maps_x)
        return total


def make_perceptual(config: CfwTaskConfig, device: torch.device) -> PerceptualLoss:
    """The loss that `config` asks for, in float32.

    Raises:
        ConfigError: heads without a backbone.
        ModelError: a weights file is missing, damaged or of another kind.
    """
    if config.lpips:
        heads = config.lpips_heads or None
        return LpipsLoss(load_lpips(config.lpips, heads, "vgg").to(device))
    if config.lpips_heads:
        raise ConfigError(
            f"task.lpips_heads = {config.lpips_heads!r} is not allowed alone; give task.lpips, the "
            "weights of VGG16, too"
        )
    if config.teacher:
        state, metadata = load_weights(Path(config.teacher))
    else:
        with as_file(embedded("compact")) as found:
            state, metadata = load_weights(found)
    if metadata.get("kind") != "compact":
        raise ConfigError(
            f"task.teacher = {config.teacher!r} holds weights of kind {metadata.get('kind')!r}; "
            "give a file of kind 'compact'"
        )
    try:
        teacher = CompactNet(net_config(metadata["config"]))
        teacher.load_state_dict({k: v.float() for k, v in state.items()})
    except (KeyError, ConfigError, RuntimeError) as error:
        raise ModelError(
            f"task.teacher = {config.teacher!r}: the weights do not fit their config; give another"
        ) from error
    return TeacherLoss(teacher.to(device).eval().requires_grad_(False), config.teacher_t)


def unit(x: Tensor) -> Tensor:
    """`x` with vectors of length 1 over the channels; zeros stay zeros and have no gradient.

    The metric's own formula has an infinite slope there, and rectified features are often zero.
    """
    return F.normalize(x, dim=1, eps=1e-10)
