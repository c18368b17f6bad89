"""TAESD's decoder as published: on its own (taesd_decoder), or in diffusers' `AutoencoderTiny`.

On its own it is one sequence with a clamp in front, which has no numbers: its layers count from 1,
diffusers' from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from addsr.errors import AddsrError, ModelError
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig

from .convert_seesr import check_state
from .renaming import few

State = Mapping[str, Tensor]

OURS = "decoder.layers."
_LAYER = r"([1-9]?\d{1,3})\.((?:conv\.\d\.)?(?:weight|bias))"
_ALONE, _DIFFUSERS = re.compile(_LAYER), re.compile(rf"decoder\.layers\.{_LAYER}")
_FIRST = ("1.weight", f"{OURS}0.weight")
_LATENT_CHANNELS = 4


class ConvertedTiny(NamedTuple):
    """A decoder's shape, its tensors by our names, and those that are no part of it."""

    config: TinyDecoderConfig
    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def is_tiny(state: State) -> bool:
    """Whether these are the tensors of a tiny decoder, of whatever shape.

    A convolution of 3x3 pixels comes first, and a residual block of such behind it.
    """
    for first, block in zip(_FIRST, ("3.conv.0.weight", f"{OURS}2.conv.0.weight"), strict=True):
        if first in state and block in state:
            return tuple(state[first].shape[2:]) == (3, 3)
    return False


def convert_tiny(state: State) -> ConvertedTiny:
    """The decoder in `state`; every tensor is accounted for.

    Raises:
        ModelError: tensors are missing, unknown or of other shapes, or it is for the latents of
            another model.
        DependencyError: diffusers is not installed.
    """
    if not is_tiny(state):
        raise ModelError("no tiny decoder: its first convolution or its first block is missing")
    own, left_out = _renamed(state)
    config = _shape(own)
    with torch.device("meta"):
        net = TinyDecoder(config)
    check_state(net, own, "tiny decoder")
    return ConvertedTiny(config, own, left_out)


def check_name(path: Path) -> None:
    """Refuses by its name what its tensors do not tell apart.

    Raises:
        ModelError: a decoder of Stable Diffusion XL's latents, which have the same shape.
    """
    if "taesdxl" in path.name.lower():
        raise ModelError(
            f"{path}: is for the latents of Stable Diffusion XL; give taesd_decoder, which is for "
            "those of 1 and 2"
        )


def _renamed(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The decoder's tensors by our names, and the encoder's names."""
    own: dict[str, Tensor] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    is_alone = _FIRST[0] in state
    pattern, before = (_ALONE, 1) if is_alone else (_DIFFUSERS, 0)
    for name, tensor in state.items():
        found = pattern.fullmatch(name)
        if found and int(found[1]) >= before:
            own[f"{OURS}{int(found[1]) - before}.{found[2]}"] = tensor
        elif not is_alone and name.startswith("encoder."):
            left_out.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{len(unknown)} unknown tensors{few(sorted(unknown))}; give the published decoder"
        )
    return own, tuple(left_out)


def _shape(state: State) -> TinyDecoderConfig:
    """What the tensors tell: a run of blocks, a convolution, and again for the next level."""
    is_block = {int(k.split(".")[2]): ".conv." in k for k in state}
    blocks = [0]
    for place in sorted(is_block)[1:]:
        if is_block[place]:
            blocks[-1] += 1
        else:
            blocks.append(0)
    first = state[f"{OURS}0.weight"]
    channels = int(first.shape[1])
    if channels != _LATENT_CHANNELS:
        raise ModelError(
            f"a tiny decoder for latents of {channels} channels; Stable Diffusion 2's have "
            f"{_LATENT_CHANNELS}: give taesd_decoder"
        )
    try:
        # a convolution ends each level, so the last one opened none
        return TinyDecoderConfig(int(first.shape[0]), tuple(blocks[:-1]), channels)
    except AddsrError as error:
        raise ModelError(f"a tiny decoder of no known shape ({error})") from error
