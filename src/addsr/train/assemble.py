"""Makes a model that upscales of trained adapters and the base that they were trained on.

    python -m addsr.train.assemble --base BASE --stablesr runs/stablesr/weights \\
        [--cfw runs/cfw/weights] -o MODEL
    addsr upscale photo.jpg --model MODEL

BASE is what `task.base` was. Where it is a StableSR pipeline, only what is given replaces its
parts: with `--cfw` alone the feature wrapping is new. The averaged weights are taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from addsr.diffusion.ddpm import Prediction
from addsr.errors import AddsrError, ConfigError, ModelError
from addsr.models.files import load_weights
from addsr.models.pipeline_files import find_variant, read_object
from addsr.nets import tuples
from addsr.pipelines import StableSRPipeline
from addsr.pipelines.folder import CLASS, INDEX, OURS, load_parts
from addsr.pipelines.stablesr import PipelineConfig

from .base import load_base, require_empty, stated_prediction

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def assemble(
    base: Path,
    output: Path,
    *,
    stablesr: Path | None = None,
    cfw: Path | None = None,
    average: bool = True,
    dtype: torch.dtype = torch.float16,
    tile: int | None = None,
    fidelity: float | None = None,
) -> StableSRPipeline:
    """Writes the pipeline of `base` with the trained parts to `output`; gives it.

    Args:
        stablesr: folder with `encoder*.safetensors` and `sft*.safetensors`, as training writes.
        cfw: folder with `cfw*.safetensors`.
        average: take the moving averages, else the weights as they stood at the end.
        dtype: of all networks.
        tile: side of the tiles; that of the pictures in training if None.
        fidelity: default of the knob; that of `base` or 0.5 if None.

    Raises:
        ConfigError: a plain Stable Diffusion without `stablesr`, or nothing to put in.
        ModelError: a file is missing, damaged or does not fit the others.
        OutputError: `output` is not empty, or cannot be written.
    """
    if stablesr is None and cfw is None:
        raise ConfigError("assemble: nothing to put in; give --stablesr, --cfw or both")
    require_empty(output)
    changes: dict[str, Any] = {}
    trained: dict[str, nn.Module] = {}
    for folder, names in ((stablesr, ("encoder", "sft")), (cfw, ("cfw",))):
        for name in names if folder is not None else ():
            trained[name], facts = trained_part(cast("Path", folder), name, average)
            if name == "encoder":
                changes = _trained_as(facts)
    told = changes.get("prediction")
    parts = _base_parts(base, dtype, told)
    if "encoder" not in parts and stablesr is None:
        raise ConfigError(f"base = {str(base)!r} has no encoder of its own; give --stablesr")
    if told not in (None, parts["config"].prediction):
        raise ConfigError(
            f"base = {str(base)!r} predicts {parts['config'].prediction}, and {stablesr} was "
            f"trained to predict {told}; give the base that it was trained on"
        )
    parts |= {name: net.to(dtype) for name, net in trained.items()}
    changes |= {k: v for k, v in (("tile", tile), ("fidelity", fidelity)) if v is not None}
    pipe = StableSRPipeline(**{**parts, "config": dataclasses.replace(parts["config"], **changes)})
    pipe.save_pretrained(output)
    return pipe


def _trained_as(facts: dict[str, Any]) -> dict[str, Any]:
    """Fields of the pipeline's config that the header of an encoder's weights states."""
    changes: dict[str, Any] = {}
    if facts.get("prediction") in ("eps", "v"):
        changes["prediction"] = facts["prediction"]
    if str(facts.get("crop_px", "")).isdecimal():
        changes["tile"] = int(facts["crop_px"])
    return changes


def trained_part(folder: Path, name: str, average: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder, modulation layers ("sft") or feature wrapping ("cfw") in a folder of weights,
    and what their header says.

    Raises:
        ModelError: it is missing, damaged or of another kind.
    """
    path = folder / f"{name}{'-ema' if average else ''}.safetensors"
    state, metadata = load_weights(path)
    if metadata.get("kind") != name:
        raise ModelError(f"{path}: holds weights of kind {metadata.get('kind')!r}, not {name!r}")
    kind, shape = OURS[name]
    try:
        net: nn.Module = kind(shape(**tuples(metadata["config"])))
        net.load_state_dict({k: v.float() for k, v in state.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{path}: the weights do not fit their config ({reason})") from error
    return net, metadata


def _base_parts(base: Path, dtype: torch.dtype, told: Prediction | None) -> dict[str, Any]:
    index = read_object(base / INDEX) if (base / INDEX).is_file() else {}
    if index.get("_class_name") == CLASS:
        return load_parts(base, dtype, find_variant(base), None)
    prediction: Prediction = stated_prediction(base) or told or "eps"
    found = load_base(str(base), prediction, dtype, torch.device("cpu"))
    return {
        "unet": found.unet,
        "vae": found.vae,
        "prompt_embeds": found.prompt_embeds,
        "config": PipelineConfig(prediction=prediction),
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.assemble", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder that task.base named")
    parser.add_argument("--stablesr", type=Path, help="weights folder of `addsr train stablesr`")
    parser.add_argument("--cfw", type=Path, help="weights folder of `addsr train cfw`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--last", action="store_true", help="the last weights, not their average")
    parser.add_argument("--dtype", choices=list(_TYPES), default="fp16")
    parser.add_argument("--tile", type=int, help="side of the tiles; else as in training")
    parser.add_argument("--fidelity", type=float, help="default of the knob, 0 to 1")
    options = parser.parse_args(arguments)
    try:
        assemble(
            options.base,
            options.output,
            stablesr=options.stablesr,
            cfw=options.cfw,
            average=not options.last,
            dtype=_TYPES[options.dtype],
            tile=options.tile,
            fidelity=options.fidelity,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: written; addsr upscale --model {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
