"""The frozen Stable Diffusion that adapters are trained on, read from a local folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from addsr.diffusion.ddpm import Prediction
from addsr.errors import AddsrError, ConfigError, ModelError, OutputError
from addsr.models.files import load_weights, save_weights
from addsr.models.tags import TagList
from addsr.nets.ram import HeadConfig, Ram, RamConfig, SwinConfig
from addsr.nets.stablesr import UnetConfig, VaeConfig, build_unet, build_vae
from addsr.nets.stablesr.backbones import backbone_class
from addsr.pipelines.folder import weights_name
from addsr.pipelines.importing import embed_empty_prompt
from addsr.pipelines.tagger import Tagger

_KINDS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_PROMPT = "empty_prompt"
_PLAIN, _HALF = weights_name(None), weights_name("fp16")
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}


@dataclass(frozen=True)
class Base:
    """A frozen U-Net and VAE in evaluation mode, and the embedding of the empty prompt."""

    unet: nn.Module
    vae: nn.Module
    prompt_embeds: Tensor
    """`(1, tokens, width)`, float32, on the CPU."""


def load_base(
    folder: str, prediction: Prediction, dtype: torch.dtype, device: torch.device
) -> Base:
    """The networks in `folder`: a Stable Diffusion in diffusers' layout, or a StableSR pipeline.

    The empty prompt is embedded once: a pipeline's folder holds it; elsewhere the text encoder is
    read for it, and let go.

    Raises:
        ConfigError: no folder, or it says that it predicts something else than `prediction`.
        ModelError: a part is missing or damaged.
    """
    if not folder or not Path(folder).is_dir():
        raise ConfigError(
            f"task.base = {folder!r} is no folder; give a Stable Diffusion 2.1-base in diffusers' "
            "layout, or a folder written by StableSRPipeline.save_pretrained"
        )
    told = stated_prediction(Path(folder))
    if told not in (None, prediction):
        raise ConfigError(
            f"task.prediction = {prediction!r} does not fit {folder}, which predicts {told}; give "
            f"{told!r}, or another task.base"
        )
    unet = load_part(Path(folder), "unet", dtype, device)
    vae = load_part(Path(folder), "vae", dtype, device)
    return Base(unet, vae, load_prompt(Path(folder)))


def load_model_vae(folder: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The frozen VAE of the pipeline in `folder`.

    Raises:
        ConfigError: there is no such folder.
        ModelError: the VAE is missing or damaged.
    """
    if not folder or not Path(folder).is_dir():
        raise ConfigError(
            f"task.model = {folder!r} is no folder; give one written by "
            "StableSRPipeline.save_pretrained"
        )
    return load_part(Path(folder), "vae", dtype, device)


def load_part(folder: Path, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The U-Net (`part` "unet") or VAE ("vae") in `folder`, frozen.

    Raises:
        ModelError: it is missing or damaged.
    """
    kind = backbone_class(_KINDS[part])
    names = (_PLAIN, f"{_PLAIN}.index.json")
    has_plain = any((folder / part / name).is_file() for name in names)
    has_half = (folder / part / _HALF).is_file()
    try:
        net: Any = kind.from_pretrained(
            folder,
            subfolder=part,
            torch_dtype=dtype,
            variant="fp16" if has_half and not has_plain else None,
            local_files_only=True,
            use_safetensors=True,
        )
    except Exception as error:  # what is wrong with a folder comes in many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder / part}: cannot be loaded ({reason}); give a folder in diffusers' layout "
            "with safetensors"
        ) from error
    net = net.to(device).to(memory_format=torch.channels_last)
    return cast("nn.Module", net.eval().requires_grad_(False))


def load_prompt(folder: Path) -> Tensor:
    """The embedding of the empty prompt `(1, tokens, width)`, float32, stored or made.

    Raises:
        ModelError: `folder` has neither it nor a text encoder and tokenizer.
    """
    for name in (_PLAIN, _HALF):
        path = folder / _PROMPT / name
        if path.is_file():
            state, _ = load_weights(path)
            if "prompt_embeds" not in state:
                raise ModelError(f"{path}: holds no prompt_embeds; give another task.base")
            return state["prompt_embeds"].float()
    return embed_empty_prompt(folder, local_files_only=True)


def stated_prediction(folder: Path) -> Prediction | None:
    """What `folder` says of its U-Net; None where it says nothing."""
    for name, field in (
        ("model_index.json", "prediction"),
        ("scheduler/scheduler_config.json", "prediction_type"),
    ):
        try:
            facts = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        told = facts.get(field) if isinstance(facts, dict) else None
        if told in ("eps", "v"):
            return told
        if told in _PREDICTIONS:
            return _PREDICTIONS[told]
    return None


def write_tiny_base(folder: Path, seed: int = 0) -> None:
    """Writes a base of tiny random networks, for smoke runs; its VAE reduces sides to a quarter.

    Also `python -m addsr.train.base FOLDER`.

    Raises:
        OutputError: `folder` holds something already, or cannot be written.
    """
    require_empty(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = build_unet(
            UnetConfig(
                widths=(32, 64), blocks=1, attention=(True, False), head_channels=16, context=24
            )
        )
        vae: Any = build_vae(VaeConfig(widths=(32, 32, 32), blocks=1))
        prompt = torch.randn(1, 5, 24)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / _PROMPT).mkdir()
    save_weights(folder / _PROMPT / _PLAIN, {"prompt_embeds": prompt}, {"kind": _PROMPT})


def write_tiny_tagger(folder: Path, seed: int = 0) -> None:
    """Writes a random prompt extractor of six words, for smoke runs."""
    names = ("river", "dog", "wall", "kitten", "tower", "forest")
    config = RamConfig(
        SwinConfig(side=32, width=8, depths=(2, 2), heads=(2, 4), window=4),
        HeadConfig(tokens=12, width=8, inner=16, heads=4, layers=2),
        tags=len(names),
        label_width=10,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ram = Ram(config)
    Tagger(ram, TagList(names, (0.4, 0.5) * 3)).save_pretrained(folder)


def require_empty(folder: Path) -> None:
    """Makes `folder`, which may not hold anything: a model is never written over another.

    Raises:
        OutputError: it does, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error}); give another folder") from error
    if not is_empty:
        raise OutputError(f"{folder}: is not empty; give another folder, or delete it")


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(
        prog="addsr.train.base", description="Writes a base of tiny random networks for smoke runs."
    )
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--tagger", type=Path, help="folder for a tiny prompt extractor")
    options = parser.parse_args(arguments)
    try:
        write_tiny_base(options.folder)
        if options.tagger is not None:
            write_tiny_tagger(options.tagger)
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
