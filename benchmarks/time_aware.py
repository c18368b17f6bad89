"""Compares ways of conditioning the compact network, at several steps and fidelities.

    python benchmarks/time_aware.py --val DIR --niqe-params niqe_pris_params.npz --minutes 12 \\
        --net concat=OUT/concat/weights/net-ema.safetensors \\
        --net time-aware=OUT/time-aware/weights/net-ema.safetensors

scores what training/run-time-aware.sh trained, on the pictures in DIR/hr with DIR/lr and on those
in DIR/real_lr_crops, which have no reference. It writes docs/time-aware.json and docs/pictures, and
makes docs/results.md again, of which this is a section; `--render-only` does the last alone. All
settings of a picture share one noise field. On a GPU: `--device cuda --workers 8`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pictures import busiest_window, read_attribution, row_of_crops
from score_tables import COLUMNS
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
from time_aware_page import key
from torch import Tensor

import addsr
from addsr.diffusion.samplers import sample_ode
from addsr.diffusion.schedule import even_levels
from addsr.errors import AddsrError, OptionError
from addsr.evaluate.statistics import compare
from addsr.metrics.catalog import CATALOG
from addsr.nets import CompactNet

DOCS = Path(__file__).parent.parent / "docs"
EVERY = 10
"""One picture in so many of those with a reference is shown."""


def restore(
    net: CompactNet, lr: Tensor, steps: int, fidelities: Sequence[float], seed: int
) -> Tensor:
    """`lr` `(1, 3, h, w)` four times larger, once per fidelity: `(len(fidelities), 3, 4h, 4w)`."""
    w = torch.tensor(list(fidelities), device=next(net.parameters()).device)

    def model(x: Tensor, t: Tensor, low: Tensor, condition: Tensor | None, _gate: object) -> Tensor:
        return net(x, t, low, condition, w)

    def sample(low: Tensor, noise: Tensor) -> Tensor:
        return sample_ode(model, low, noise, even_levels(steps))

    return sampled(net, lr, seed, len(w), sample)


def evaluate(args: argparse.Namespace) -> None:
    """Writes everything the page is made of: the JSON file, anew after each set, and pictures."""
    nets: dict[str, CompactNet] = {}
    data: dict[str, Any] = {
        "nets": {},
        "steps": args.steps,
        "fidelities": args.fidelities,
        "default": args.default,
        "minutes": args.minutes,
        "pictures": {},
        "scores": {},
        "gallery": [],
        "made_by": {
            "addsr": addsr.__version__,
            "torch": torch.__version__,
            "device": device_name(args.device),
        },
    }
    for text in args.net:
        name, _, path = text.partition("=")
        if not path:
            raise OptionError(f"net: {text!r} is not NAME=FILE")
        net, data["nets"][name] = load_net(Path(path), args.batch)
        nets[name] = net.to(args.device)
    torch.backends.cudnn.allow_tf32 = False  # what is told as fp32 is fp32
    if args.workers > 1:
        torch.set_num_threads(1)  # of each worker; they would outnumber the cores otherwise
    models = niqe_models(args.niqe_params)
    attribution = read_attribution(args.val / "MANIFEST.csv")
    with ThreadPoolExecutor(args.workers) as pool:
        for dataset in SETS:
            pending: list[tuple[str, str, str, Any]] = []
            shown: list[str] = []
            for index, (image, lr, hr) in enumerate(inputs(args.val, dataset, args.limit)):
                shown.append(image)
                results: dict[tuple[str, str], Tensor] = {}
                for name, net in nets.items():
                    for steps in args.steps:
                        batch = restore(net, lr, steps, args.fidelities, index)
                        for w, sr in zip(args.fidelities, batch.split(1), strict=True):
                            results[name, key(steps, w)] = sr
                            job = pool.submit(measure, sr, lr, hr, models)
                            pending.append((image, name, key(steps, w), job))
                if hr is not None and index % EVERY == 0:
                    entry = gallery(args, data, image, lr, hr, results)
                    data["gallery"].append(entry | attribution.get(image, {}))
                print(f"{dataset} {image}", file=sys.stderr, flush=True)
            if not shown:
                continue
            data["pictures"][dataset] = shown
            table: dict[str, Any] = {name: {} for name in nets}
            for image, name, setting, job in pending:
                for metric, figure in job.result().items():
                    place = table[name].setdefault(setting, {}).setdefault(metric, {"images": {}})
                    place["images"][image] = figure
            for settings in table.values():
                for metrics in settings.values():
                    for figures in metrics.values():
                        figures["mean"] = float(np.mean(list(figures["images"].values())))
            data["scores"][dataset] = table
            data["differences"] = differences(data)
            write_json(
                args.docs / "time-aware.json", data
            )  # so that what ends this run later does not cost this set
    if not data["scores"]:
        raise OptionError(f"val: {str(args.val)!r} has neither lr/ with hr/ nor real_lr_crops/")


def differences(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Each network less the first on the same pictures, at the default fidelity."""
    first, *others = data["nets"]
    found: list[dict[str, Any]] = []
    for dataset, table in data["scores"].items():
        for other in others:
            for steps in data["steps"]:
                setting = key(steps, data["default"])
                for metric in (m for m in COLUMNS if m in table[first][setting]):
                    a = table[other][setting][metric]["images"]
                    b = table[first][setting][metric]["images"]
                    if len(a) < 2:
                        continue  # no interval of one picture
                    x, y = (np.array([side[image] for image in a]) for side in (a, b))
                    pair = compare([(x, y)], [CATALOG[metric].better])[0]
                    found.append(
                        {
                            "dataset": dataset, "a": other, "b": first, "steps": steps,
                            "metric": metric, "mean": pair.mean, "low": pair.low,
                            "high": pair.high, "wins": pair.wins, "count": pair.count,
                        }
                    )  # fmt: skip
    return found


def gallery(
    args: argparse.Namespace,
    data: dict[str, Any],
    image: str,
    lr: Tensor,
    hr: Tensor,
    results: dict[tuple[str, str], Tensor],
) -> dict[str, Any]:
    """Writes the rows of one picture; what the page says of them."""
    side = min(256, *hr.shape[-2:])
    top, left = busiest_window(hr, side)
    steps = args.steps[len(args.steps) // 2]
    bicubic = F.interpolate(lr, size=hr.shape[-2:], mode="bicubic").clamp(0, 1)
    middle = [results[name, key(steps, args.default)] for name in data["nets"]]
    last = list(data["nets"])[-1]
    sweep = [results[last, key(steps, w)] for w in args.fidelities]
    folder = args.docs / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    for suffix, columns in (("", [bicubic, *middle, hr]), ("-w", sweep)):
        files.append(f"time-aware-{image}{suffix}.webp")
        row_of_crops(columns, top, left, side).save(folder / files[-1], quality=92, method=6)
    return {"image": image, "files": files, "top": top, "left": left}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--val", type=Path, help="folder of validation pictures")
    parser.add_argument("--net", action="append", help="NAME=FILE; the first is compared with")
    parser.add_argument("--steps", default="1,4,16", help="numbers of sampling steps")
    parser.add_argument("--fidelities", default="0,0.25,0.5,0.75,1", help="values of w")
    parser.add_argument("--default", type=float, default=0.5, help="w of the rows over steps")
    parser.add_argument("--minutes", type=float, default=0, help="each was trained for, to be told")
    parser.add_argument("--batch", type=int, default=64, help="crops of a training step")
    parser.add_argument("--niqe-params", type=Path, help="without it only NIQE with our own model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="threads that score")
    parser.add_argument("--limit", type=int, default=0, help="pictures per set, 0 for all")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is")
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    args = parser.parse_args(argv)
    if not args.render_only:
        if args.val is None or not args.net:
            parser.error("give --val and one --net at least (or --render-only)")
        args.steps = [int(n) for n in args.steps.split(",")]
        args.fidelities = [float(w) for w in args.fidelities.split(",")]
        if args.default not in args.fidelities:
            parser.error(f"--default {args.default:g} must be one of --fidelities")
        try:
            evaluate(args)
        except AddsrError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return remake_results(args.docs, required=args.render_only)


if __name__ == "__main__":
    sys.exit(main())
