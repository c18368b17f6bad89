"""StableSR's feature modulation: one layer in each residual block of a frozen diffusion U-Net.

The paper's spatial feature transform (arXiv 2305.07015, equation 1) as it was trained, with an
affine group normalisation in front: `GN(h) * (1 + gamma(F)) + beta(F)`. It acts on the residual
branch after its last convolution, before the skip is added, so a hook on that convolution is all
the U-Net needs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from addsr.errors import InputError, ModelError

from .encoder import GROUPS

_MARK = "_addsr_guided"
"""Attribute of a U-Net that says whether layers are attached to it."""


class SftLayer(nn.Module):
    """Scale and shift of a map `(B, channels, H, W)` from features `(B, features, H, W)`."""

    def __init__(self, channels: int, features: int = 256, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.shared = nn.Conv2d(features, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """The modulated `x`; its batch may hold the features' batch several times over.

        That is the batch of classifier-free guidance, `cat([z, z])`: gamma and beta do not depend
        on the prompt and are computed once for all branches.

        Raises:
            InputError: grids or batches that do not fit.
        """
        branches, rest = divmod(len(x), len(features))
        if x.shape[-2:] != features.shape[-2:] or rest or not branches:
            raise InputError(
                f"features {tuple(features.shape)} do not fit a map {tuple(x.shape)}: "
                "encode the latent that the U-Net sees"
            )
        shared = F.relu(self.shared(features))
        gamma, beta = self.gamma(shared), self.beta(shared)
        h = self.norm(x).unflatten(0, (branches, -1))  # (branches, B, channels, H, W)
        return (h * (1 + gamma) + beta).flatten(0, 1)


@dataclass(frozen=True)
class SftConfig:
    """Shape of all layers of a U-Net; the defaults are the published size (53 020 160 numbers)."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the U-Net at h, h/2, h/4, ..."""
    blocks: int = 2
    """Residual blocks of the U-Net's contracting half at each grid."""
    features: int = 256
    hidden: int = 128
    """Channels between the features and gamma and beta."""

    def __post_init__(self) -> None:
        if not self.widths or any(type(n) is not int or n < 1 or n % GROUPS for n in self.widths):
            raise ValueError(f"widths = {self.widths!r}: give multiples of {GROUPS}")
        for name in ("blocks", "features", "hidden"):
            value: Any = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} = {value!r}: give a whole number from 1")

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """The residual blocks by diffusers' names: `(channels, level)`, level 0 the finest."""
        deepest = len(self.widths) - 1
        owners = [(f"down_blocks.{i}", i, self.blocks) for i in range(deepest + 1)]
        owners += [("mid_block", deepest, 2)]
        owners += [(f"up_blocks.{i}", deepest - i, self.blocks + 1) for i in range(deepest + 1)]
        return {
            f"{owner}.resnets.{k}": (self.widths[level], level)
            for owner, level, count in owners
            for k in range(count)
        }


class SftLayers(nn.ModuleDict):
    """All layers of a U-Net, under the name of their residual block with underscores for dots."""

    def __init__(self, config: SftConfig | None = None) -> None:
        config = config or SftConfig()
        super().__init__(
            {
                module_name(place): SftLayer(channels, config.features, config.hidden)
                for place, (channels, _) in config.places.items()
            }
        )
        self.config = config


def module_name(place: str) -> str:
    """The name in `SftLayers` of the layer of residual block `place`.

    >>> module_name("up_blocks.3.resnets.2")
    'up_blocks_3_resnets_2'
    """
    return place.replace(".", "_")


class Guide:
    """A U-Net with modulation layers attached to it, and the features of the current step.

    The U-Net runs modulated inside `with guide.using(features)`. Outside it refuses to run, for
    a forgotten condition would go unnoticed; `detach` gives the plain U-Net back. A guide is a
    context manager that detaches at its end.
    """

    def __init__(self, unet: nn.Module, layers: SftLayers) -> None:
        """Attaches `layers` to `unet`.

        Raises:
            ModelError: the layers were made for another U-Net, or others are attached already.
        """
        if getattr(unet, _MARK, False):
            raise ModelError("this U-Net has modulation layers already; detach them first")
        theirs = places_of(unet)
        if theirs != layers.config.places:
            odd = sorted(set(theirs.items()) ^ set(layers.config.places.items()))
            raise ModelError(f"the layers do not fit this U-Net; they differ in {odd[:4]}")
        self._features: Sequence[Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._unet = unet
        for place, (_, level) in theirs.items():
            conv = unet.get_submodule(f"{place}.conv2")
            layer = cast("SftLayer", layers[module_name(place)])
            self._handles.append(conv.register_forward_hook(self._hook(layer, level)))
        setattr(unet, _MARK, True)

    @contextmanager
    def using(self, features: Sequence[Tensor]) -> Generator[None]:
        """Modulates the U-Net's runs inside this context with `features`, finest first."""
        before, self._features = self._features, features
        try:
            yield
        finally:
            self._features = before

    def detach(self) -> None:
        """Leaves the U-Net as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        setattr(self._unet, _MARK, False)

    def __enter__(self) -> Guide:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _hook(self, layer: SftLayer, level: int) -> Any:
        def modulate(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if self._features is None:
                raise InputError("the U-Net has no features to follow: use `with guide.using(...)`")
            return layer(output, self._features[level])

        return modulate


def places_of(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """What `SftConfig.places` says, read off a diffusers U-Net."""
    down = cast("Any", unet).down_blocks
    deepest = len(down) - 1
    levels = {f"down_blocks.{i}": i for i in range(len(down))}
    levels |= {"mid_block": deepest}
    levels |= {f"up_blocks.{i}": deepest - i for i in range(len(down))}
    return {
        f"{block}.resnets.{k}": (int(resnet.conv2.out_channels), level)
        for block, level in levels.items()
        for k, resnet in enumerate(cast("Any", unet.get_submodule(block)).resnets)
    }
