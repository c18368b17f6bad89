"""The text of docs/results.md, from the content of docs/results.json alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

LABELS = {
    "bicubic": "bicubic",
    "realesrgan-x4plus": "Real-ESRGAN x4plus",
    "realesr-general-x4v3": "realesr-general-x4v3",
}
COLUMNS = {
    "psnr_y": ("PSNR-Y", 2),
    "ssim_y": ("SSIM-Y", 3),
    "niqe": ("NIQE", 2),
    "piqe": ("PIQE", 1),
    "lr_psnr": ("LR-PSNR", 1),
    "gradient_hr": ("grad/HR", 2),
    "hf_hr": ("hf/HR", 2),
    "change": ("change", 2),
}
"""Figure -> title and digits."""

RIVAL = "realesrgan-x4plus"

_INTRODUCTION = """\
# Results

Made by `python benchmarks/results.py`; do not edit. The figures of every picture are in
[results.json](results.json), from which `--render-only` makes this page.

PSNR-Y and SSIM-Y (luma of BT.601, 4 pixels of the border left out) compare with the original,
higher is closer. NIQE (convention of MATLAB) and PIQE need no original, lower is better. LR-PSNR
compares the result, shrunk by averaging, with the input; higher means that less was made up.
grad/HR and hf/HR are the mean gradient and the share of high frequencies over those of the
original: 1 is as sharp. All are means over the pictures and measured on 8-bit levels.

NIQE and PIQE reward noise as well as detail, and PSNR rewards blur: no figure replaces looking.
"""

_SETS = {
    "synthetic": (
        "Degraded photos with an original",
        "{count} crops of 512x512, degraded to 128x128: even numbers mildly, odd numbers strongly "
        "(second-order blur, noise and JPEG).",
    ),
    "real_lr_crops": (
        "Photos from the web",
        "{count} crops of low-quality photos as found, at most 160x160; there is no original.",
    ),
}


def render(results: dict[str, Any]) -> str:
    """The Markdown of the page."""
    parts = [_INTRODUCTION]
    for name, rows in results["sets"].items():
        title, text = _SETS[name]
        parts.append(f"## {title}\n\n{text.format(count=len(rows['bicubic']['per_image']))}\n")
        parts.append(table(rows))
        if name == "synthetic":
            for half, is_in in (("mild", _is_mild), ("strong", lambda stem: not _is_mild(stem))):
                part = {k: _only(row, is_in) for k, row in rows.items()}
                if all(row["per_image"] for row in part.values()):
                    parts.append(f"The {half} half alone:\n")
                    parts.append(table(part, ["psnr_y", "ssim_y", "niqe", "lr_psnr"]))
        if duel := duels(rows):
            parts.append(duel)
    if results["pictures"]:
        parts.append(gallery(results["pictures"]))
    parts.append(footnotes(results))
    return "\n".join(parts)


def label(key: str) -> str:
    """How a method is called on the page."""
    if key in LABELS:
        return LABELS[key]
    stem, _, steps = key.rpartition("-")
    return f"{stem}, {steps} step{'' if steps == '1' else 's'}" if steps.isdigit() else key


def table(rows: dict[str, Any], columns: list[str] | None = None) -> str:
    """One line per method with the means of its figures; a dash where a figure is absent."""
    means = {key: _means(row["per_image"]) for key, row in rows.items()}
    present = [c for c in columns or COLUMNS if any(c in mean for mean in means.values())]
    lines = ["| | " + " | ".join(COLUMNS[c][0] for c in present) + " |"]
    lines.append("|---|" + "---:|" * len(present))
    for key, mean in means.items():
        cells = [_number(mean.get(c), COLUMNS[c][1]) for c in present]
        lines.append(f"| {label(key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def duels(rows: dict[str, Any]) -> str:
    """On how many pictures each of our models scores better than Real-ESRGAN x4plus."""
    if RIVAL not in rows:
        return ""
    rival = rows[RIVAL]["per_image"]
    lines: list[str] = []
    for key, row in rows.items():
        if row["kind"] != "model":
            continue
        won: list[str] = []
        for column, is_better in (("ssim_y", 1), ("niqe", -1), ("lr_psnr", 1)):
            both = [
                (figures[column], rival[stem][column])
                for stem, figures in row["per_image"].items()
                if column in figures and column in rival.get(stem, {})
            ]
            if both:
                wins = sum((ours - theirs) * is_better > 0 for ours, theirs in both)
                won.append(f"{COLUMNS[column][0]} on {wins} of {len(both)}")
        if won:
            lines.append(f"- {label(key)}: {', '.join(won)}")
    return f"Better than {LABELS[RIVAL]} in\n\n" + "\n".join(lines) + "\n" if lines else ""


def gallery(pictures: list[dict[str, Any]]) -> str:
    """The picture rows with their attribution."""
    lines = [
        "## Pictures\n",
        "Every fifth picture of the first set, the 256x256 with the most detail, at 100 %: "
        f"bicubic, {label(pictures[0]['shown'])}, original.\n",
    ]
    for entry in pictures:
        origin = (
            f"{entry.get('source', 'unknown source')}, {entry.get('licence', 'unknown licence')}"
        )
        lines.append(f"![{entry['image']}](pictures/{entry['file']})\n")
        lines.append(
            f"*{entry['image']}*: {origin}; cropped at ({entry['left']}, {entry['top']}), degraded "
            "and restored, under the same licence\n"
        )
    return "\n".join(lines)


def footnotes(results: dict[str, Any]) -> str:
    """How the rows were made."""
    kinds = {key: row["kind"] for rows in results["sets"].values() for key, row in rows.items()}
    lines = ["## How these were made\n", "- bicubic: `torch.nn.functional.interpolate`"]
    for key, kind in kinds.items():
        if kind.startswith("stored"):
            made = "measured here on" if kind == "stored pictures" else "taken from"
            lines.append(f"- {label(key)}: {made} {kind}")
    made = results.get("made", {})
    for key, how in made.get("models", {}).items():
        lines.append(
            f"- {label(key)}: fidelity {how['fidelity']:g}, colour fix {how['color']}, seed "
            f"{made['seed']}, {how['dtype']} on {how['device']}"
        )
    if any("change" in figures for figures in _all_figures(results)):
        lines.append(
            "- change: mean absolute difference, in 8-bit levels, from the same model's result "
            "with the fewest steps"
        )
    if made:
        lines.append(f"- torch {made['torch']}, Python {made['python']}")
    return "\n".join(lines) + "\n"


def _all_figures(results: dict[str, Any]) -> list[dict[str, float]]:
    rows = [row for rows in results["sets"].values() for row in rows.values()]
    return [figures for row in rows for figures in row["per_image"].values()]


def _means(per_image: dict[str, dict[str, float]]) -> dict[str, float]:
    figures = list(per_image.values())
    names = [n for n in COLUMNS if all(n in row for row in figures)]
    return {n: math.fsum(row[n] for row in figures) / len(figures) for n in names}


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001


def _only(row: dict[str, Any], is_in: Callable[[str], bool]) -> dict[str, Any]:
    return {**row, "per_image": {k: v for k, v in row["per_image"].items() if is_in(k)}}


def _is_mild(stem: str) -> bool:
    digits = "".join(c for c in stem if c.isdigit())
    return bool(digits) and int(digits) % 2 == 0
