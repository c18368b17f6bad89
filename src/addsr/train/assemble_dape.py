"""Makes a prompt extractor of trained updates and the RAM that they were trained on.

    python -m addsr.train.assemble_dape --tagger ram_swin_large_14m.pth \\
        --weights runs/dape/weights -o models/dape-own
    addsr tag photo.jpg --model models/dape-own

TAGGER is what `task.tagger` was, with the lists of tags beside it. OUT gets the extractor with the
updates in its weights, and DAPE.safetensors: the updates alone under their published names, for
`task.dape` and `addsr models import`, where TAGGER is RAM's file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from addsr.errors import AddsrError, ModelError
from addsr.models.convert_ram import published_update
from addsr.models.files import load_weights, save_weights
from addsr.nets.ram import LoraConfig, add_lora, merge_lora
from addsr.pipelines.tagger import Tagger

from .assemble_seesr import new_folder
from .dape import LoraUpdates
from .tagging import load_ram, load_tags

UPDATES = "DAPE.safetensors"


def assemble_dape(
    tagger: str,
    weights: Path,
    output: Path,
    *,
    average: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Tagger:
    """Writes the extractor to `output`; gives it.

    Args:
        weights: folder with `dape*.safetensors`, as training writes.
        average: take the moving average, else the updates as they stood at the end.

    Raises:
        ModelError: a file is missing, damaged or does not fit the others.
        OutputError: `output` holds something already, or cannot be written.
    """
    path = weights / f"dape{'-ema' if average else ''}.safetensors"
    state, metadata = load_weights(path)
    if metadata.get("kind") != "dape":
        raise ModelError(f"{path}: holds no updates of a prompt extractor")
    ram = load_ram(tagger)
    tags = load_tags(tagger, ram.config.tags)
    try:
        found: Any = metadata["config"]
        add_lora(ram, LoraConfig(**found))
        updates = LoraUpdates(ram, LoraConfig(**found))
        updates.load_state_dict({k: v.float() for k, v in state.items()})
    except (KeyError, TypeError, RuntimeError, AddsrError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"{path}: does not fit {tagger} ({reason}); give the RAM that it was trained on"
        ) from error
    published = {published_update(k.replace("/", ".")): v for k, v in updates.state_dict().items()}
    whole = Tagger(merge_lora(ram).to(dtype), tags)
    with new_folder(output) as building:
        whole.save_pretrained(building)
        about = {"kind": "dape-published", "licence": str(metadata.get("licence", ""))}
        save_weights(building / UPDATES, published, about)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.assemble_dape")
    parser.add_argument("--tagger", required=True, help="what task.tagger was")
    parser.add_argument("--weights", type=Path, required=True, help="RUN/weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--last", action="store_true", help="the last weights, not their average")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    options = parser.parse_args(arguments)
    try:
        assemble_dape(
            options.tagger,
            options.weights,
            options.output,
            average=not options.last,
            dtype=torch.float16 if options.dtype == "fp16" else torch.float32,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: written; addsr tag PHOTO --model {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
