"""The figures of an inspection as one SVG picture, which needs nothing but a browser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, PANEL_HEIGHT, GAP = 760, 190, 46
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 92, 46
COLORS = ("#0b57a4", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0e7490")
"""Of the grids; after six they repeat."""
PAPER_SNR = 5e-2
"""Where the paper sees the strongest modulation; marked by a dashed line."""
_SNR_TICKS = (100.0, 10.0, 1.0, 0.1, 5e-2, 1e-2)


@dataclass(frozen=True)
class Line:
    """One curve."""

    values: Sequence[float]
    color: str
    is_dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line]


def draw_chart(report: dict[str, Any], title: str) -> str:
    """The SVG text of what `inspect_guidance` found; noise falls from left to right."""
    rows: list[dict[str, Any]] = report["timesteps"]
    grids: list[dict[str, Any]] = report["grids"]
    panels = _panels(rows, len(grids))
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP) - GAP + BOTTOM
    timesteps = [row["timestep"] for row in rows]
    x = _Axis(max(timesteps), min(timesteps), LEFT, WIDTH - RIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 20, title, size=15),
        _legend(grids),
    ]
    tops = [TOP + k * (PANEL_HEIGHT + GAP) for k in range(len(panels))]
    bottom = tops[-1] + PANEL_HEIGHT
    for snr in _SNR_TICKS:
        place = _timestep_at(snr, rows)
        if place is None:
            continue
        color, dash = ("#ddd", "")
        if snr == PAPER_SNR:
            color, dash = ("#444", ' stroke-dasharray="5 4"')
        parts += [
            f'<line x1="{x.at(place):.1f}" y1="{top}" x2="{x.at(place):.1f}" '
            f'y2="{top + PANEL_HEIGHT}" stroke="{color}"{dash}/>'
            for top in tops
        ]
        parts.append(_text(x.at(place), TOP - 8, f"{snr:g}", anchor="middle", color="#444"))
    parts.append(_text(LEFT - 8, TOP - 8, "SNR", anchor="end", color="#444"))
    for top, panel in zip(tops, panels, strict=True):
        parts += _draw_panel(panel, timesteps, x, top)
    for timestep in _ticks(min(timesteps), max(timesteps)):
        parts.append(_text(x.at(timestep), bottom + 16, f"{timestep:g}", anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, "timestep", anchor="middle"))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _panels(rows: Sequence[dict[str, Any]], grids: int) -> list[Panel]:
    def lines(name: str, *, is_dashed: bool = False) -> list[Line]:
        return [
            Line([row["grids"][k][name] for row in rows], COLORS[k % len(COLORS)], is_dashed)
            for k in range(grids)
        ]

    return [
        Panel(
            "U-Net features: cosine before and after modulation (dashed: after normalisation)",
            [*lines("cosine"), *lines("cosine_normalised", is_dashed=True)],
        ),
        Panel(
            "Modulation: root mean square of gamma (dashed: beta)",
            [*lines("gamma"), *lines("beta", is_dashed=True)],
        ),
        Panel(
            "Encoder features: cosine with those at the largest timestep", lines("condition_cosine")
        ),
        Panel("Encoder features: sharpness", lines("condition_sharpness")),
    ]


@dataclass(frozen=True)
class _Axis:
    """From values to places in the picture; a range without extent is drawn in its middle."""

    first: float
    last: float
    start: float
    end: float

    def at(self, value: float) -> float:
        if self.last == self.first:
            return (self.start + self.end) / 2
        share = (value - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)


def _draw_panel(panel: Panel, timesteps: Sequence[int], x: _Axis, top: float) -> list[str]:
    values = [value for line in panel.lines for value in line.values]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.06
    y = _Axis(high + margin, low - margin, top, top + PANEL_HEIGHT)
    parts = [
        _text(LEFT, top - 26 if top == TOP else top - 8, panel.title, color="#111"),
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL_HEIGHT}" '
        'fill="none" stroke="#888"/>',
    ]
    for value in _ticks(low - margin, high + margin):
        place = y.at(value)
        parts.append(
            f'<line x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}" '
            'stroke="#eee"/>'
        )
        parts.append(_text(LEFT - 8, place + 4, f"{value:.4g}", anchor="end"))
    for line in panel.lines:
        points = [(x.at(t), y.at(v)) for t, v in zip(timesteps, line.values, strict=True)]
        dash = ' stroke-dasharray="4 3"' if line.is_dashed else ""
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"{dash}/>'
        )
        if len(points) == 1:
            px, py = points[0]
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{line.color}"/>')
    return parts


def _legend(grids: Sequence[dict[str, Any]]) -> str:
    parts: list[str] = []
    for k, grid in enumerate(grids):
        left = LEFT + k * 130
        color = COLORS[k % len(COLORS)]
        parts.append(
            f'<line x1="{left}" y1="40" x2="{left + 22}" y2="40" stroke="{color}" '
            'stroke-width="3"/>'
        )
        of = grid["downsampling"]
        parts.append(_text(left + 28, 44, "latent's grid" if of == 1 else f"1/{of} of it"))
    return "\n".join(parts)


def _timestep_at(snr: float, rows: Sequence[dict[str, Any]]) -> float | None:
    """Where the signal-to-noise ratio is `snr`, between two timesteps by its logarithm."""
    for a, b in itertools.pairwise(rows):  # noise falls along the rows
        if a["snr"] <= snr <= b["snr"]:
            share = math.log(snr / a["snr"]) / math.log(b["snr"] / a["snr"])
            return a["timestep"] + share * (b["timestep"] - a["timestep"])
    return None


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round values from `low` to `high`."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    for factor in (5, 2):
        if (high - low) / (step * factor) >= 3:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = "#333"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )
