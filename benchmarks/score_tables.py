"""Tables of figures on the validation pictures, for the sections that compare compact networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = {
    "psnr-y": ("PSNR-Y ↑", 2),
    "ssim-y": ("SSIM-Y ↑", 3),
    "niqe": ("NIQE ↓", 2),
    "niqe-addsr": ("NIQE (addsr) ↓", 2),
    "lr-psnr": ("LR-PSNR ↑", 2),
    "gradient": ("Gradient ratio →1", 2),
}
"""Measure -> its title and how many decimals are told."""

TITLES = {
    "synthetic": "Degraded photos with an original",
    "real_lr_crops": "Photos from the web",
}
"""Set of pictures -> its title."""


def table(rows: Iterable[tuple[str, Mapping[str, float]]]) -> str:
    """A Markdown table: title and means in each row, a column for each measure that any has."""
    listed = list(rows)
    shown = [m for m in COLUMNS if any(m in means for _, means in listed)]
    lines = [
        "| | " + " | ".join(COLUMNS[m][0] for m in shown) + " |",
        "|---|" + "---:|" * len(shown),
    ]
    for title, means in listed:
        cells = [f"{means[m]:.{COLUMNS[m][1]}f}" if m in means else "-" for m in shown]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def name_of(metric: str) -> str:
    """The title of a measure without its arrow.

    >>> name_of("ssim-y")
    'SSIM-Y'
    """
    return COLUMNS[metric][0].rpartition(" ")[0]


def steps_of(count: int) -> str:
    """A number of steps in words.

    >>> steps_of(1), steps_of(4)
    ('1 step', '4 steps')
    """
    return f"{count} step{'s' * (count != 1)}"


def credit(entry: Mapping[str, Any]) -> str:
    """The line under a picture that says where it comes from."""
    return (
        f"*{entry['image']}*: {entry.get('source', 'unknown source')}, "
        f"{entry.get('licence', 'unknown licence')}; cropped, degraded and restored, under "
        "the same licence\n"
    )


def join(parts: Iterable[str]) -> str:
    """The Markdown of `parts`: a part that ends with a line break is followed by an empty line."""
    return "\n".join(part.rstrip("\n") + ("\n" if part.endswith("\n") else "") for part in parts)
