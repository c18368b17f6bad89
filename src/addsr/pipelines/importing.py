"""Published StableSR checkpoints made into a pipeline, with a Stable Diffusion 2.1 for the rest.

The text encoder is read here once, for the embedding of the empty prompt; the pipeline keeps that
embedding and never needs a text encoder again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from addsr.diffusion.ddpm import Prediction
from addsr.errors import DependencyError, ModelError
from addsr.models.convert_stablesr import convert_checkpoint
from addsr.nets.stablesr import (
    FeatureWrapping,
    SftLayers,
    TimeAwareEncoder,
    build_unet,
    build_vae,
)
from addsr.nets.stablesr.backbones import backbone_class

from .stablesr import PipelineConfig, StableSRPipeline


def import_stablesr(
    checkpoint: str | Path,
    base: str | Path,
    *,
    cfw: str | Path | None = None,
    prediction: Prediction = "eps",
    tile: int = 512,
    heads: int = 4,
    head_channels: int = 64,
    local_files_only: bool = False,
) -> StableSRPipeline:
    """The pipeline of a published checkpoint; save it with `save_pretrained`.

    Args:
        checkpoint: `stablesr_*.ckpt`, or a file with the adapter's 376 tensors alone.
        base: folder or repository of the Stable Diffusion that was frozen, in diffusers' layout;
            gives the empty prompt, and the U-Net and VAE if the checkpoint lacks them.
        cfw: `vqgan_cfw_*.ckpt`; without it only fidelity 0 is possible.
        prediction: "v" for the model of 768 px, whose `tile` is 768.

    Raises:
        ModelError: a file is missing, damaged or of an unknown layout.
        DependencyError: diffusers or transformers is not installed.
    """
    parts = convert_checkpoint(read_state(checkpoint), heads=heads, head_channels=head_channels)
    if parts.sft is None or parts.encoder is None:
        raise ModelError(
            f"checkpoint: {str(checkpoint)!r} has no modulation layers or no encoder; give "
            "stablesr_*.ckpt here, and vqgan_cfw_*.ckpt as cfw"
        )
    wrapping = None
    if cfw is not None:
        wrapped = convert_checkpoint(read_state(cfw))
        if wrapped.cfw is None:
            raise ModelError(
                f"cfw: {str(cfw)!r} has no feature wrapping; give vqgan_cfw_*.ckpt, or leave it out"
            )
        with torch.device("meta"):
            wrapping = FeatureWrapping(wrapped.cfw_config)
        _fill(wrapping, wrapped.cfw)
    with torch.device("meta"):
        sft, encoder = SftLayers(parts.sft_config), TimeAwareEncoder(parts.encoder_config)
        unet = None if parts.unet is None else build_unet(parts.unet_config)
        vae = None if parts.vae is None else build_vae(parts.vae_config)
    _fill(sft, parts.sft)
    _fill(encoder, parts.encoder)
    if unet is None:
        unet = _from_base(backbone_class("UNet2DConditionModel"), base, "unet", local_files_only)
    else:
        _fill(unet, parts.unet)
    if vae is None:
        vae = _from_base(backbone_class("AutoencoderKL"), base, "vae", local_files_only)
    else:
        _fill(vae, parts.vae)
    return StableSRPipeline(
        unet,
        encoder,
        sft,
        vae,
        embed_empty_prompt(base, local_files_only=local_files_only),
        wrapping,
        config=PipelineConfig(prediction=prediction, tile=tile),
    )


@torch.no_grad()
def embed_empty_prompt(base: str | Path, *, local_files_only: bool = False) -> Tensor:
    """The empty prompt `(1, tokens, width)`, float32, as `base` embeds it.

    Raises:
        ModelError: `base` has no text encoder or tokenizer that can be read.
        DependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise DependencyError(
            f"importing needs transformers, once ({error}): pip install transformers"
        ) from error
    tokenizer = _from_base(CLIPTokenizer, base, "tokenizer", local_files_only)
    encoder = _from_base(CLIPTextModel, base, "text_encoder", local_files_only).eval().float()
    if len(tokenizer) != encoder.config.vocab_size:
        # transformers makes a tokenizer of no words where the files are missing
        raise ModelError(
            f"base: tokenizer of {str(base)!r} has {len(tokenizer)} words and its text encoder "
            f"{encoder.config.vocab_size}; fetch the base again"
        )
    tokens = tokenizer(
        "",
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    embeds: Tensor = encoder(tokens)[0]
    return embeds.clone()


def read_state(path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of a published file; nothing in it is run.

    Raises:
        ModelError: it is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no file there; give the path of a published checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path}: cannot be read as tensors alone ({reason}); fetch it again, or turn it into "
            "safetensors where you trust it"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: holds no state_dict; give the path of a published checkpoint")
    return dict(state)


def _fill(net: nn.Module, state: Mapping[str, Tensor] | None) -> None:
    net.load_state_dict(
        {k: v.to(torch.float32, copy=True).contiguous() for k, v in (state or {}).items()},
        assign=True,
    )


def _from_base(kind: Any, base: str | Path, part: str, local_files_only: bool) -> Any:
    try:
        return kind.from_pretrained(base, subfolder=part, local_files_only=local_files_only)
    except Exception as error:  # no such folder or id, no network, files missing or of another kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"base: {part} of {str(base)!r} cannot be loaded ({reason}); give a Stable Diffusion "
            "2.1 in diffusers' layout"
        ) from error
