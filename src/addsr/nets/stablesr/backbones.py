"""The frozen networks StableSR builds on, as diffusers has them: the one door to diffusers.

diffusers is imported when one is built and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from addsr.errors import DependencyError, ModelError
from addsr.nets.limits import check_limits


@dataclass(frozen=True)
class UnetConfig:
    """Shape of the diffusion U-Net; the defaults are Stable Diffusion 2.1's (865 910 724 numbers).

    Stable Diffusion 2.1 (768) differs in what it predicts and not in its shape.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    head_channels: int = 64
    context: int = 1024
    has_linear_projection: bool = True
    latent_channels: int = 4


@dataclass(frozen=True)
class VaeConfig:
    """Shape of the VAE; the defaults are Stable Diffusion's (83 653 863 numbers)."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    picture_channels: int = 3


def build_unet(config: UnetConfig | None = None) -> nn.Module:
    """A `UNet2DConditionModel` with fresh weights.

    Raises:
        DependencyError: diffusers is not installed.
    """
    config = config or UnetConfig()
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(config.attention)]
    net = backbone_class("UNet2DConditionModel")(
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=config.blocks,
        # by its history this argument is the number of heads
        attention_head_dim=tuple(max(w // config.head_channels, 1) for w in config.widths),
        cross_attention_dim=config.context,
        use_linear_projection=config.has_linear_projection,
        norm_eps=1e-5,
        sample_size=64,
    )
    return cast("nn.Module", net)


def build_vae(config: VaeConfig | None = None) -> nn.Module:
    """An `AutoencoderKL` with fresh weights.

    Raises:
        DependencyError: diffusers is not installed.
    """
    config = config or VaeConfig()
    count = len(config.widths)
    net = backbone_class("AutoencoderKL")(
        in_channels=config.picture_channels,
        out_channels=config.picture_channels,
        block_out_channels=config.widths,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        scaling_factor=0.18215,
        sample_size=512,
    )
    return cast("nn.Module", net)


def rebuild(name: str, config: Mapping[str, Any]) -> Any:
    """A network or scheduler of diffusers, of class `name`, from what is in its configuration file.

    Raises:
        ModelError: diffusers has no such class, another one made the configuration, or its sizes
            are absurd.
        DependencyError: diffusers is not installed.
    """
    kind = backbone_class(name)
    if config.get("_class_name", name) != name or not hasattr(kind, "from_config"):
        raise ModelError(f"{config.get('_class_name')!r} is not a configuration of {name}")
    check_limits(config)
    return kind.from_config(dict(config))


def backbone_class(name: str) -> Any:
    """The class `name` of diffusers.

    Raises:
        ModelError: it has none of that name.
        DependencyError: diffusers is not installed, or cannot be loaded.
    """
    try:
        import diffusers

        return getattr(diffusers, name)  # loaded here and not before
    except AttributeError as error:
        raise ModelError(f"diffusers has no {name}; update it, or check the model") from error
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"StableSR needs diffusers ({error}): pip install 'addsr[diffusion]'"
        ) from error
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DependencyError(
            f"diffusers is installed and cannot be loaded ({reason}): a transformers that is too "
            "old, or a torchvision that does not match torch, is the usual cause; "
            "pip uninstall torchvision, or install the one for your torch"
        ) from error
