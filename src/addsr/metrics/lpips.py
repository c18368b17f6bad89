"""LPIPS, learned perceptual image patch similarity: distance of a network's activations.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018),
version 0.1 with the linear heads. The weights are not part of this package: torchvision's AlexNet
or VGG16, and the authors' heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from addsr.errors import ModelError, OptionError

from .backbones import alexnet, check_pair, pick, read_joined, shapes, vgg16
from .pixel import precise

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# what the published files hold besides: the classifier, in torchvision's and in timm's words
_IGNORED = re.compile(r"(classifier|pre_logits|head)\..+")


class Lpips(nn.Module):
    """LPIPS v0.1 of picture pairs, from tensors with the published names.

    `weights` holds `features.N.weight` and `features.N.bias` of AlexNet or VGG16 and
    `linK.model.1.weight` `(1, C, 1, 1)` of the heads, or the names that a whole saved LPIPS module
    gives them (`net.sliceS.N.weight`, `lins.K.model.1.weight`).

    Raises:
        OptionError: another `net` than alex and vgg.
        ModelError: entries are missing, unknown or of the wrong shape.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        net: Literal["alex", "vgg"] = "alex",
        source: str = "weights",
    ) -> None:
        super().__init__()
        if net not in ("alex", "vgg"):
            raise OptionError(f"net: {net!r} is not possible; use 'alex' or 'vgg'")
        self.backbone = alexnet() if net == "alex" else vgg16()
        heads = {
            f"lin{k}.model.1.weight": (1, channels, 1, 1)
            for k, channels in enumerate(self.backbone.channels)
        }
        picked = pick(
            _published_names(weights, source), {**shapes(self.backbone), **heads}, _IGNORED, source
        )
        self.heads = nn.ParameterList([picked.pop(name).flatten() for name in heads])
        self.backbone.load_state_dict(picked)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS `(B,)` in float64 of pictures `(B, 3, H, W)` in [0, 1]; >= 0, lower is closer.

        Eq. 1 of the paper: squared difference of the activations, normalised to unit length over
        the channels, weighted per channel (after squaring, as published weights are meant),
        averaged over places and summed over five layers. 0 for equal pictures, 0.1 to 0.5 for
        results of super-resolution, seldom over 1. Pictures are compared at their size. Both are
        carried through the layers side by side, so only maps of one layer are held at a time:
        0.15 GB per megapixel with alex and 1.3 with vgg.

        Raises:
            InputError: sizes differ, or a side is under 31 (alex) or 16 (vgg).
        """
        check_pair(a, b, self.backbone.smallest_side)
        total = self.shift.new_zeros(len(a))
        maps_a, maps_b = (self.backbone.maps(self._normalised(x)) for x in (a, b))
        for map_a, map_b, head in zip(maps_a, maps_b, self.heads, strict=True):
            gap = (_unit(map_a) - _unit(map_b)).square_()
            total = total + torch.einsum("bchw,c->bhw", gap, head).mean((1, 2))
        return precise(total)

    def _normalised(self, image: Tensor) -> Tensor:
        return (image.to(self.shift) * 2 - 1 - self.shift) / self.scale


def load_lpips(
    backbone_path: str | Path,
    heads_path: str | Path | None = None,
    net: Literal["alex", "vgg"] = "alex",
) -> Lpips:
    """LPIPS from torchvision's weights of AlexNet or VGG16 and the authors' heads for that network.

    Without `heads_path` the first file must hold both, as a saved LPIPS module does.

    Raises:
        ModelError: a file is missing, damaged, or not one of these.
    """
    weights, source = read_joined(backbone_path, heads_path)
    return Lpips(weights, net, source)


def _unit(x: Tensor) -> Tensor:
    """`x` with vectors of length 1 over the channels; zeros stay zeros."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _published_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`weights` under the names of the separate files, whichever of the layouts they come in."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in ("scaling_layer.shift", "scaling_layer.scale"):
            published = _SHIFT if name.endswith("shift") else _SCALE
            if not torch.allclose(value.flatten().float(), torch.tensor(published)):
                raise ModelError(
                    f"{source}: {name} = {value.flatten().tolist()} is not that of LPIPS v0.1, "
                    f"{list(published)}; give a file of version 0.1"
                )
            continue
        name = re.sub(r"^net\.slice\d\.", "features.", name)
        name = re.sub(r"^lins\.(\d)\.", r"lin\1.", name)  # saved modules list each head twice
        named[name] = value
    return named
