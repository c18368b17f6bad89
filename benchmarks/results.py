"""Makes docs/results.md: the quality of every method on the validation pictures.

    python benchmarks/results.py --val DIR --niqe-params niqe_pris_params.npz

measures and writes docs/results.json (every figure of every picture), docs/pictures/val_*.webp and
the page; `--render-only` makes the page again from the JSON alone.

DIR holds `hr/`, `lr/`, `real_lr_crops/` (inputs without a reference), `peers/METHOD/` with stored
results of other methods, `peer_scores.json` with stored scores and `MANIFEST.csv` with attribution;
all but `hr/` and `lr/` may be absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pictures import busiest_window, mean_difference, row_of_crops, save_sheet
from results_page import render
from torch import Tensor

from addsr.metrics.niqe import NiqeParams, load_niqe_params
from addsr.metrics.report import (
    Scores,
    picture_files,
    read_picture,
    round_to_8_bit,
    score_picture,
)

DOCS = Path(__file__).parents[1] / "docs"
SETS = {"synthetic": "lr", "real_lr_crops": "real_lr_crops"}
"""Name of a set -> the folder of its inputs."""
STORED_NAMES = {
    "psnr": "psnr_y",
    "ssim": "ssim_y",
    "niqe": "niqe",
    "piqe": "piqe",
    "lrpsnr": "lr_psnr",
    "grad": "gradient",
    "grad/hr": "gradient_hr",
    "hf": "hf",
    "hf/hr": "hf_hr",
}
"""Figure in peer_scores.json -> ours."""

Method = Callable[[Tensor], Tensor]
"""Input `(1, 3, h, w)` in [0, 1] -> result `(1, 3, 4h, 4w)` in [0, 1]."""


@dataclass
class Case:
    """One validation picture."""

    name: str
    lr: Tensor
    hr: Tensor | None


def bicubic(lr: Tensor) -> Tensor:
    """The common baseline: torch's bicubic, a = -0.75."""
    return F.interpolate(lr, scale_factor=4.0, mode="bicubic").clamp(0, 1)


def read_cases(val: Path, name: str, limit: int) -> Iterator[Case]:
    """The pictures of one set, in the order of their names; nothing if its folder is absent."""
    folder = val / SETS[name]
    if not folder.is_dir():
        return
    references = picture_files(val / "hr") if name == "synthetic" else {}
    files = picture_files(folder)
    for stem in list(files)[: limit or None]:
        hr = read_picture(references[stem]) if name == "synthetic" else None
        yield Case(stem, read_picture(files[stem]), hr)


def stored_results(val: Path, method: str, name: str) -> dict[str, Path]:
    """The stored result pictures of another method on a set; empty if there are none."""
    folder = val / "peers" / method / name
    return picture_files(folder) if folder.is_dir() else {}


def stored_scores(val: Path, method: str, name: str) -> dict[str, Scores]:
    """The stored scores of another method on a set, under our names; empty if there are none."""
    path = val / "peer_scores.json"
    rows = json.loads(path.read_text())[name].get(method, {}) if path.is_file() else {}
    return {
        stem: {ours: row[theirs] for theirs, ours in STORED_NAMES.items() if theirs in row}
        for stem, row in rows.items()
    }


def model_methods(
    models: Sequence[str], steps: Sequence[int], device: str, fidelity: float | None = None
) -> dict[str, Method]:
    """The models through `addsr.Upscaler`, one entry per number of steps; the rest by default."""
    from addsr.upscaler import Upscaler

    methods: dict[str, Method] = {}
    for model in models:
        for count in steps:
            key = f"{Path(model).stem if Path(model).suffix else model}-{count}"
            methods[key] = Upscaler(model, steps=count, seed=0, device=device, fidelity=fidelity)
    return methods


def measure(
    val: Path,
    methods: dict[str, Method],
    niqe_params: NiqeParams | None,
    *,
    limit: int = 0,
    pictures: Path | None = None,
    sheets: Path | None = None,
) -> dict[str, Any]:
    """All figures of all methods, as they go into docs/results.json.

    Args:
        methods: our models; the first one is shown in the picture rows.
        limit: this many pictures of each set, 0 for all.
        pictures: where to write the rows of crops (every fifth picture with a reference).
        sheets: where to write whole pictures side by side, for looking only.
    """
    peers = {"realesrgan-x4plus": "pictures", "realesr-general-x4v3": "scores"}
    attribution = read_attribution(val / "MANIFEST.csv")
    result: dict[str, Any] = {"sets": {}, "pictures": []}
    for name in SETS:
        rows: dict[str, dict[str, Any]] = {"bicubic": {"kind": "measured", "per_image": {}}}
        stored = {peer: stored_results(val, peer, name) for peer in peers}
        scores = {peer: stored_scores(val, peer, name) for peer in peers}
        for peer in peers:
            if stored[peer] or scores[peer]:
                kind = "stored pictures" if stored[peer] else "stored scores"
                rows[peer] = {"kind": kind, "per_image": {}}
        for key in methods:
            rows[key] = {"kind": "model", "per_image": {}}

        for number, case in enumerate(read_cases(val, name, limit)):
            results = {"bicubic": round_to_8_bit(bicubic(case.lr))}
            for peer in peers:
                if case.name in stored[peer]:
                    results[peer] = read_picture(stored[peer][case.name])
                elif case.name in scores[peer]:
                    rows[peer]["per_image"][case.name] = scores[peer][case.name]
            for key, method in methods.items():
                results[key] = round_to_8_bit(method(case.lr).float().cpu())
            for key, sr in results.items():
                figures = score_picture(sr, case.hr, case.lr, niqe_params)
                base = _one_step(key, results)
                if base is not None:
                    figures["change"] = mean_difference(sr, base)
                rows[key]["per_image"][case.name] = {k: round(v, 5) for k, v in figures.items()}
            columns = results if case.hr is None else {**results, "original": case.hr}
            if sheets is not None:
                save_sheet(sheets, f"{name}-{case.name}", columns)
            if pictures is not None and case.hr is not None and number % 5 == 0:
                entry = save_row(pictures, case, results, next(iter(methods), "bicubic"))
                entry |= attribution.get(case.name, {})
                result["pictures"].append(entry)
            print(f"{name} {case.name}", file=sys.stderr, flush=True)
        if rows["bicubic"]["per_image"]:
            result["sets"][name] = {k: row for k, row in rows.items() if row["per_image"]}
    return result


def _one_step(key: str, results: dict[str, Tensor]) -> Tensor | None:
    """The result of the same model with fewest steps, None for that one and for other methods."""
    stem, _, steps = key.rpartition("-")
    siblings = [
        k for k in results if k.rpartition("-")[0] == stem and k.rpartition("-")[2].isdigit()
    ]
    if not steps.isdigit() or not siblings or siblings[0] == key:
        return None
    return results[siblings[0]]


def save_row(
    folder: Path, case: Case, results: dict[str, Tensor], shown: str, side: int = 256
) -> dict[str, Any]:
    """Writes bicubic | model | original at 100 % for the page; what the JSON says about it."""
    assert case.hr is not None
    folder.mkdir(parents=True, exist_ok=True)
    top, left = busiest_window(case.hr, side)
    row = row_of_crops([results["bicubic"], results[shown], case.hr], top, left, side)
    path = folder / f"{case.name}.webp"
    row.save(path, quality=92, method=6)
    return {"file": path.name, "image": case.name, "shown": shown, "top": top, "left": left}


def read_attribution(manifest: Path) -> dict[str, dict[str, str]]:
    """Name of a reference -> where it comes from and its licence; empty without a manifest."""
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as rows:
        return {
            Path(row["file"]).stem: {
                "source": f"{row['source_repo']}: {row['source_path']}",
                "licence": row["licence"],
            }
            for row in csv.DictReader(rows)
            if row["file"].startswith("hr/")
        }


def facts(args: argparse.Namespace, methods: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the figures were made with."""
    made: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(seconds),
        "niqe": args.niqe_params is not None,
        "seed": 0,
    }
    for key, method in methods.items():
        if hasattr(method, "engine"):
            made.setdefault("models", {})[key] = {
                "steps": method.steps,
                "fidelity": method.fidelity,
                "color": method.color,
                "device": str(method.engine.device),
                "dtype": str(method.engine.dtype).removeprefix("torch."),
            }
    return made


def main(argv: Sequence[str] | None = None, methods: dict[str, Method] | None = None) -> None:
    """The command; `methods` replaces the models (tests)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--val", type=Path, help="folder of validation pictures")
    parser.add_argument("--niqe-params", type=Path, help="niqe_pris_params.npz; without it no NIQE")
    parser.add_argument("--model", action="append", help="name or file; repeat to compare several")
    parser.add_argument("--steps", default="1,2,4", help="numbers of sampling steps")
    parser.add_argument("--fidelity", type=float, help="0 to 1; else the model's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=0, help="pictures per set, 0 for all")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is written")
    parser.add_argument("--sheets", type=Path, help="also write whole pictures side by side here")
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    args = parser.parse_args(argv)
    data = args.docs / "results.json"
    if not args.render_only:
        if args.val is None:
            parser.error("--val: give the folder of validation pictures (or --render-only)")
        steps = [int(n) for n in args.steps.split(",")]
        if methods is None:
            methods = model_methods(args.model or ["compact"], steps, args.device, args.fidelity)
        params = load_niqe_params(args.niqe_params) if args.niqe_params else None
        started = time.monotonic()
        result = measure(
            args.val,
            methods,
            params,
            limit=args.limit,
            pictures=args.docs / "pictures",
            sheets=args.sheets,
        )
        result["made"] = facts(args, methods, time.monotonic() - started)
        args.docs.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = render(json.loads(data.read_text(encoding="utf-8")))
    (args.docs / "results.md").write_text(page, encoding="utf-8")
    print(f"{args.docs / 'results.md'}", file=sys.stderr)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
