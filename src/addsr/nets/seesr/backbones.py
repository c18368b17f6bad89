"""SeeSR's two networks built on diffusers' classes, from a shape or a published config.json."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from addsr.errors import AddsrError, ModelError
from addsr.nets.limits import check_limits
from addsr.nets.stablesr.backbones import backbone_class

from .condition import ConditionEncoder
from .image_attention import FLAG, IMAGE_WIDTH, WIDTH, add_image_attentions


@dataclass(frozen=True)
class SeeSRConfig:
    """Shape of both networks; the defaults are the published size.

    The U-Net has 1 126 760 324 numbers, the ControlNet 489 031 440.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    context: int = 1024
    """Width of the text embedding."""
    image_context: int = IMAGE_WIDTH
    """Width of the image tokens."""
    latent_channels: int = 4
    condition_widths: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.attention) == len(self.heads):
            raise ValueError(
                f"widths = {self.widths!r}, attention = {self.attention!r} and heads = "
                f"{self.heads!r} must have as many levels"
            )

    def unet(self) -> dict[str, Any]:
        """The U-Net's config.json."""
        up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(self.attention)]
        return {
            **self._shared(),
            "out_channels": self.latent_channels,
            "up_block_types": tuple(up),
            "sample_size": 64,
        }

    def controlnet(self) -> dict[str, Any]:
        """The ControlNet's config.json."""
        return {
            **self._shared(),
            "conditioning_embedding_out_channels": self.condition_widths,
        }

    def _shared(self) -> dict[str, Any]:
        down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in self.attention]
        return {
            "in_channels": self.latent_channels,
            "block_out_channels": self.widths,
            "down_block_types": tuple(down),
            "layers_per_block": self.blocks,
            # by its history this is the number of heads
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.context,
            "use_linear_projection": True,
            "norm_eps": 1e-5,
            FLAG: True,
            WIDTH: self.image_context,
        }


def build_unet(config: SeeSRConfig | Mapping[str, Any] | None = None) -> nn.Module:
    """A `UNet2DConditionModel` with image attentions and fresh weights.

    Args:
        config: a shape, or the contents of a config.json; with its flag false it is the plain one.

    Raises:
        ModelError: a configuration that is not understood.
        DependencyError: diffusers is not installed.
    """
    settings = config or SeeSRConfig()
    if isinstance(settings, SeeSRConfig):
        settings = settings.unet()
    return _build("UNet2DConditionModel", settings)


def build_controlnet(config: SeeSRConfig | Mapping[str, Any] | None = None) -> nn.Module:
    """A `ControlNetModel` with image attentions and fresh weights, its output layers at zero.

    Its picture may be given as `ConditionEncoder` made a map of it.

    Raises:
        ModelError: a configuration that is not understood.
        DependencyError: diffusers is not installed.
    """
    settings = config or SeeSRConfig()
    if isinstance(settings, SeeSRConfig):
        settings = settings.controlnet()
    if settings.get("controlnet_conditioning_channel_order", "rgb") != "rgb":
        raise ModelError("controlnet_conditioning_channel_order: only 'rgb' is supported")
    net: Any = _build("ControlNetModel", settings)
    net.controlnet_cond_embedding = ConditionEncoder(
        int(net.config["block_out_channels"][0]),
        net.config["conditioning_embedding_out_channels"],
        int(net.config["conditioning_channels"]),
    )
    return cast("nn.Module", net)


def _build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A network of diffusers with what SeeSR adds to it."""
    kind = backbone_class(name)
    if config.get("_class_name", name) != name:
        raise ModelError(f"_class_name: {config['_class_name']!r} is no {name}")
    check_limits(config)
    known = set(inspect.signature(kind).parameters)
    # what diffusers does not know it would leave out without a word
    strange = {k: v for k, v in config.items() if k not in {*known, FLAG, WIDTH} and v}
    strange = {k: v for k, v in strange.items() if not k.startswith("_")}
    if strange:
        raise ModelError(f"{name}: unknown settings {strange}; update addsr or diffusers")
    width = config.get(WIDTH) or IMAGE_WIDTH
    try:
        net = kind.from_config({k: v for k, v in config.items() if k in known})
        return add_image_attentions(net, width) if config.get(FLAG, True) else net
    except AddsrError:
        raise
    except Exception as error:  # a wrong number in it can fail anywhere in a network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name}: no network can be built from this config ({reason})") from error
