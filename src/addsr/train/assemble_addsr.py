"""Makes AddSR's networks, in the published layout, of a trained student's weights.

    python -m addsr.train.assemble_addsr --seesr SEESR --weights runs/addsr/weights -o OUT

SEESR is what `task.seesr` was: all that was not trained is taken from it. OUT gets unet/ and
controlnet/, each with config.json and one safetensors file, as SeeSR and AddSR are published. (The
released script writes the frozen teacher there.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addsr.errors import AddsrError, ModelError, OutputError
from addsr.models.files import load_weights

from .addsr_networks import layers_of, load_teacher, published_names


def assemble_addsr(
    seesr: Path,
    weights: Path,
    output: Path,
    *,
    average: bool = True,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes `output/unet` and `output/controlnet`.

    Args:
        weights: folder with `unet*.safetensors` and `controlnet*.safetensors`, as training writes.
        average: take the moving averages, else the weights as they stood at the end.

    Raises:
        ConfigError: `seesr` is no folder.
        ModelError: a file is missing, damaged or does not fit the others.
        OutputError: `output` holds something already, or cannot be written.
    """
    if output.exists():
        raise OutputError(f"{output}: is there already; give another folder, or delete it")
    whole = load_teacher(str(seesr), torch.float32, torch.device("cpu"))
    for name, part in layers_of(whole).items():
        path = weights / f"{name}{'-ema' if average else ''}.safetensors"
        state, metadata = load_weights(path)
        found: Any = metadata.get("config")
        if metadata.get("kind") != "addsr" or dict(found or {}).get("network") != name:
            raise ModelError(f"{path}: holds no trained layers of AddSR's {name}")
        wanted = {k: v.shape for k, v in part.state_dict().items()}
        if {k: v.shape for k, v in state.items()} != wanted:
            few = ", ".join(
                sorted(published_names(state).keys() ^ published_names(part.state_dict()).keys())[
                    :3
                ]
            )
            raise ModelError(
                f"{path}: does not fit {seesr / name} ({few or 'other shapes'}); give the SeeSR "
                "that it was trained from"
            )
        part.load_state_dict({k: v.float() for k, v in state.items()})
    building = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        for name in ("unet", "controlnet"):
            net: Any = getattr(whole, name)
            # not its own .to(), which warns of types that it would keep
            nn.Module.to(net, dtype)
            net.save_pretrained(building / name)
        os.replace(building, output)
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error.strerror}); give another folder"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.assemble_addsr")
    parser.add_argument("--seesr", type=Path, required=True, help="what task.seesr was")
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
            average=not options.last,
            dtype=torch.float16 if options.dtype == "fp16" else torch.float32,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
