"""The report: a dictionary as strict JSON, and the files that are made of it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from addsr import __version__
from addsr.metrics.catalog import CATALOG

from .embed import write_whole
from .methods import Method
from .run import Evaluation
from .statistics import bootstrap, compare
from .tables import to_markdown

FORMAT, VERSION = "addsr-report", 1
MOST_PAIRED = 8
"""Methods up to which every pair of them is compared."""


def build_report(done: Evaluation, command: str) -> dict[str, Any]:
    """The report as plain values that strict JSON can hold: no NaN (null), infinity as "inf"."""
    options, protocol = done.options, done.protocol
    statistics = {
        "resamples": options.resamples, "confidence": options.confidence, "seed": options.seed,
    }  # fmt: skip
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": {
            "addsr": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": options.resources.device,
            "threads": done.threads,
        },
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "protocol": {
            "name": protocol.name,
            "title": protocol.title,
            "border": protocol.border,
            "luma": protocol.luma,
            "scale": protocol.scale,
            "source": protocol.source,
            "datasets": [
                {"name": dataset.name, "crop": dataset.crop, "count": dataset.count}
                for dataset in protocol.datasets
            ],
        },
        "bootstrap": statistics,
        "metrics": [_metric(done, metric.name) for metric in done.metrics],
        "datasets": [
            {
                "name": dataset.name,
                "images": [pair.name for pair in done.pairs[dataset.name]],
                "has_hr": dataset.hr is not None,
                "has_lr": dataset.lr is not None,
            }
            for dataset in protocol.datasets
            if dataset.name in done.pairs
        ],
        "methods": [_method(done, method) for method in done.methods],
        "scores": {},
        "set_scores": {
            dataset: {
                method: {name: plain(value) for name, value in values.items()}
                for method, values in by_method.items()
            }
            for dataset, by_method in done.set_scores.items()
        },
        "paired": {},
        "gaps": [
            {"dataset": dataset, "method": method, "metric": metric, "count": count, "reason": why}
            for (dataset, method, metric), (count, why) in done.gaps.items()
        ],
        "problems": [
            {
                "dataset": one.dataset,
                "image": one.image,
                "method": one.method,
                "problem": one.problem,
                "remedy": one.remedy,
            }
            for one in done.problems
        ],
        "pictures": {},
    }
    for dataset in done.tables:
        report["scores"][dataset] = _scores(done, dataset, statistics)
        report["paired"][dataset] = _paired(done, dataset, statistics)
    return report


def plain(value: float | None) -> float | str | None:
    """A number as strict JSON has it, with seven digits: null for NaN, "inf" for infinity."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.7g}")


_BORDERED = {"psnr-y", "ssim-y", "psnr-rgb", "ms-ssim", "gmsd", "haarpsi", "spectrum"}


def _metric(done: Evaluation, name: str) -> dict[str, Any]:
    metric, protocol = CATALOG[name], done.protocol
    note = metric.note
    if name in ("psnr-y", "ssim-y", "ms-ssim"):
        luma = "BT.601, 16..235" if protocol.luma == "bt601" else "the same weights over 0..255"
        note += f"; luma of {luma}"
    if protocol.border and (name in _BORDERED or name.startswith("laplacian")):
        note += f"; {protocol.border} pixels left out on every side"
    return {
        "name": name,
        "title": metric.title,
        "unit": metric.unit,
        "better": metric.better,
        "aspect": metric.aspect,
        "range": metric.range,
        "note": note,
        "scope": metric.scope,
        "verified": metric.verified,
        "missing": done.missing.get(name),
        "digits": metric.digits,
    }


def _method(done: Evaluation, method: Method) -> dict[str, Any]:
    speed = done.speeds.get(method.id)
    note = "made elsewhere: not measured" if speed is None else speed.note
    if speed is not None and speed.peak_kind:
        note = f"{note}; memory: {speed.peak_kind}"
    return {
        "id": method.id,
        "title": method.title,
        "kind": method.kind,
        "steps": method.steps,
        "sha256": method.sha256,
        "licence": method.licence,
        "details": dict(method.details),
        "seconds_per_image": None if speed is None else plain(speed.seconds),
        "megapixels_per_second": None if speed is None else plain(speed.megapixels),
        "peak_memory_bytes": None if speed is None else speed.peak_bytes,
        "speed_note": note,
    }


def _scores(done: Evaluation, dataset: str, statistics: dict[str, Any]) -> dict[str, Any]:
    tables = done.tables[dataset]
    means = bootstrap(np.concatenate(list(tables.values()), axis=1), **statistics)
    rows = iter(means)
    images = [pair.name for pair in done.pairs[dataset]]
    found: dict[str, Any] = {}
    for method, table in tables.items():
        by_metric: dict[str, Any] = {}
        for number, metric in enumerate(done.metrics):
            mean = next(rows)
            if not mean.count:
                continue
            by_metric[metric.name] = {
                "mean": plain(mean.mean),
                "low": plain(mean.low),
                "high": plain(mean.high),
                "count": mean.count,
                "images": {
                    name: plain(value)
                    for name, value in zip(images, table[:, number].tolist(), strict=True)
                    if not math.isnan(value)
                },
            }
        found[method] = by_metric
    return found


def _paired(done: Evaluation, dataset: str, statistics: dict[str, Any]) -> dict[str, Any]:
    """Every pair of up to `MOST_PAIRED` methods; of more, the first model with each other one."""
    tables = done.tables[dataset]
    ids = [method.id for method in done.methods]
    models = [method.id for method in done.methods if method.kind == "model"]
    first = (models or ids)[0]
    ids = [first, *(one for one in ids if one != first)]
    pairs = list(itertools.combinations(ids, 2))
    if len(ids) > MOST_PAIRED:
        pairs = [pair for pair in pairs if pair[0] == first]
    wanted = [
        (number, a, b)
        for number, metric in enumerate(done.metrics)
        for a, b in pairs
        if metric.scope == "image"
        and not np.isnan(tables[a][:, number] + np.sign(tables[b][:, number])).all()
    ]
    differences = compare(
        [(tables[a][:, number], tables[b][:, number]) for number, a, b in wanted],
        [done.metrics[number].better for number, _, _ in wanted],
        **statistics,
    )
    found: dict[str, Any] = {}
    for (number, a, b), one in zip(wanted, differences, strict=True):
        if one.count:
            found.setdefault(done.metrics[number].name, []).append(
                {
                    "a": a,
                    "b": b,
                    "mean": plain(one.mean),
                    "low": plain(one.low),
                    "high": plain(one.high),
                    "wins": one.wins,
                    "count": one.count,
                }
            )
    return found


def write_report(report: dict[str, Any], folder: Path, *, pictures: bool = True) -> list[Path]:
    """Writes report.json, .csv, .md and .html into `folder`, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths = [folder / f"report.{suffix}" for suffix in ("json", "csv", "md", "html")]
    write_whole(paths[0], text)
    write_whole(paths[1], to_csv(report))
    write_whole(paths[2], to_markdown(report))
    from .page import write_report_page

    write_report_page(report, folder, paths[3], pictures=pictures)
    return paths


def to_csv(report: dict[str, Any]) -> str:
    """One figure a line: data set, method, picture (empty for those of a whole set), metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "method", "image", "metric", "value"])
    for dataset, methods in report["scores"].items():
        for method, metrics in methods.items():
            for metric, figures in metrics.items():
                for image, value in figures["images"].items():
                    writer.writerow([dataset, method, image, metric, value])
    for dataset, methods in report["set_scores"].items():
        for method, metrics in methods.items():
            for metric, value in metrics.items():
                writer.writerow([dataset, method, "", metric, "" if value is None else value])
    return out.getvalue()
