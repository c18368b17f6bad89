"""The text of docs/results.md, from the content of docs/results.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MAIN = ("psnr-y", "ssim-y", "haarpsi", "niqe", "piqe", "lr-psnr", "gradient")
FURTHER = (
    "ms-ssim", "gmsd", "niqe-yiq", "niqe-addsr", "swd", "fd-phi", "kid-phi", "spectrum",
    "laplacian-flat", "laplacian-edge", "laplacian-texture", "hf",
)  # fmt: skip
HALVES = ("psnr-y", "ssim-y", "niqe", "lr-psnr")
DUELS = ("ssim-y", "niqe", "lr-psnr")
RIVAL = "Real-ESRGAN x4plus"
"""Title of the method that ours are compared with picture by picture."""

_ARROWS = {"higher": " ↑", "lower": " ↓", "one": " →1", "none": ""}

_INTRODUCTION = """\
# Results

Made by `python benchmarks/results.py`, that is by `addsr evaluate` and
[benchmarks/validation.toml](../benchmarks/validation.toml); do not edit. The figures of every
picture are in [results.json](results.json), from which `--render-only` makes this page.

PSNR, SSIM and the like compare with the original, 4 pixels of the border left out; NIQE and PIQE
need no original. LR-PSNR compares the result, shrunk by averaging, with the input; higher means
that less was made up. The gradient ratio is the mean gradient over that of the original: 1 is as
sharp. All are measured on 8-bit levels and are means over the pictures, in brackets the 95 %
interval of that mean (bootstrap over the pictures).

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


def render(report: dict[str, Any]) -> str:
    """The Markdown of the page."""
    parts = [_INTRODUCTION]
    for dataset in report["datasets"]:
        name, images = dataset["name"], dataset["images"]
        title, text = _SETS.get(name, (name, "{count} pictures."))
        parts.append(f"## {title}\n\n{text.format(count=len(images))}\n")
        parts.append(table(report, name, MAIN, intervals=True))
        parts.append("Further measures of the same results:\n")
        parts.append(table(report, name, FURTHER))
        if name == "synthetic":
            for half, is_in in (("mild", _is_mild), ("strong", lambda stem: not _is_mild(stem))):
                part = [image for image in images if is_in(image)]
                parts.append(f"The {half} half alone:\n")
                parts.append(table(report, name, HALVES, part))
        if duel := duels(report, name):
            parts.append(duel)
        if moved := change_lines(report, name):
            parts.append(moved)
    parts.append(speed(report))
    if report["gallery"]:
        parts.append(gallery(report))
    parts.append(footnotes(report))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(
    report: dict[str, Any],
    dataset: str,
    names: Iterable[str],
    images: list[str] | None = None,
    *,
    intervals: bool = False,
) -> str:
    """One line per method; a dash where a figure is absent. `images` restricts the means."""
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    scores, sets = report["scores"][dataset], report["set_scores"].get(dataset, {})

    def cell(method: str, name: str) -> str:
        digits = metrics[name]["digits"]
        if metrics[name]["scope"] == "set":
            return _number(sets.get(method, {}).get(name), digits)
        figures = scores.get(method, {}).get(name)
        if figures is None:
            return "–"  # noqa: RUF001
        if images is not None:
            values = [figures["images"][image] for image in images if image in figures["images"]]
            return _number(math.fsum(values) / len(values) if values else None, digits)
        text = _number(figures["mean"], digits)
        if intervals and figures["low"] is not None:
            low, high = (_number(figures[end], digits) for end in ("low", "high"))
            text += f" <sub>[{low}, {high}]</sub>"
        return text

    rows = [method for method in report["methods"] if scores.get(method["id"])]
    shown = [
        name
        for name in names
        if name in metrics and any(cell(m["id"], name) != "–" for m in rows)  # noqa: RUF001
    ]
    heads = [f"{metrics[name]['title']}{_ARROWS[metrics[name]['better']]}" for name in shown]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(shown)]
    for method in rows:
        cells = [cell(method["id"], name) for name in shown]
        lines.append(f"| {method['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def duels(report: dict[str, Any], dataset: str) -> str:
    """Ours against Real-ESRGAN x4plus on the same pictures: wins, and the mean difference."""
    titles = {m["id"]: m["title"] for m in report["methods"]}
    digits = {m["name"]: m["digits"] for m in report["metrics"]}
    lines: list[str] = []
    for method in (m for m in report["methods"] if m["kind"] == "model"):
        won: list[str] = []
        for name in DUELS:
            for pair in report["paired"].get(dataset, {}).get(name, []):
                if {titles[pair["a"]], titles[pair["b"]]} != {method["title"], RIVAL}:
                    continue
                if pair["low"] is None:  # a single picture
                    continue
                sign = 1 if pair["a"] == method["id"] else -1
                low, high = sorted((sign * pair["low"], sign * pair["high"]))
                wins = pair["wins"] if sign == 1 else pair["count"] - pair["wins"]
                d = digits[name]
                won.append(
                    f"{_title(report, name)} {sign * pair['mean']:+.{d}f} "
                    f"[{low:+.{d}f}, {high:+.{d}f}], better on {wins} of {pair['count']}"
                )
        if won:
            lines.append(f"- {method['title']}: {'; '.join(won)}")
    head = f"Difference from {RIVAL} on the same pictures, with its 95 % interval:\n\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def change_lines(report: dict[str, Any], dataset: str) -> str:
    """How far more steps move the pictures."""
    titles = {m["id"]: m["title"] for m in report["methods"]}
    texts = [
        f"{titles[method]}: {math.fsum(values.values()) / len(values):.2f}"
        for method, values in report.get("changes", {}).get(dataset, {}).items()
        if values
    ]
    if not texts:
        return ""
    head = "Mean absolute difference from the result with the fewest steps, in 8-bit levels: "
    return head + "; ".join(texts) + ".\n"


def speed(report: dict[str, Any]) -> str:
    """Seconds and memory of this run, a by-product; docs/speed.md has figures to rely on."""
    rows = [m for m in report["methods"] if m["seconds_per_image"] is not None]
    if not rows:
        return ""
    made = report["made_by"]
    lines = [
        "## Speed in this run\n",
        f"On {made['threads']} thread{'s' * (made['threads'] != 1)} of a machine that did other "
        "work too; [speed.md](speed.md) compares with care.\n",
        "| | s per picture | MP/s | peak memory, GiB |",
        "|---|---:|---:|---:|",
    ]
    for m in rows:
        peak = m["peak_memory_bytes"]
        memory = "–" if peak is None else f"{peak / 2**30:.2f}"  # noqa: RUF001
        lines.append(
            f"| {m['title']} | {m['seconds_per_image']:.2f} | {m['megapixels_per_second']:.2f} | "
            f"{memory} |"
        )
    return "\n".join(lines) + "\n"


def gallery(report: dict[str, Any]) -> str:
    """The picture rows with their attribution."""
    titles = {m["id"]: m["title"] for m in report["methods"]}
    entries = report["gallery"]
    lines = [
        "## Pictures\n",
        "Every fifth picture of the first set, the 256x256 with the most detail, at 100 %: "
        f"bicubic, {titles[entries[0]['shown']]}, original.\n",
    ]
    for entry in entries:
        origin = (
            f"{entry.get('source', 'unknown source')}, {entry.get('licence', 'unknown licence')}"
        )
        lines.append(f"![{entry['image']}](pictures/{entry['file']})\n")
        lines.append(
            f"*{entry['image']}*: {origin}; cropped at ({entry['left']}, {entry['top']}), degraded "
            "and restored, under the same licence\n"
        )
    return "\n".join(lines)


def footnotes(report: dict[str, Any]) -> str:
    """How the rows were made, and what was left out."""
    kinds = {"folder": "measured here on stored pictures", "scores": "taken from stored figures"}
    lines = ["## How these were made\n"]
    for method in report["methods"]:
        details = method["details"]
        if method["kind"] == "model":
            how = (
                f"weights {method['sha256'][:12]}, fidelity {details['fidelity']:g}, colour fix "
                f"{details['color']}, seed {details['seed']}, {details['dtype']} on "
                f"{details['device']}"
            )
        else:
            how = kinds.get(method["kind"]) or ", ".join(str(v) for v in details.values())
        lines.append(f"- {method['title']}: {how}")
    made = report["made_by"]
    lines.append(f"- addsr {made['addsr']}, torch {made['torch']}, Python {made['python']}")
    for metric in report["metrics"]:
        if metric["missing"]:
            lines.append(f"- not measured: {metric['missing']}")
    for problem in report["problems"]:
        lines.append(f"- {problem['dataset']}, {problem['image']}: {problem['problem']}")
    return "\n".join(lines) + "\n"


def _title(report: dict[str, Any], name: str) -> str:
    return next(metric["title"] for metric in report["metrics"] if metric["name"] == name)


def _number(value: float | str | None, digits: int) -> str:
    if value is None or isinstance(value, str):
        return value or "–"  # noqa: RUF001
    return f"{value:.{digits}f}"


def _is_mild(stem: str) -> bool:
    digits = "".join(c for c in stem if c.isdigit())
    return bool(digits) and int(digits) % 2 == 0
