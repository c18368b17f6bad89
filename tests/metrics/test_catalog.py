from __future__ import annotations

from pathlib import Path

import pytest

from addsr.errors import OptionError
from addsr.metrics.catalog import CATALOG, choose_metrics

NAMES = (
    "psnr-y ssim-y psnr-rgb ms-ssim gmsd haarpsi lpips-alex lpips-vgg dists lr-psnr niqe niqe-yiq "
    "niqe-addsr piqe brisque musiq maniqa clipiqa swd fd-phi kid-phi fid spectrum laplacian-flat "
    "laplacian-edge laplacian-texture gradient gradient-levels hf"
)


def test_every_metric_says_what_it_is() -> None:
    assert list(CATALOG) == NAMES.split()
    titles = [metric.title for metric in CATALOG.values()]
    assert len(set(titles)) == len(titles)
    for name, metric in CATALOG.items():
        assert metric.name == name and metric.note and ".." in metric.range
        assert set(metric.needs) <= {"hr", "lr"}
        assert (metric.aspect == "fidelity") <= ("hr" in metric.needs)
        assert (metric.aspect == "consistency") == ("lr" in metric.needs)


def test_what_other_packages_compute_is_not_called_verified() -> None:
    assert [m.name for m in CATALOG.values() if not m.verified] == [
        "musiq",
        "maniqa",
        "clipiqa",
        "fid",
    ]


def test_groups_and_names_can_be_mixed_and_come_in_the_order_of_the_catalog() -> None:
    assert [m.name for m in choose_metrics(["hf", " PSNR-Y ", "hf"])] == ["psnr-y", "hf"]
    defaults = choose_metrics(["default"])
    assert all(metric.default for metric in defaults)
    assert [m.name for m in choose_metrics(["gmsd", "default"])] == [
        name for name in CATALOG if CATALOG[name].default or name == "gmsd"
    ]
    assert choose_metrics(["all"]) == list(CATALOG.values())


@pytest.mark.parametrize(("names", "message"), [(["psnr"], "'psnr' is unknown"), ([""], "none")])
def test_unknown_or_no_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_metrics(names)


def test_the_documentation_lists_every_metric_with_its_range() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, metric in CATALOG.items():
        assert name in rows, f"docs/evaluation.md has no row for {name}"
        assert metric.title in rows[name]
        assert f"| {metric.range} |" in rows[name]
