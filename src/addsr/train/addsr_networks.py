"""The networks of AddSR's distillation: a frozen teacher, and a student that shares most with it.

Only the image attentions of both networks and the ControlNet's encoder of its picture are trained:
386.7 M of 1 615.8 M numbers at full size. All others are the same tensors in teacher and student,
so the student costs a quarter of the teacher's memory on top.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from addsr.errors import ConfigError, ModelError
from addsr.models.convert_seesr import load_seesr
from addsr.nets.ram import Ram, prepare
from addsr.nets.seesr import ControlledUnet, SeeSRConfig, build_controlnet, build_unet
from addsr.nets.seesr.image_attention import image_attentions_of

from .passes import Embed

_CONDITION = "controlnet_cond_embedding"


@dataclass(frozen=True)
class LayersConfig:
    """Which layers of which network these are."""

    network: str
    """unet or controlnet."""
    modules: tuple[str, ...]
    """Their published names."""


class TrainedLayers(nn.Module):
    """The layers of a network that AddSR trains, held together; they stay parts of that network.

    In state dicts the dots of a module's published name are slashes.
    """

    def __init__(self, network: str, net: nn.Module) -> None:
        super().__init__()
        found = self.chosen(network, net)
        self.config = LayersConfig(network, tuple(found))
        self.layers = nn.ModuleDict({k.replace(".", "/"): v for k, v in found.items()})

    def chosen(self, network: str, net: nn.Module) -> dict[str, nn.Module]:
        """The trained modules of `net` by their published names."""
        found = dict(image_attentions_of(net))
        if network == "controlnet":
            found[_CONDITION] = cast("nn.Module", getattr(net, _CONDITION))
        return found


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `TrainedLayers` under their names in the network."""
    return {k.removeprefix("layers.").replace("/", "."): v for k, v in state.items()}


def load_teacher(folder: str, dtype: torch.dtype, device: torch.device) -> ControlledUnet:
    """SeeSR's U-Net and ControlNet in `folder`, frozen.

    Raises:
        ConfigError: there is no such folder.
        ModelError: a part is missing or damaged.
    """
    if not folder or not Path(folder).is_dir():
        raise ConfigError(
            f"task.seesr = {folder!r} is no folder; give one with SeeSR's unet/ and controlnet/"
        )
    unet, controlnet = (
        load_seesr(Path(folder) / kind, kind, dtype=dtype) for kind in ("unet", "controlnet")
    )
    whole = ControlledUnet(unet, controlnet).to(device)
    whole = whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast("ControlledUnet", whole.eval().requires_grad_(False))


def student_of(teacher: ControlledUnet) -> tuple[ControlledUnet, dict[str, TrainedLayers]]:
    """A student that starts as the teacher, and its trained layers by network.

    All that is not trained is the teacher's own.
    """
    # what is to be shared is never copied, not even for a moment
    trained = {id(p) for part in layers_of(teacher).values() for p in part.parameters()}
    memo: dict[int, Any] = {
        id(x): x for x in (*teacher.parameters(), *teacher.buffers()) if id(x) not in trained
    }
    student = copy.deepcopy(teacher, memo)
    parts = layers_of(student)
    for part in parts.values():
        part.requires_grad_(True)
    return student, parts


def layers_of(whole: ControlledUnet) -> dict[str, TrainedLayers]:
    """The layers that AddSR trains, by network."""
    return {
        "unet": TrainedLayers("unet", whole.unet),
        "controlnet": TrainedLayers("controlnet", whole.controlnet),
    }


def make_embed(
    tagger: str, dape: str, width: int, dtype: torch.dtype, device: torch.device
) -> Embed:
    """What gives image tokens `(B, tokens, width)` of pictures; without a tagger one of zeros.

    Raises:
        ModelError: a file is missing, damaged, or of another width than the networks.
    """
    if not tagger:
        return lambda picture: picture.new_zeros(len(picture), 1, width, dtype=dtype)
    from .tagging import load_ram

    ram = load_ram(tagger, dape)
    if ram.config.head.tokens != width:
        raise ModelError(
            f"task.tagger = {tagger!r} makes tokens of width {ram.config.head.tokens}, and "
            f"task.seesr takes {width}; give those that belong together"
        )
    return embedder(ram, dtype, device)


def embedder(ram: Ram, dtype: torch.dtype, device: torch.device) -> Embed:
    """What gives the image tokens that `ram` makes of pictures; it is moved."""
    ram.to(device, dtype)
    side = ram.config.swin.side

    @torch.no_grad()
    def embed(picture: Tensor) -> Tensor:
        return ram.embed(prepare(picture, side, interpolation="bicubic").to(dtype))

    return embed


def token_width(unet: nn.Module) -> int:
    """The width of the image tokens that a network takes."""
    first = next(iter(image_attentions_of(unet).values()))
    weights = (v for k, v in first.named_parameters() if k.endswith("attn2.to_k.weight"))
    return int(next(weights).shape[-1])


def write_tiny_seesr(folder: Path, seed: int = 0) -> None:
    """Writes random networks of SeeSR that go with `base.write_tiny_base`, for smoke runs.

    Also `python -m addsr.train.addsr_networks FOLDER`.
    """
    config = SeeSRConfig(
        widths=(32, 64),
        blocks=1,
        attention=(True, False),
        heads=(2, 4),
        context=24,
        image_context=16,
        condition_widths=(8, 8, 16),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, build in (("unet", build_unet), ("controlnet", build_controlnet)):
            net: Any = build(config)
            for parameter in net.parameters():  # a fresh ControlNet says nothing
                if not bool(parameter.any()):
                    nn.init.normal_(parameter, std=0.05)
            net.save_pretrained(folder / name)


if __name__ == "__main__":
    import sys

    write_tiny_seesr(Path(sys.argv[1]))
