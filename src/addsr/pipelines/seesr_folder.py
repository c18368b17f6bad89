"""A folder of SeeSR or AddSR: an index, and the published layout of each network.

Any published `unet` and `controlnet` folder beside a Stable Diffusion `vae` is one already, but for
the index and the empty prompt's embedding.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from addsr.errors import ModelError, OptionError, OutputError
from addsr.models.convert_seesr import (
    MARK,
    check_state,
    find_weights,
    load_seesr,
    read_config,
)
from addsr.models.files import load_weights, save_weights
from addsr.models.pickles import read_state
from addsr.models.pipeline_files import (
    INDEX,
    TEXT_ENCODER,
    TOKENIZER,
    read_object,
    weights_name,
)
from addsr.models.renaming import few
from addsr.models.store import write_json
from addsr.nets.stablesr.backbones import rebuild

from .config import PipelineConfig
from .text import PromptEncoder
from .tiny import PART, load_tiny, save_tiny

if TYPE_CHECKING:
    from .seesr import SeeSRPipeline

CLASSES = ("AddSRPipeline", "SeeSRPipeline")
_PROMPT = "empty_prompt"
_KINDS = {
    "unet": "UNet2DConditionModel",
    "controlnet": "ControlNetModel",
    "vae": "AutoencoderKL",
}


def save_parts(pipe: SeeSRPipeline, folder: Path, variant: str | None) -> None:
    """Writes everything but the tagger; the index comes last.

    Raises:
        OutputError: the folder cannot be written.
    """
    name = weights_name(variant)
    index: dict[str, Any] = {"_class_name": type(pipe).__name__, **asdict(pipe.config)}
    try:
        (folder / INDEX).unlink(missing_ok=True)  # without it the folder is not whole
        for part in (*_KINDS, _PROMPT):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error}); give another folder") from error
    for part, kind in _KINDS.items():
        net: Any = pipe.networks[part]
        write_json(folder / part / "config.json", json.loads(net.to_json_string()))
        about = {"kind": kind, "config": {}}
        save_weights(folder / part / name, net.state_dict(), about)
        index[part] = ["diffusers", kind]
    about = {"kind": _PROMPT, "config": {}}
    save_weights(folder / _PROMPT / name, {"prompt_embeds": pipe.prompt_embeds}, about)
    index[_PROMPT] = ["addsr", "Tensor"]
    if isinstance(pipe.text_encoder, PromptEncoder):
        pipe.text_encoder.save_pretrained(folder)
        index[TEXT_ENCODER] = ["transformers", "CLIPTextModel"]
        index[TOKENIZER] = ["transformers", "CLIPTokenizer"]
    if pipe.tiny_decoder is not None:
        save_tiny(pipe.tiny_decoder, folder / PART, variant)
        index[PART] = ["addsr", "TinyDecoder"]
    write_json(folder / INDEX, index)


def load_parts(
    folder: Path, dtype: torch.dtype | None, variant: str | None, name: str
) -> dict[str, Any]:
    """The arguments of the pipeline of class `name` in `folder`.

    Both classes have the same parts; settings of the other one are not taken over.

    Raises:
        ModelError: a file is missing, damaged, or of another kind.
        DependencyError: diffusers is not installed.
    """
    index = read_object(folder / INDEX, "give a folder written by save_pretrained")
    found = index.get("_class_name")
    if found not in CLASSES:
        raise ModelError(
            f"{folder / INDEX}: _class_name is {found!r}, not {' or '.join(CLASSES)}; give a "
            "folder written by their save_pretrained"
        )
    parts: dict[str, Any] = {
        "unet": load_seesr(folder / "unet", "unet", dtype=dtype, variant=variant),
        "controlnet": load_seesr(folder / "controlnet", "controlnet", dtype=dtype, variant=variant),
        "vae": load_vae(folder / "vae", dtype=dtype, variant=variant),
    }
    state, _ = load_weights(find_weights(folder / _PROMPT, variant))
    if "prompt_embeds" not in state:
        raise ModelError(f"{folder / _PROMPT}: holds no prompt_embeds; fetch the model again")
    parts["prompt_embeds"] = state["prompt_embeds"]
    if TEXT_ENCODER in index:
        parts[TEXT_ENCODER] = PromptEncoder.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
    if PART in index:
        parts[PART] = load_tiny(folder / PART, dtype=dtype, variant=variant)
    if found == name:
        known = {field.name for field in fields(PipelineConfig)}
        try:
            config = PipelineConfig(**{k: v for k, v in index.items() if k in known})
        except OptionError as error:
            raise ModelError(f"{folder / INDEX}: {error}") from error
        parts["config"] = config
    return parts


def assemble(
    folder: Path,
    home: Path,
    base: str | Path,
    dtype: torch.dtype | None,
    variant: str | None,
    local_files_only: bool,
    *,
    takes_base_unet: bool = False,
) -> dict[str, Any]:
    """The arguments of a pipeline of published networks in `folder`.

    Args:
        takes_base_unet: put the image attention into the base's U-Net, as SeeSR over SD-Turbo does.
        home: where the files of `base` are, but for the tokenizer's.

    Raises:
        ModelError: a file is missing, damaged or of another layout.
        DependencyError: diffusers or transformers is not installed.
    """
    text_encoder = PromptEncoder.from_pretrained(base, local_files_only=local_files_only)
    unet = load_seesr(folder / "unet", "unet", dtype=dtype, variant=variant)
    if takes_base_unet:
        graft(unet, home / "unet")
    return {
        "unet": unet,
        "controlnet": load_seesr(folder / "controlnet", "controlnet", dtype=dtype, variant=variant),
        "vae": load_vae(home / "vae", dtype=dtype),
        "prompt_embeds": text_encoder(""),
        "text_encoder": text_encoder,
    }


def graft(unet: nn.Module, base: Path) -> None:
    """Gives `unet`, but for its image attention, the numbers of the plain U-Net in `base`.

    Raises:
        ModelError: a file is missing or damaged, or it is another network.
    """
    own = unet.state_dict()
    plain = {name: tensor for name, tensor in own.items() if MARK not in name}
    state = read_state(find_weights(base))
    lacking = sorted(plain.keys() - state.keys())
    more = sorted(state.keys() - plain.keys())
    wrong = [k for k in sorted(plain.keys() & state.keys()) if plain[k].shape != state[k].shape]
    if lacking or more or wrong:
        raise ModelError(
            f"base: the U-Net in {base} is another network ({len(lacking)} tensors missing"
            f"{few(lacking)}, {len(more)} unknown{few(more)}, {len(wrong)} of another shape"
            f"{few(wrong)}); give SD-Turbo in diffusers' layout"
        )
    with torch.no_grad():
        for name, tensor in plain.items():
            tensor.copy_(state[name])


def load_vae(
    folder: Path, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> nn.Module:
    """The `AutoencoderKL` in `folder`, in evaluation mode.

    Raises:
        ModelError: a file is missing, damaged or of another kind.
        DependencyError: diffusers is not installed.
    """
    config = read_config(folder)
    state = read_state(find_weights(folder, variant))
    try:
        with torch.device("meta"):
            vae: nn.Module = rebuild("AutoencoderKL", config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"{folder}: no VAE can be built from its config ({error})") from error
    state = {_now_called(k): v for k, v in state.items()}
    check_state(vae, state, "vae")
    # copied: a file's numbers are not aligned, which makes other kernels round otherwise
    own = {k: v.to(dtype if v.is_floating_point() else None, copy=True) for k, v in state.items()}
    vae.load_state_dict(own, strict=True, assign=True)
    return vae.eval()


_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _now_called(name: str) -> str:
    """diffusers' name of a VAE's tensor, which its older versions called otherwise.

    >>> _now_called("decoder.mid_block.attentions.0.query.weight")
    'decoder.mid_block.attentions.0.to_q.weight'
    """
    head, _, part = name.rpartition(".")
    owner, _, layer = head.rpartition(".")
    if ".mid_block.attentions." in name and layer in _RENAMED:
        return f"{owner}.{_RENAMED[layer]}.{part}"
    return name
