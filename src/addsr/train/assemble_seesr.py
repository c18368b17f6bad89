"""Makes a SeeSR that upscales of trained weights and the base that they were trained on.

    python -m addsr.train.assemble_seesr --base BASE --weights runs/seesr/weights -o MODEL
    addsr upscale photo.jpg --model MODEL

BASE is what `task.base` was, and SEESR (--seesr) what `task.seesr` was, if anything. MODEL gets
unet/ and controlnet/ in the published layout, the VAE and the empty prompt: a folder that
`SeeSRPipeline.from_pretrained` loads, and that `task.seesr` of AddSR's training takes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addsr.errors import AddsrError, ModelError, OutputError
from addsr.models.files import load_weights
from addsr.nets.seesr import ControlledUnet
from addsr.pipelines import SeeSRPipeline
from addsr.pipelines.config import PipelineConfig

from .addsr_networks import TrainedLayers, published_names
from .base import load_part, load_prompt
from .seesr_networks import seesr_layers, start_networks

_CPU = torch.device("cpu")
_NAMES = {"addsr": "AddSR", "seesr": "SeeSR"}


def assemble_seesr(
    base: Path,
    weights: Path,
    output: Path,
    *,
    seesr: Path | None = None,
    average: bool = True,
    dtype: torch.dtype = torch.float16,
) -> SeeSRPipeline:
    """Writes the pipeline to `output`; gives it.

    Args:
        weights: folder with `unet*.safetensors` and `controlnet*.safetensors`, as training writes.
        seesr: what training started from, where that was not the base alone.
        average: take the moving averages, else the weights as they stood at the end.

    Raises:
        ConfigError: `seesr` is no folder, or does not fit the weights.
        ModelError: a file is missing, damaged or does not fit the others.
        OutputError: `output` holds something already, or cannot be written.
    """
    states = {n: trained_state(weights, n, "seesr", average) for n in ("unet", "controlnet")}
    vae: Any = load_part(base, "vae", torch.float32, _CPU)
    whole = start_networks(
        str(base),
        "" if seesr is None else str(seesr),
        width=_token_width(states["unet"][0], weights),
        factor=2 ** (len(vae.config["block_out_channels"]) - 1),
        device=_CPU,
    )
    for name, part in seesr_layers(whole).items():
        fill_layers(part, states[name][0], weights, str(base))
    side = int(states["unet"][1].get("crop_px", PipelineConfig.tile))
    config = PipelineConfig(tile=side, steps=SeeSRPipeline.steps, fidelity=0.0)
    return write_pipeline(SeeSRPipeline, whole, base, output, dtype, config)


def trained_state(
    weights: Path, name: str, kind: str, average: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trained layers of network `name`, and what their file's header says.

    Raises:
        ModelError: the file is missing, damaged or of another training than `kind`.
    """
    path = weights / f"{name}{'-ema' if average else ''}.safetensors"
    state, metadata = load_weights(path)
    found: Any = metadata.get("config")
    if metadata.get("kind") != kind or dict(found or {}).get("network") != name:
        raise ModelError(f"{path}: holds no trained layers of {_NAMES[kind]}'s {name}")
    return state, metadata


def fill_layers(
    part: TrainedLayers, state: Mapping[str, torch.Tensor], weights: Path, origin: str
) -> None:
    """Gives trained layers their numbers, in float32.

    Raises:
        ModelError: they do not fit; `origin` is what they were trained from.
    """
    wanted = part.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in wanted.items()}:
        few = ", ".join(sorted(published_names(state).keys() ^ published_names(wanted).keys())[:3])
        raise ModelError(
            f"{weights}: {part.config.network} does not fit {origin} ({few or 'other shapes'}); "
            "give what it was trained from"
        )
    part.load_state_dict({k: v.float() for k, v in state.items()})


def write_pipeline(
    kind: type[SeeSRPipeline],
    whole: ControlledUnet,
    base: Path,
    output: Path,
    dtype: torch.dtype,
    config: PipelineConfig | None = None,
) -> SeeSRPipeline:
    """Writes a pipeline of trained networks and the VAE and empty prompt of `base`; gives it.

    Raises:
        ModelError: `base` lacks a part.
        OutputError: `output` is there already, or cannot be written.
    """
    _cast(whole, dtype)
    vae = load_part(base, "vae", dtype, _CPU)
    pipe = kind(whole.unet, whole.controlnet, vae, load_prompt(base).to(dtype), config=config)
    with new_folder(output) as building:
        pipe.save_pretrained(building)
    return pipe


def write_networks(whole: ControlledUnet, output: Path, dtype: torch.dtype) -> None:
    """Writes `output/unet` and `output/controlnet`, each as diffusers does.

    Raises:
        OutputError: `output` is there already, or cannot be written.
    """
    _cast(whole, dtype)
    with new_folder(output) as building:
        for name in ("unet", "controlnet"):
            net: Any = getattr(whole, name)
            net.save_pretrained(building / name)


@contextmanager
def new_folder(output: Path) -> Generator[Path]:
    """A folder to write into, which becomes `output` at the end, or goes after an error.

    Raises:
        OutputError: `output` is there already, or cannot be written.
    """
    if output.exists():
        raise OutputError(f"{output}: is there already; give another folder, or delete it")
    building = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        yield building
        building.rename(output)
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error.strerror}); give another folder"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _cast(whole: ControlledUnet, dtype: torch.dtype) -> None:
    for net in (whole.unet, whole.controlnet):
        # not their own .to(), which warns of types that they would keep
        nn.Module.to(net, dtype)


def _token_width(state: Mapping[str, torch.Tensor], weights: Path) -> int:
    for name, tensor in state.items():
        if name.endswith("attn2.to_k.weight"):
            return int(tensor.shape[-1])
    raise ModelError(f"{weights}: has no image attention; give RUN/weights of addsr train seesr")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.assemble_seesr")
    parser.add_argument("--base", type=Path, required=True, help="what task.base was")
    parser.add_argument("--seesr", type=Path, help="what task.seesr was, if anything")
    parser.add_argument("--weights", type=Path, required=True, help="RUN/weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--last", action="store_true", help="the last weights, not their average")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    options = parser.parse_args(arguments)
    try:
        assemble_seesr(
            options.base,
            options.weights,
            options.output,
            seesr=options.seesr,
            average=not options.last,
            dtype=torch.float16 if options.dtype == "fp16" else torch.float32,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: written; addsr upscale PHOTO --model {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
