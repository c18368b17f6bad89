"""The empty prompt as the text tower inside a published checkpoint embeds it.

Stable Diffusion 2 takes OpenCLIP's ViT-H/14 (arXiv 2212.07143) without its last block. One prompt
has to go through it, once; that needs no text encoder library and no second download.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import ModelError

from .renaming import few, layout_of

_BLOCK = re.compile(r"model\.transformer\.resblocks\.([0-9]{1,3})\.(.+)")
_IN_BLOCK = {
    f"{layer}{part}"
    for layer in ("ln_1.", "ln_2.", "attn.in_proj_", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")
    for part in ("weight", "bias")
}
_OUTSIDE = {
    "model.token_embedding.weight",
    "model.positional_embedding",
    "model.ln_final.weight",
    "model.ln_final.bias",
}
_MAX_POSITIONS = 1000  # published: 77; attention over millions would never end
_UNUSED = {"model.text_projection", "model.logit_scale", "model.attn_mask"}
"""For comparisons with pictures."""


@torch.no_grad()
def embed_empty_prompt(state: Mapping[str, Tensor], *, head_channels: int = 64) -> Tensor:
    """The empty prompt `(1, tokens, width)`, float32, padded with zeros as Stable Diffusion 2 does.

    Args:
        state: what is under `cond_stage_model.` in a checkpoint, such as `Parts.text`.
        head_channels: per attention head; no tensor shows it.

    Raises:
        ModelError: a tensor is missing, unknown or of an unexpected shape.
    """
    blocks = _check(state)
    try:
        x = _prompt(state["model.token_embedding.weight"], state["model.positional_embedding"])
        for k in range(blocks - 1):
            prefix = f"model.transformer.resblocks.{k}."
            x = _block(x, {n: state[prefix + n].float() for n in _IN_BLOCK}, head_channels)
        return _norm(x, state["model.ln_final.weight"], state["model.ln_final.bias"])
    except (RuntimeError, IndexError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"text tower: tensors do not fit each other ({first}); give --base"
        ) from error


def is_known(state: Mapping[str, Tensor]) -> bool:
    """Whether `embed_empty_prompt` knows the names in `state`."""
    try:
        _check(state)
    except ModelError:
        return False
    return True


def _check(state: Mapping[str, Tensor]) -> int:
    """The number of blocks, each of them whole."""
    inside: dict[int, set[str]] = {}
    unknown: list[str] = []
    for name in state:
        if match := _BLOCK.fullmatch(name):
            inside.setdefault(int(match[1]), set()).add(match[2])
        elif name not in _OUTSIDE | _UNUSED:
            unknown.append(name)
    missing = [name for name in _OUTSIDE if name not in state]
    for k in range(max(inside, default=0) + 1):
        prefix, found = f"model.transformer.resblocks.{k}.", inside.get(k, set())
        missing += [prefix + name for name in sorted(_IN_BLOCK - found)]
        unknown += [prefix + name for name in sorted(found - _IN_BLOCK)]
    if missing or unknown:
        raise ModelError(
            f"text tower: {len(missing)} tensors missing{few(missing)}, {len(unknown)} "
            f"unknown{few(unknown)}; {layout_of(state)}; give --base"
        )
    return max(inside) + 1


def _prompt(words: Tensor, positions: Tensor) -> Tensor:
    """Begin, end, and nothing: the last two words of the vocabulary and its first."""
    if len(positions) > _MAX_POSITIONS:
        raise ValueError(f"{len(positions)} positions in a prompt")
    tokens = torch.zeros(len(positions), dtype=torch.long)
    tokens[0], tokens[1] = len(words) - 2, len(words) - 1
    return (words[tokens].float() + positions.float())[None]


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight.float(), bias.float(), 1e-5)


def _block(x: Tensor, w: Mapping[str, Tensor], head_channels: int) -> Tensor:
    heads = max(x.shape[-1] // head_channels, 1)
    y = _norm(x, w["ln_1.weight"], w["ln_1.bias"])
    joint = F.linear(y, w["attn.in_proj_weight"], w["attn.in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + F.linear(y, w["attn.out_proj.weight"], w["attn.out_proj.bias"])
    y = _norm(x, w["ln_2.weight"], w["ln_2.bias"])
    y = F.gelu(F.linear(y, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
    return x + F.linear(y, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
