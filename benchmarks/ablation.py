"""Scores students that were trained with one part of AddSR left out or changed.

    python benchmarks/ablation.py --val DIR --niqe-params niqe_pris_params.npz \\
        --scores OUT/scores --net baseline=OUT/train/baseline/weights/net-ema.safetensors

scores what training/run-ablation.sh trained on the pictures in DIR/hr with DIR/lr and on those in
DIR/real_lr_crops, which have no reference: each network at 1, 2 and 4 steps, with several weights
of self-refinement and fidelities. All settings of a picture share one noise field. What is known of
a network lies in OUT/scores/ARM.json and OUT/scores/crops. Of all that is there it writes
docs/ablation.json and docs/pictures, and makes docs/results.md again, of which this is a section;
without --net it does this alone, with `--render-only` only the page, from docs/ablation.json; with
`--score-only` none of this, for two that score at the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ablation_page import ARMS, FIRST, key
from ablation_rows import collect
from pictures import as_image, busiest_window, read_attribution
from scoring import (
    SETS,
    device_name,
    inputs,
    load_net,
    measure,
    niqe_models,
    remake_results,
    sampled,
    write_json,
)
from torch import Tensor

import addsr
from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS
from addsr.errors import AddsrError, OptionError
from addsr.nets import CompactNet

DOCS = Path(__file__).parent.parent / "docs"
EVERY = 10
"""One picture in so many of those with a reference is shown."""
SIDE = 192
"""Pixels of what is shown of it."""


def settings(args: argparse.Namespace) -> Iterator[tuple[int, float, tuple[float, ...]]]:
    """`(steps, weight of self-refinement, fidelities)`, the fidelities of one to be run together.

    One step has nothing to refine. The curve over all fidelities is taken without refinement and
    with the recipe's weight, other weights at the default fidelity alone.
    """
    for steps in args.steps:
        for weight in args.weights if steps > 1 else (0.0,):
            curve = steps == 1 or weight in (0.0, ARMS[FIRST].weight)
            yield steps, weight, tuple(args.fidelities) if curve else (args.default,)


def restore(
    net: CompactNet, lr: Tensor, steps: int, weight: float, fidelities: Sequence[float], seed: int
) -> Tensor:
    """`lr` `(1, 3, h, w)` four times larger, once per fidelity: `(len(fidelities), 3, 4h, 4w)`."""
    gate = torch.tensor(list(fidelities), device=next(net.parameters()).device)

    def sample(low: Tensor, noise: Tensor) -> Tensor:
        levels = LEVELS[steps]
        return sample_addsr(net, low, noise, levels, psr_weight=weight, fidelity=gate)

    return sampled(net, lr, seed, len(gate), sample)


def score(args: argparse.Namespace, arm: str, path: Path) -> None:
    """Writes what is known of the network `path` of `arm`: its JSON file, and crops to look at.

    Raises:
        OptionError: no pictures there; ModelError: no network in that file.
    """
    net, facts = load_net(path, args.batch)
    net = net.to(args.device)
    models = niqe_models(args.niqe_params)
    attribution = read_attribution(args.val / "MANIFEST.csv")
    data: dict[str, Any] = {
        "facts": facts,
        "steps": args.steps,
        "weights": args.weights,
        "fidelities": args.fidelities,
        "default": args.default,
        "pictures": {},
        "scores": {},
        "gallery": [],
        "made_by": {
            "addsr": addsr.__version__,
            "torch": torch.__version__,
            "device": device_name(args.device),
        },
    }
    with ThreadPoolExecutor(args.workers) as pool:
        for dataset in SETS:
            pending: list[tuple[int, str, Any]] = []
            names: list[str] = []
            for index, (image, lr, hr) in enumerate(inputs(args.val, dataset, args.limit)):
                names.append(image)
                results: dict[str, Tensor] = {}
                for steps, weight, fidelities in settings(args):
                    batch = restore(net, lr, steps, weight, fidelities, index)
                    for fidelity, sr in zip(fidelities, batch.split(1), strict=True):
                        results[key(steps, weight, fidelity)] = sr
                for setting, sr in results.items():
                    job = pool.submit(measure, sr, lr, hr, models)
                    pending.append((index, setting, job))
                if hr is not None and index % EVERY == 0:
                    entry = crops(args, arm, image, lr, hr, results)
                    data["gallery"].append(entry | attribution.get(image, {}))
            print(f"{arm}: {dataset}, {len(names)} pictures", file=sys.stderr, flush=True)
            if not names:
                continue
            data["pictures"][dataset] = names
            table: dict[str, dict[str, list[float | None]]] = {}
            for row, setting, job in pending:
                for metric, figure in job.result().items():
                    empty: list[float | None] = [None] * len(names)
                    column = table.setdefault(setting, {}).setdefault(metric, empty)
                    # five digits: nothing below is told, and the file stays small
                    column[row] = float(f"{figure:.5g}") if math.isfinite(figure) else None
            data["scores"][dataset] = table
    if not data["scores"]:
        raise OptionError(f"val: {str(args.val)!r} has neither lr/ with hr/ nor real_lr_crops/")
    write_json(args.scores / f"{arm}.json", data, indent=None)


def crops(
    args: argparse.Namespace,
    arm: str,
    image: str,
    lr: Tensor,
    hr: Tensor,
    results: dict[str, Tensor],
) -> dict[str, Any]:
    """Writes the window of one picture in the settings that are shown; where the window lies."""
    side = min(SIDE, *hr.shape[-2:])
    top, left = busiest_window(hr, side)
    most = max(args.steps)
    shown = {key(most, ARMS[arm].weight, args.default)}
    if arm == FIRST:  # its steps and its weights have a row of their own
        shown |= {key(steps, ARMS[arm].weight, args.default) for steps in args.steps}
        shown |= {key(most, weight, args.default) for weight in args.weights}
    columns = {f"{arm}-{s.replace('/', '-')}": results[s] for s in shown if s in results}
    columns["original"] = hr
    columns["bicubic"] = F.interpolate(lr, size=hr.shape[-2:], mode="bicubic").clamp(0, 1)
    folder = args.scores / "crops"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in columns.items():
        window = as_image(picture[..., top : top + side, left : left + side])
        temporary = folder / f".{arm}.part"  # two arms at a time may write the same original
        window.save(temporary, format="WEBP", lossless=True)
        temporary.replace(folder / f"{image}-{name}.webp")
    return {"image": image, "top": top, "left": left, "side": side}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--val", type=Path, help="folder of validation pictures")
    parser.add_argument("--net", action="append", default=[], help=f"ARM=FILE: {', '.join(ARMS)}")
    parser.add_argument("--scores", type=Path, default=Path("runs/ablation/scores"))
    parser.add_argument("--steps", default="1,2,4", help="numbers of steps, of 1, 2 and 4")
    parser.add_argument("--weights", default="0,0.25,0.5,0.75,1", help="of self-refinement")
    parser.add_argument("--fidelities", default="0.25,0.5,0.65,0.8", help="values of the knob")
    parser.add_argument("--default", type=float, default=0.5, help="fidelity that is compared at")
    parser.add_argument("--batch", type=int, default=64, help="crops of a training step")
    parser.add_argument("--niqe-params", type=Path, help="without it only NIQE with our own model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="threads that score")
    parser.add_argument("--limit", type=int, default=0, help="pictures per set, 0 for all")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is")
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    parser.add_argument("--score-only", action="store_true", help="neither JSON nor page in docs")
    args = parser.parse_args(argv)
    args.steps = [int(n) for n in args.steps.split(",")]
    args.weights = [float(w) for w in args.weights.split(",")]
    args.fidelities = [float(w) for w in args.fidelities.split(",")]
    if unknown := [n for n in args.steps if n not in LEVELS]:
        parser.error(f"--steps: {unknown[0]} is not trained; give some of 1, 2 and 4")
    if args.default not in args.fidelities:
        parser.error(f"--default {args.default:g} must be one of --fidelities")
    if args.net and args.val is None:
        parser.error("--net needs --val, the folder of validation pictures")
    if not args.render_only:
        torch.backends.cudnn.allow_tf32 = False  # what is told as fp32 is fp32
        if args.workers > 1:
            torch.set_num_threads(1)  # of each worker; they would outnumber the cores otherwise
        try:
            for text in args.net:
                arm, _, path = text.partition("=")
                if arm not in ARMS or not path:
                    raise OptionError(f"net: {text!r} is not ARM=FILE, ARM of {', '.join(ARMS)}")
                score(args, arm, Path(path))
            if args.score_only:
                return 0
            found = {
                arm: json.loads((args.scores / f"{arm}.json").read_text(encoding="utf-8"))
                for arm in ARMS
                if (args.scores / f"{arm}.json").is_file()
            }
            data = collect(found, args.scores / "crops", args.docs / "pictures")
        except AddsrError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        write_json(args.docs / "ablation.json", data, indent=None)
    return remake_results(args.docs, required=args.render_only)


if __name__ == "__main__":
    sys.exit(main())
