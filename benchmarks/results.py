"""Makes docs/results.md: the quality of every method on the validation pictures.

    python benchmarks/results.py --val DIR --niqe-params niqe_pris_params.npz

runs `addsr evaluate` by benchmarks/validation.toml (DIR is its --data), keeps the report in
runs/results, and writes docs/results.json (the report and every figure of every picture, without
the pictures), docs/pictures/val_*.webp and the page; `--render-only` makes the page again from the
JSON alone. Evaluation resumes and takes what it knows from its cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablation_page import render as render_ablation
from pictures import (
    busiest_window,
    mean_difference,
    read_attribution,
    row_of_crops,
    save_sheet,
)
from results_page import render
from time_aware_page import render as render_time_aware

from addsr.evaluate.commands import evaluate
from addsr.metrics.pictures import read_picture

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PROTOCOL = HERE / "validation.toml"
EVERY = 5
"""One picture in so many is shown on the page."""


def evaluate_validation(args: argparse.Namespace) -> dict[str, Any]:
    """The report of `addsr evaluate` on the validation pictures."""
    models: list[str] = args.model or ["compact"]
    status = evaluate(
        "bicubic",
        *models,
        protocol=str(args.protocol),
        data=args.val,
        output=args.work,
        steps=args.steps,
        niqe_params=args.niqe_params,
        fidelity=args.fidelity,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        limit=args.limit or None,
    )
    if status:
        print("there were problems with single pictures: see the report", file=sys.stderr)
    return json.loads((args.work / "report.json").read_text(encoding="utf-8"))


def changes(report: dict[str, Any], folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Data set -> method -> picture -> how far more steps move it from the fewest steps' result.

    Mean absolute difference in 8-bit levels; nothing for methods without steps.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dataset, images in report["pictures"].items():
        for method in report["methods"]:
            fewest = _fewest_steps(report["methods"], method)
            if fewest is None:
                continue
            found.setdefault(dataset, {})[method["id"]] = {
                image: round(
                    mean_difference(
                        read_picture(folder / places[method["id"]]),
                        read_picture(folder / places[fewest]),
                    ),
                    3,
                )
                for image, places in images.items()
                if method["id"] in places and fewest in places
            }
    return found


def _fewest_steps(methods: Sequence[dict[str, Any]], method: dict[str, Any]) -> str | None:
    """The method of the same model with the fewest steps, None if that is this one."""
    siblings = [m for m in methods if m["steps"] and m["sha256"] == method["sha256"]]
    if not method["steps"] or len(siblings) < 2:
        return None
    least = min(siblings, key=lambda m: m["steps"])
    return None if least["id"] == method["id"] else least["id"]


def gallery(
    report: dict[str, Any], folder: Path, target: Path, manifest: Path, side: int = 256
) -> list[dict[str, Any]]:
    """Writes bicubic | our first model | original at 100 % for every fifth picture with a
    reference and a known licence; what the page says about each."""
    shown = next((m["id"] for m in report["methods"] if m["kind"] == "model"), "bicubic")
    attribution = read_attribution(manifest)
    entries: list[dict[str, Any]] = []
    for dataset in report["datasets"]:
        if not dataset["has_hr"]:
            continue
        for image in dataset["images"][::EVERY]:
            places = report["pictures"].get(dataset["name"], {}).get(image, {})
            if not {"bicubic", shown, "hr"} <= set(places):
                continue
            hr = read_picture(folder / places["hr"])
            top, left = busiest_window(hr, side)
            columns = [read_picture(folder / places[m]) for m in ("bicubic", shown)]
            target.mkdir(parents=True, exist_ok=True)
            row = row_of_crops([*columns, hr], top, left, side)
            row.save(target / f"{image}.webp", quality=92, method=6)
            entry: dict[str, Any] = {"file": f"{image}.webp", "image": image, "shown": shown}
            entries.append(entry | {"top": top, "left": left} | attribution.get(image, {}))
    return entries


def sheets(report: dict[str, Any], folder: Path, target: Path) -> None:
    """Writes whole pictures of all methods side by side, for looking only."""
    for dataset, images in report["pictures"].items():
        for image, places in images.items():
            order = [m["id"] for m in report["methods"] if m["id"] in places]
            order += ["hr"] * ("hr" in places)
            columns = {key: read_picture(folder / places[key]) for key in order}
            save_sheet(target, f"{dataset}-{image}", columns)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--val", type=Path, help="folder of validation pictures")
    parser.add_argument("--niqe-params", type=Path, help="niqe_pris_params.npz; without it no NIQE")
    parser.add_argument("--model", action="append", help="name or file; repeat to compare several")
    parser.add_argument("--steps", default="1,2,4", help="numbers of sampling steps")
    parser.add_argument("--fidelity", type=float, help="0 to 1; else the model's own")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, default=0, help="pictures per set, 0 for all")
    parser.add_argument("--protocol", type=Path, default=PROTOCOL)
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="report and cache")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is written")
    parser.add_argument("--sheets", type=Path, help="also write whole pictures side by side here")
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    args = parser.parse_args(argv)
    data = args.docs / "results.json"
    if not args.render_only:
        if args.val is None:
            parser.error("--val: give the folder of validation pictures (or --render-only)")
        report = evaluate_validation(args)
        manifest = args.val / "MANIFEST.csv"
        report["changes"] = changes(report, args.work)
        report["gallery"] = gallery(report, args.work, args.docs / "pictures", manifest)
        if args.sheets is not None:
            sheets(report, args.work, args.sheets)
        # neither pictures nor places of this machine belong to the page's data
        report["pictures"] = {}
        for problem in report["problems"]:
            problem["problem"] = problem["problem"].replace(str(args.val), "DIR")
        report["command"] = "python benchmarks/results.py --val DIR --niqe-params FILE"
        args.docs.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = render(json.loads(data.read_text(encoding="utf-8")))
    sections = {"time-aware.json": render_time_aware, "ablation.json": render_ablation}
    for name, section in sections.items():  # by benchmarks/time_aware.py and ablation.py
        if (args.docs / name).is_file():
            figures = json.loads((args.docs / name).read_text(encoding="utf-8"))
            page += "\n" + section(figures)
    (args.docs / "results.md").write_text(page, encoding="utf-8")
    print(f"{args.docs / 'results.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
