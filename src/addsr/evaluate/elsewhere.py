"""Figures per picture that others measured, read from JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

from addsr.errors import InputError
from addsr.metrics.catalog import CATALOG

from .pairs import without_suffix

_NAMES = {
    "psnr": "psnr-y",
    "ssim": "ssim-y",
    "lrpsnr": "lr-psnr",
    "grad": "gradient-levels",
    "grad/hr": "gradient",
    "gradient_hr": "gradient",
}
"""Names that others give to our metrics; underscores may stand for hyphens in all of them."""
_UNUSED = {"hf/hr", "hf-hr"}


def read_scores(place: str) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Picture -> metric -> figure at `FILE.json#path/inside`, and names that mean nothing here.

    There either lies picture -> name -> number, or what this project's report.json has under
    `scores/DATASET/METHOD`: metric -> images -> number. A suffix of a picture's name does not
    count; null is NaN, "inf" infinity.

    Raises:
        InputError: the file cannot be read, or nothing of that kind lies there.
    """
    name, _, inside = place.partition("#")
    try:
        value: Any = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"scores: {name} cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"scores: {name} is no JSON ({error}); give figures in JSON") from error
    for key in filter(None, inside.split("/")):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(list(cast("dict[str, Any]", value))[:8]) if _is_table(value) else ""
            raise InputError(
                f"scores: {name} has no {key!r} on the path {inside!r}"
                + (f"; there are {known}" if known else "; write FILE.json#SET/METHOD")
            )
        value = cast("dict[str, Any]", value)[key]
    rows = _rows(value)
    if rows is None:
        raise InputError(
            f"scores: {place} holds no table of picture -> figure -> number; "
            "name the part of the file that does as FILE.json#SET/METHOD"
        )
    unknown: set[str] = set()
    found: dict[str, dict[str, float]] = {}
    for picture, row in rows.items():
        figures = found.setdefault(without_suffix(picture), {})
        for theirs, number in row.items():
            ours = _NAMES.get(theirs.lower(), theirs.lower().replace("_", "-"))
            ours = _NAMES.get(ours, ours)
            if ours in CATALOG:
                figures[ours] = number
            elif ours not in _UNUSED:
                unknown.add(theirs)
    return found, sorted(unknown)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _rows(value: Any) -> dict[str, dict[str, float]] | None:
    """Picture -> name -> number out of either layout; None where it is neither."""
    if not isinstance(value, dict) or not value:
        return None
    table = cast("dict[str, Any]", value)
    if not all(isinstance(row, dict) for row in table.values()):
        return None
    if all(isinstance(row.get("images"), dict) for row in table.values()):
        turned: dict[str, dict[str, Any]] = {}
        for metric, entry in table.items():
            for picture, number in entry["images"].items():
                turned.setdefault(picture, {})[metric] = number
        table = turned
    rows: dict[str, dict[str, float]] = {}
    for picture, row in table.items():
        rows[picture] = {}
        for name, number in row.items():
            parsed = _number(number)
            if parsed is None:
                return None
            rows[picture][name] = parsed
    return rows


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:  # JSON's whole numbers have no end
            return None
    return float(value) if value in ("inf", "-inf") else None
