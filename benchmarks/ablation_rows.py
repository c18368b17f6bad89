"""The figures of several arms of an ablation side by side: differences, and rows of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ablation_page import ARMS, FIRST, SEEDS, key
from numpy.typing import NDArray
from pictures import row_of_images
from PIL import Image
from score_tables import COLUMNS

from addsr.errors import OptionError
from addsr.evaluate.statistics import compare
from addsr.metrics.catalog import CATALOG

Column = NDArray[np.float64]


def collect(found: dict[str, dict[str, Any]], crops: Path, pictures: Path) -> dict[str, Any]:
    """What the page is made of: the scores of all arms, their differences, and rows of pictures.

    Raises:
        OptionError: no scores, or arms that were scored in different ways.
    """
    if not found:
        raise OptionError("scores: there are none; give --net ARM=FILE, or --scores with some")
    first, *others = found
    for arm in others:
        for field in ("steps", "weights", "fidelities", "default", "pictures"):
            if found[arm][field] != found[first][field]:
                raise OptionError(
                    f"scores: {arm} and {first} have different {field}; score both in one way"
                )
    return {
        "arms": found,
        "differences": differences(found),
        "refinement": refinement(found),
        "gallery": gallery(found, crops, pictures),
    }


def column(data: dict[str, Any], dataset: str, setting: str, metric: str) -> Column | None:
    """The figures of every picture `(pictures,)`, NaN where one has none; None without any."""
    values = data["scores"][dataset].get(setting, {}).get(metric)
    return None if values is None else np.array(values, dtype=float)


def differences(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm less what it is compared with on the same pictures, each with its own weight of
    self-refinement; beside it how far the baselines' means lie apart.

    The baseline is the mean of its seeds.
    """
    entries: list[dict[str, Any]] = []
    for arm, data in found.items():
        against = ARMS[arm].against
        names = [n for n in (SEEDS if against == FIRST else (against,)) if n in found]
        for dataset in data["scores"] if names else ():
            for steps in data["steps"]:
                ours = key(steps, ARMS[arm].weight, data["default"])
                for metric in COLUMNS:
                    a = column(data, dataset, ours, metric)
                    theirs = [_own(found, name, dataset, steps, metric) for name in names]
                    known = [b for b in theirs if b is not None]
                    if a is None or len(known) < len(names):
                        continue
                    entry = difference(a, np.mean(known, axis=0), metric)
                    if entry is not None:
                        about = {"arm": arm, "dataset": dataset, "steps": steps}
                        apart = _apart(found, dataset, steps, metric)
                        entries.append(about | entry | {"seeds": apart})
    return entries


def _own(
    found: dict[str, dict[str, Any]], arm: str, dataset: str, steps: int, metric: str
) -> Column | None:
    data = found[arm]
    return column(data, dataset, key(steps, ARMS[arm].weight, data["default"]), metric)


def _apart(found: dict[str, dict[str, Any]], dataset: str, steps: int, metric: str) -> float | None:
    """How far the means of the baselines lie apart; None where there are not two."""
    if not all(name in found for name in SEEDS):
        return None
    columns = [_own(found, name, dataset, steps, metric) for name in SEEDS]
    means = [float(np.nanmean(c)) for c in columns if c is not None]
    return abs(means[0] - means[1]) if len(means) > 1 else None


def refinement(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each baseline sampled with self-refinement less the same without, over the weights."""
    entries: list[dict[str, Any]] = []
    for arm in (name for name in SEEDS if name in found):
        data = found[arm]
        for dataset in data["scores"]:
            for steps in (n for n in data["steps"] if n > 1):
                for weight in (w for w in data["weights"] if w > 0):
                    for metric in COLUMNS:
                        a = column(data, dataset, key(steps, weight, data["default"]), metric)
                        b = column(data, dataset, key(steps, 0.0, data["default"]), metric)
                        if a is None or b is None:
                            continue
                        if (entry := difference(a, b, metric)) is not None:
                            about = {"arm": arm, "dataset": dataset, "steps": steps}
                            entries.append(about | {"weight": weight} | entry)
    return entries


def difference(a: Column, b: Column, metric: str) -> dict[str, Any] | None:
    """The paired difference of two columns and its interval; None where too few pictures count."""
    if int(np.isfinite(a - b).sum()) < 2:
        return None  # no interval of one picture
    pair = compare([(a, b)], [CATALOG[metric].better])[0]
    return {
        "metric": metric,
        "mean": pair.mean,
        "low": pair.low,
        "high": pair.high,
        "wins": pair.wins,
        "count": pair.count,
    }


def gallery(found: dict[str, dict[str, Any]], crops: Path, pictures: Path) -> list[dict[str, Any]]:
    """Writes two rows for each picture of which there are crops; what the page says of them.

    First row: bicubic, every arm with the most steps and its own weight, original. Second: the
    baseline with each number of steps, then with the most steps and each weight.
    """
    data = next(iter(found.values()))
    most, default = max(data["steps"]), data["default"]
    arms = [(f"{arm}-", key(most, ARMS[arm].weight, default)) for arm in found]
    # one step is the same whatever the weight, and the last number of steps is in the sweep
    sweep = [key(n, ARMS[FIRST].weight, default) for n in data["steps"] if n != most]
    sweep += [key(most, weight, default) for weight in data["weights"] if most > 1]
    rows = {
        "": [("", "bicubic"), *arms, ("", "original")],
        "-w": [(f"{FIRST}-", setting) for setting in sweep] if FIRST in found else [],
    }
    entries: list[dict[str, Any]] = []
    for entry in data["gallery"]:
        files: list[str] = []
        for suffix, columns in rows.items():
            names = [f"{entry['image']}-{a}{b.replace('/', '-')}.webp" for a, b in columns]
            if not names or not all((crops / name).is_file() for name in names):
                continue
            pictures.mkdir(parents=True, exist_ok=True)
            files.append(f"ablation-{entry['image']}{suffix}.webp")
            row = row_of_images([Image.open(crops / name).convert("RGB") for name in names])
            row.save(pictures / files[-1], quality=92, method=6)
        if files:
            entries.append({**entry, "files": files})
    return entries
