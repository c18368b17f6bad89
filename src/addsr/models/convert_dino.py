"""Published files of DINO and DINOv2 into a `Vit`: shapes deduced, every tensor accounted for.

Three layouts are read: the authors' own, which timm shares, and those of transformers' ViTModel and
Dinov2Model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from addsr.errors import ModelError
from addsr.nets.dino import Vit, VitConfig

from .pickles import read_state
from .renaming import Renaming

State = Mapping[str, Tensor]

_HEAD_CHANNELS = 64
_UNUSED = ("mask_token", "embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
"""Needed for masked training and for classification alone."""
_TRANSFORMERS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
)
_TRANSFORMERS_BLOCK = (
    (r"layernorm_before|norm1", "norm1"),
    (r"layernorm_after|norm2", "norm2"),
    (r"attention\.attention\.(query|key|value)", r"attn.\1"),
    (r"attention\.([qkv])_proj", r"attn.\1"),
    (r"attention\.(?:output\.dense|o_proj)", "attn.proj"),
    (r"intermediate\.dense|mlp\.fc1", "mlp.fc1"),
    (r"output\.dense|mlp\.fc2", "mlp.fc2"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
)
"""Names of ViTModel and Dinov2Model, in files and in newer releases' modules, and ours."""


def load_vit(path: str | Path, *, heads: int | None = None) -> Vit:
    """The transformer in a published file (`.pth` or `.safetensors`), frozen, in float32.

    Raises:
        ModelError: missing, damaged, or of another layout; the message names the file.
    """
    state = read_state(path)
    try:
        config, converted = convert_vit(state, heads=heads)
        vit = Vit(config)
        vit.load_state_dict({k: v.float() for k, v in converted.items()}, strict=True)
    except (ModelError, RuntimeError) as error:  # RuntimeError: a tensor of another shape
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path}: {reason}; give the published backbone of DINO or DINOv2"
        ) from error
    return vit.eval().requires_grad_(False)


def convert_vit(state: State, *, heads: int | None = None) -> tuple[VitConfig, dict[str, Tensor]]:
    """Shape and tensors of a `Vit`, from a published state dict.

    Args:
        heads: attention heads; files do not tell. Without it each has 64 channels, as in all
            published ones.

    Raises:
        ModelError: another layout, tensors missing or left over.
    """
    kept = {name: tensor for name, tensor in state.items() if name not in _UNUSED}
    if any("register_tokens" in name for name in kept):
        raise ModelError("DINO: a transformer with register tokens; give the one without")
    if "embeddings.cls_token" in kept:
        kept = _from_transformers(kept)
    move = Renaming(kept, "DINO")
    with move.reading():
        config = _shape_of(move, heads)
    for name in ("cls_token", "pos_embed"):
        move.tensor(name, name)
    move.layer("patch_embed.proj", "patch_embed.proj")
    for number in range(config.depth):
        block = f"blocks.{number}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            move.layer(f"{block}.{part}", f"{block}.{part}")
        if config.has_layer_scale:
            for part in ("ls1", "ls2"):
                move.layer(f"{block}.{part}", f"{block}.{part}", parts=("gamma",))
    move.layer("norm", "norm")
    return config, move.finish()


def _shape_of(move: Renaming, heads: int | None) -> VitConfig:
    width, _, patch, _ = move.shape("patch_embed.proj.weight")
    tokens = move.shape("pos_embed")[1] - 1
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} positions are no square")
    if heads is None:
        if width % _HEAD_CHANNELS:
            raise ValueError(f"width {width} is no multiple of {_HEAD_CHANNELS}; state heads")
        heads = width // _HEAD_CHANNELS
    return VitConfig(
        width=width,
        depth=len(move.indices("blocks", ".norm1.weight")),
        heads=heads,
        patch=patch,
        side=side * patch,
        hidden=move.shape("blocks.0.mlp.fc1.weight")[0],
        has_layer_scale=move.has("blocks.0.ls1.gamma"),
    )


def _from_transformers(state: State) -> dict[str, Tensor]:
    """The same tensors under the authors' names; unknown ones keep theirs and are refused later."""
    renamed = {_renamed(name): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise ModelError("DINO: two tensors for one place; give the file as it was published")
    for name in [n for n in renamed if ".attn.q." in n or ".attn.query." in n]:
        block, part = re.split(r"\.attn\.q(?:uery)?\.", name)
        for names in (("q", "k", "v"), ("query", "key", "value")):
            parts = [f"{block}.attn.{n}.{part}" for n in names]
            if all(n in renamed for n in parts):
                joint = torch.cat([renamed.pop(n) for n in parts])
                renamed[f"{block}.attn.qkv.{part}"] = joint
    return renamed


def _renamed(name: str) -> str:
    for pattern, ours in _TRANSFORMERS:
        name, count = re.subn(rf"^{pattern}", ours, name)
        if count:
            break
    if found := re.match(r"(blocks\.\d+\.)(.*)\.(\w+)$", name):
        begin, layer, part = found.groups()
        whole = f"{layer}.{part}"
        for pattern, ours in _TRANSFORMERS_BLOCK:
            if re.fullmatch(pattern, layer):
                return f"{begin}{re.sub(pattern, ours, layer)}.{part}"
            if re.fullmatch(pattern, whole):
                return begin + re.sub(pattern, ours, whole)
    return name
