"""Our figures of Real-ESRGAN's stored pictures beside those that others' code gives them.

The pictures lie outside the repository: `data/val` in ADDSR_REFERENCE_DIR, or beside the folder of
ADDSR_NIQE_PARAMS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from addsr.metrics import (
    gradient,
    high_frequency_share,
    load_niqe_params,
    lr_psnr,
    niqe,
    piqe,
    psnr_y,
    ssim_y,
)
from addsr.metrics.pictures import read_picture

TOLERANCE = 5e-3
INPUTS = {"synthetic": "lr", "real_lr_crops": "real_lr_crops"}


def validation_folder() -> Path | None:
    roots = [Path(os.environ.get("ADDSR_REFERENCE_DIR", "-")) / "data" / "val"]
    if params := os.environ.get("ADDSR_NIQE_PARAMS"):
        roots.append(Path(params).resolve().parents[1] / "val")
    return next((root for root in roots if (root / "peer_scores.json").is_file()), None)


def parameters_file(val: Path) -> Path:
    stated = os.environ.get("ADDSR_NIQE_PARAMS", "")
    return Path(stated) if stated else val.parent / "reference" / "niqe_pris_params.npz"


@pytest.fixture(scope="module")
def val() -> Path:
    folder = validation_folder()
    if folder is None:
        pytest.skip("set ADDSR_REFERENCE_DIR to the folder of data/val and data/reference")
    return folder


def worst_differences(val: Path, set_name: str, every: int) -> dict[str, tuple[float, str]]:
    """Metric -> (largest relative difference, picture) over every nth picture of a set."""
    scores = json.loads((val / "peer_scores.json").read_text())[set_name]["realesrgan-x4plus"]
    params = load_niqe_params(parameters_file(val))
    worst: dict[str, tuple[float, str]] = {}
    for name in sorted(scores)[::every]:
        sr = read_picture(val / "peers" / "realesrgan-x4plus" / set_name / f"{name}.webp")
        lr = read_picture(val / INPUTS[set_name] / f"{name}.webp")
        measures: dict[str, Callable[[], Tensor]] = {
            "niqe": lambda sr=sr: niqe(sr, params),
            "niqe-yiq": lambda sr=sr: niqe(sr, params, luma="yiq"),
            "piqe": lambda sr=sr: piqe(sr),
            "lrpsnr": lambda sr=sr, lr=lr: lr_psnr(sr, lr),
            "grad": lambda sr=sr: gradient(sr),
            "hf": lambda sr=sr: high_frequency_share(sr),
        }
        if (hr_file := val / "hr" / f"{name}.webp").is_file():
            hr = read_picture(hr_file)
            measures |= {
                "psnr": lambda sr=sr, hr=hr: psnr_y(sr, hr),
                "ssim": lambda sr=sr, hr=hr: ssim_y(sr, hr),
                "grad/hr": lambda sr=sr, hr=hr: gradient(sr) / gradient(hr),
                "hf/hr": lambda sr=sr, hr=hr: high_frequency_share(sr) / high_frequency_share(hr),
            }
        assert set(measures) == set(scores[name])
        for key, measure in measures.items():
            difference = abs(float(measure()) - scores[name][key]) / abs(scores[name][key])
            worst[key] = max(worst.get(key, (0.0, "")), (difference, name))
    return worst


@pytest.mark.parametrize(("set_name", "every"), [("synthetic", 8), ("real_lr_crops", 5)])
def test_figures_of_stored_pictures_are_those_of_others(
    val: Path, set_name: str, every: int
) -> None:
    wrong = {k: v for k, v in worst_differences(val, set_name, every).items() if v[0] > TOLERANCE}
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("set_name", list(INPUTS))
def test_figures_of_all_stored_pictures_are_those_of_others(val: Path, set_name: str) -> None:
    worst = worst_differences(val, set_name, every=1)
    for key, (difference, name) in sorted(worst.items()):
        print(f"{set_name} {key}: {difference:.1e} ({name})")
    assert not {key: value for key, value in worst.items() if value[0] > TOLERANCE}
