"""The networks of SeeSR's training: a U-Net whose image attentions are new, and a ControlNet.

The image attentions of the U-Net and all of the ControlNet are trained, 749 881 040 of
1 615 791 764 numbers at full size; the rest of the U-Net stays Stable Diffusion's.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from addsr.errors import ConfigError, ModelError
from addsr.nets.seesr import ControlledUnet, build_controlnet
from addsr.nets.seesr.image_attention import (
    FLAG,
    IMAGE_WIDTH,
    WIDTH,
    add_image_attentions,
    image_attentions_of,
)
from addsr.nets.stablesr.backbones import backbone_class

from .addsr_networks import TrainedLayers, load_teacher, token_width
from .base import load_part

_CONDITION_WIDTHS = (16, 32, 96, 256)


class SeeSRLayers(TrainedLayers):
    """The layers of a network that SeeSR trains: image attentions, or all of the ControlNet."""

    def chosen(self, network: str, net: nn.Module) -> dict[str, nn.Module]:
        if network == "unet":
            return dict(image_attentions_of(net))
        return {k: v for k, v in net.named_children() if next(v.parameters(), None) is not None}


def seesr_layers(whole: ControlledUnet) -> dict[str, SeeSRLayers]:
    """The layers that SeeSR trains, by network."""
    return {
        "unet": SeeSRLayers("unet", whole.unet),
        "controlnet": SeeSRLayers("controlnet", whole.controlnet),
    }


def start_networks(
    base: str, seesr: str, *, width: int | None, factor: int, device: torch.device
) -> ControlledUnet:
    """Both networks in float32 and evaluation mode, frozen.

    Made of `base` alone, the ControlNet is a copy of the U-Net's half that adds nothing yet
    (arXiv 2302.05543, section 3.1), and image attentions have random numbers, as published.

    Args:
        base: folder of a Stable Diffusion.
        seesr: folder with unet/ and controlnet/ to start from, or "".
        width: of the image tokens; None: that of `seesr`, or the published 512.
        factor: pixels of a picture per latent pixel.

    Raises:
        ConfigError: `seesr` is no folder, or takes image tokens of another width.
        ModelError: a part is missing or damaged.
    """
    if seesr:
        whole = load_teacher(seesr, torch.float32, device)
        told = token_width(whole.unet)
        if width not in (None, told):
            raise ConfigError(
                f"task.seesr = {seesr!r} takes image tokens of width {told}, and those given have "
                f"{width}; give the task.tagger that belongs to it"
            )
        return whole
    width = IMAGE_WIDTH if width is None else width
    unet: Any = load_part(Path(base), "unet", torch.float32, device)
    add_image_attentions(unet, width)
    controlnet = controlnet_of(unet, width, factor).to(device)
    whole = ControlledUnet(unet, controlnet)
    whole = whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast("ControlledUnet", whole.eval().requires_grad_(False))


def controlnet_of(unet: Any, width: int, factor: int) -> nn.Module:
    """A ControlNet that starts as the first half of `unet`, image attentions included.

    Raises:
        ModelError: the U-Net is of a kind that has no ControlNet.
    """
    known = set(inspect.signature(backbone_class("ControlNetModel")).parameters)
    shape = {k: v for k, v in unet.config.items() if k in known}
    widths = _CONDITION_WIDTHS[: factor.bit_length()]  # one halving after each
    settings = {**shape, "conditioning_embedding_out_channels": widths, FLAG: True, WIDTH: width}
    net = build_controlnet(settings)
    theirs = unet.state_dict()
    same = {k: theirs[k] for k in net.state_dict() if k in theirs}
    left = net.load_state_dict(same, strict=False).missing_keys
    own = ("controlnet_down_blocks.", "controlnet_mid_block.", "controlnet_cond_embedding.")
    strange = [k for k in left if not k.startswith(own)]
    if strange:
        raise ModelError(f"unet: has no {strange[0]} for a ControlNet; give Stable Diffusion 2")
    return net
