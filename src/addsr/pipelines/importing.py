"""Published StableSR checkpoints made into a pipeline; a Stable Diffusion 2.1 gives what they lack.

The text encoder is needed here once, for the embedding of the empty prompt; the pipeline keeps that
embedding and never needs a text encoder again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from addsr.diffusion.ddpm import Prediction
from addsr.errors import ModelError
from addsr.models import openclip
from addsr.models.convert_stablesr import Parts, convert_checkpoint
from addsr.models.pickles import read_state
from addsr.nets.stablesr import (
    FeatureWrapping,
    SftLayers,
    TimeAwareEncoder,
    build_unet,
    build_vae,
)
from addsr.nets.stablesr.backbones import backbone_class

from .config import PipelineConfig, Spacing
from .stablesr import StableSRPipeline
from .text import PromptEncoder

UnetFrom = Literal["checkpoint", "base"]


@dataclass(frozen=True)
class Heads:
    """Attention heads, which no tensor shows; the defaults are those of all published files."""

    encoder: int = 4
    """Heads of the time-aware encoder."""
    unet_channels: int = 64
    """Channels per head of the U-Net."""
    text_channels: int = 64
    """Channels per head of the text tower."""


def import_stablesr(
    checkpoint: str | Path,
    base: str | Path | None = None,
    *,
    cfw: str | Path | None = None,
    prediction: Prediction = "eps",
    tile: int = 512,
    steps: int = 200,
    fidelity: float = 0.5,
    spacing: Spacing = "linspace",
    unet: UnetFrom = "checkpoint",
    dtype: torch.dtype = torch.float32,
    heads: Heads | None = None,
    local_files_only: bool = False,
) -> StableSRPipeline:
    """The pipeline of a published checkpoint; save it with `save_pretrained`.

    Args:
        checkpoint: `stablesr_*.ckpt`, or a file with the adapter's 376 tensors alone.
        base: folder or repository of the Stable Diffusion that was frozen, in diffusers' layout;
            gives what the checkpoint lacks. The published ones are whole and need none.
        cfw: `vqgan_cfw_*.ckpt`; without it only fidelity 0 is possible.
        prediction: "v" for the model of 768 px, whose `tile` is 768.
        spacing: "trailing", with 4 or 1 `steps`, for a U-Net of SD-Turbo.
        unet: "base" puts the adapter over the base's U-Net though the checkpoint has one; so does
            the model over SD-Turbo, without training (arXiv 2305.07015, section on Turbo).
        dtype: of the networks' numbers.

    Raises:
        ModelError: a file is missing, damaged or of an unknown layout; or a base is needed.
        DependencyError: diffusers, or transformers where the base gives the prompt, is missing.
    """
    heads = heads or Heads()
    parts = read_parts(checkpoint, heads)
    if parts.sft is None or parts.encoder is None:
        raise ModelError(
            f"checkpoint: {str(checkpoint)!r} has no modulation layers or no encoder; give "
            "stablesr_*.ckpt here, and vqgan_cfw_*.ckpt as cfw"
        )
    wrapped = parts
    if cfw is not None:
        wrapped = read_parts(cfw, heads)
        if wrapped.cfw is None:
            raise ModelError(
                f"cfw: {str(cfw)!r} has no feature wrapping; give vqgan_cfw_*.ckpt, or leave it out"
            )
    config = PipelineConfig(
        prediction=prediction, tile=tile, steps=steps, fidelity=fidelity, spacing=spacing
    )
    return assemble(
        parts,
        wrapped,
        base,
        config,
        unet_from=unet,
        dtype=dtype,
        text_head_channels=heads.text_channels,
        local_files_only=local_files_only,
    )


def read_parts(path: str | Path, heads: Heads | None = None) -> Parts:
    """What a published file holds, converted.

    Raises:
        ModelError: it is missing, damaged or of an unknown layout.
    """
    heads = heads or Heads()
    try:
        return convert_checkpoint(
            read_state(path), heads=heads.encoder, head_channels=heads.unet_channels
        )
    except ModelError as error:
        if str(error).startswith(str(path)):
            raise
        raise ModelError(f"{path}: {error}") from error


def lacking(parts: Parts, wrapped: Parts, unet_from: UnetFrom = "checkpoint") -> tuple[str, ...]:
    """The parts of a base that are needed besides these, by their folders' names."""
    needed: list[str] = []
    if parts.unet is None or unet_from == "base":
        needed += ["unet", "scheduler"]
    if parts.vae is None and wrapped.vae is None:
        needed.append("vae")
    if parts.text is None or not openclip.is_known(parts.text):
        needed += ["text_encoder", "tokenizer"]
    return tuple(needed)


def assemble(
    parts: Parts,
    wrapped: Parts,
    base: str | Path | None,
    config: PipelineConfig,
    *,
    unet_from: UnetFrom = "checkpoint",
    dtype: torch.dtype = torch.float32,
    text_head_channels: int = 64,
    local_files_only: bool = False,
) -> StableSRPipeline:
    """The pipeline of `parts`, with the feature wrapping of `wrapped` if that has one.

    Raises:
        ModelError: a base is needed and none given, or parts do not fit.
        DependencyError: diffusers, or transformers where the base gives the prompt, is missing.
    """
    needed = lacking(parts, wrapped, unet_from)
    home = parts if parts.vae is not None else wrapped
    if needed and base is None:
        raise ModelError(
            f"base: the checkpoint has no {', '.join(needed)} that is known; give a Stable "
            "Diffusion 2.1 in diffusers' layout"
        )
    try:
        with torch.device("meta"):
            sft, encoder = SftLayers(parts.sft_config), TimeAwareEncoder(parts.encoder_config)
            wrapping = None if wrapped.cfw is None else FeatureWrapping(wrapped.cfw_config)
            unet = None if "unet" in needed else build_unet(parts.unet_config)
            vae = None if "vae" in needed else build_vae(home.vae_config)
    except (RuntimeError, ValueError) as error:  # widths that no network can have
        raise ModelError(
            f"checkpoint: no network has the shapes of its tensors ({error}); fetch it again"
        ) from error
    _fill(sft, parts.sft, dtype)
    _fill(encoder, parts.encoder, dtype)
    if wrapping is not None:
        _fill(wrapping, wrapped.cfw, dtype)
    if unet is not None:
        _fill(unet, parts.unet, dtype)
    else:
        assert base is not None
        kind = backbone_class("UNet2DConditionModel")
        unet = _from_base(kind, base, "unet", local_files_only).to(dtype)
    if vae is not None:
        _fill(vae, home.vae, dtype)
    else:
        assert base is not None
        vae = _from_base(backbone_class("AutoencoderKL"), base, "vae", local_files_only).to(dtype)
    if "text_encoder" in needed:
        assert base is not None
        prompt = embed_empty_prompt(base, local_files_only=local_files_only)
    else:
        prompt = openclip.embed_empty_prompt(parts.text or {}, head_channels=text_head_channels)
    return StableSRPipeline(unet, encoder, sft, vae, prompt, wrapping, config=config)


def check_prediction(base: str | Path, prediction: Prediction) -> None:
    """Whether the U-Net of a local base predicts what is wanted, as far as its scheduler tells.

    Raises:
        ModelError: it predicts the other one.
    """
    path = Path(base) / "scheduler" / "scheduler_config.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("prediction_type")
    except (OSError, ValueError, AttributeError):
        return  # a repository, or a base without a scheduler
    told = {"epsilon": "eps", "v_prediction": "v"}.get(stated, prediction)
    if told != prediction:
        raise ModelError(
            f"base: the U-Net of {str(base)!r} predicts {told} and the adapter was trained with "
            f"{prediction}; give the base it was trained over, or another prediction"
        )


def embed_empty_prompt(base: str | Path, *, local_files_only: bool = False) -> Tensor:
    """The empty prompt `(1, tokens, width)`, float32, as `base` embeds it.

    Raises:
        ModelError: `base` has no text encoder or tokenizer that can be read.
        DependencyError: transformers is not installed.
    """
    return PromptEncoder.from_pretrained(base, local_files_only=local_files_only)("").clone()


def _fill(net: nn.Module, state: Mapping[str, Tensor] | None, dtype: torch.dtype) -> None:
    """Gives `net`, made without memory, its numbers; each tensor is copied out of the file."""
    filled = {k: v.to(dtype, copy=True).contiguous() for k, v in (state or {}).items()}
    for name, tensor in filled.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{type(net).__name__}: {name} holds NaN, infinity or numbers too large for "
                f"{str(dtype).removeprefix('torch.')}; use fp32, or fetch the file again"
            )
    try:
        net.load_state_dict(filled, assign=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{type(net).__name__}: unexpected shapes ({first})") from error


def _from_base(kind: Any, base: str | Path, part: str, local_files_only: bool) -> Any:
    # safetensors alone: a pickle of a base is not read
    only = {} if part == "tokenizer" else {"use_safetensors": True}
    try:
        return kind.from_pretrained(base, subfolder=part, local_files_only=local_files_only, **only)
    except Exception as error:  # no such folder or id, no network, files missing or of another kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"base: {part} of {str(base)!r} cannot be loaded ({reason}); give a Stable Diffusion "
            "2.1 in diffusers' layout"
        ) from error
