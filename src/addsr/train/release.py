"""Makes the weights file that ships from those of training: averaged, described, in fp16.

    python -m addsr.train.release runs/student/weights/net-ema.safetensors -o compact.safetensors \\
        --run "2 (2026-11-25)" --default-steps 1 --fidelity 0.6

Several files are averaged with `--weights`, tensor by tensor: networks fine-tuned from the same
start lie in one basin, and a point between them trades their properties (network interpolation,
arXiv 1811.10515; model soups, arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from addsr.errors import AddsrError, ConfigError
from addsr.models.files import load_weights, save_weights
from addsr.models.registry import info_for_file


def average(states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of state dicts in float32; weights are scaled to sum to one.

    Raises:
        ConfigError: names or shapes differ, or the weights do not match the states.
    """
    if len(weights) != len(states) or sum(weights) <= 0:
        raise ConfigError(
            f"weights = {list(weights)!r}: give {len(states)} numbers with a sum above 0, "
            "one for each file"
        )
    first = states[0]
    for state in states[1:]:
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in first.items()}:
            raise ConfigError("weights of different networks cannot be averaged; give files of one")
    total = sum(weights)
    return {
        name: torch.stack(
            [state[name].float() * (w / total) for state, w in zip(states, weights, strict=True)]
        ).sum(dim=0)
        for name in first
    }


def release(
    sources: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float] | None = None,
    run: str,
    default_steps: int = 1,
    fidelity: float = 0.5,
    color: str = "wavelet",
) -> str:
    """Writes the average of `sources` to `target`; gives the sha256 of its tensors.

    Raises:
        ConfigError: the sources do not belong together.
        ModelError: a source is no weights file, or a default is one the model does not allow.
    """
    loaded = [load_weights(path) for path in sources]
    state = average([s for s, _ in loaded], weights or [1.0] * len(loaded))
    first = loaded[0][1]
    metadata = {
        "kind": first["kind"],
        "config": first["config"],
        "task": first.get("task", ""),
        "step": "+".join(str(m.get("step", "?")) for _, m in loaded),
        "run": run,
        "licence": "Apache-2.0",
        "info": {
            "default_steps": default_steps,
            "default_fidelity": fidelity,
            "default_color": color,
        },
    }
    info_for_file(target.name, metadata, 0.0)  # refuse what could not be loaded again
    return save_weights(target, {k: v.half() for k, v in state.items()}, metadata)


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the command: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train.release", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--weights", type=float, nargs="+", help="one for each source; else equal")
    parser.add_argument("--run", required=True, help="name of the training run, for the header")
    parser.add_argument("--default-steps", type=int, default=1)
    parser.add_argument("--fidelity", type=float, default=0.5, help="default of the knob")
    parser.add_argument("--color", default="wavelet", help="default colour fix")
    options = parser.parse_args(arguments)
    try:
        sha256 = release(
            options.sources,
            options.output,
            weights=options.weights,
            run=options.run,
            default_steps=options.default_steps,
            fidelity=options.fidelity,
            color=options.color,
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: sha256 of the tensors {sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
