"""Makes AddSR's networks, in the published layout, of a trained student's weights.

    python -m addsr.train.assemble_addsr --base BASE --seesr SEESR --weights runs/addsr/weights \\
        -o MODEL

BASE and SEESR are what `task.base` and `task.seesr` were: all that was not trained is taken from
them. MODEL gets unet/ and controlnet/, each with config.json and one safetensors file, as SeeSR and
AddSR are published (the released script writes the frozen teacher there), and the VAE and the empty
prompt: a folder that `AddSRPipeline.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from addsr.errors import AddsrError
from addsr.pipelines import AddSRPipeline

from .addsr_networks import layers_of, load_teacher
from .assemble_seesr import fill_layers, trained_state, write_networks, write_pipeline


def assemble_addsr(
    seesr: Path,
    weights: Path,
    output: Path,
    *,
    base: Path | None = None,
    average: bool = True,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes the whole pipeline, or without `base` `output/unet` and `output/controlnet` alone.

    Args:
        weights: folder with `unet*.safetensors` and `controlnet*.safetensors`, as training writes.
        average: take the moving averages, else the weights as they stood at the end.

    Raises:
        ConfigError: `seesr` is no folder.
        ModelError: a file is missing, damaged or does not fit the others.
        OutputError: `output` holds something already, or cannot be written.
    """
    whole = load_teacher(str(seesr), torch.float32, torch.device("cpu"))
    for name, part in layers_of(whole).items():
        state, _ = trained_state(weights, name, "addsr", average)
        fill_layers(part, state, weights, str(seesr))
    if base is None:
        write_networks(whole, output, dtype)
    else:
        write_pipeline(AddSRPipeline, whole, base, output, dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.assemble_addsr")
    parser.add_argument("--seesr", type=Path, required=True, help="what task.seesr was")
    parser.add_argument("--base", type=Path, help="what task.base was, for a whole pipeline")
    parser.add_argument("--weights", type=Path, required=True, help="RUN/weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--last", action="store_true", help="the last weights, not their average")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    options = parser.parse_args(arguments)
    try:
        assemble_addsr(
            options.seesr,
            options.weights,
            options.output,
            base=options.base,
            average=not options.last,
            dtype=torch.float16 if options.dtype == "fp16" else torch.float32,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
