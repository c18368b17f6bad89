from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from addsr.errors import InputError
from addsr.evaluate.elsewhere import read_scores


def write(tmp_path: Path, value: object) -> str:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_figures_are_read_under_our_names(tmp_path: Path) -> None:
    row = {
        "psnr": 20, "ssim": 0.5, "niqe": 4.5, "niqe-yiq": 4.4, "piqe": 30.0, "lrpsnr": 27.0,
        "grad": 7.0, "grad/hr": 0.7, "hf": 3.0, "hf/hr": 0.2, "MUSIQ": 60.0, "speed": 1.0,
    }  # fmt: skip
    place = write(tmp_path, {"set": {"method": {"a.png": row, "b.c": {"psnr_y": None}}}})
    rows, unknown = read_scores(f"{place}#set/method")
    assert rows["a"] == {
        "psnr-y": 20.0, "ssim-y": 0.5, "niqe": 4.5, "niqe-yiq": 4.4, "piqe": 30.0, "lr-psnr": 27.0,
        "gradient-levels": 7.0, "gradient": 0.7, "hf": 3.0, "musiq": 60.0,
    }  # fmt: skip
    assert math.isnan(rows["b.c"]["psnr-y"]) and unknown == ["speed"]


def test_a_report_of_ours_can_be_read_again(tmp_path: Path) -> None:
    scores = {"psnr-y": {"mean": 1, "images": {"a": 1.5, "b": "inf"}}, "hf": {"images": {"a": 2}}}
    place = write(tmp_path, {"scores": {"d": {"m": scores}}})
    rows, _ = read_scores(f"{place}#scores/d/m")
    assert rows == {"a": {"psnr-y": 1.5, "hf": 2.0}, "b": {"psnr-y": math.inf}}


@pytest.mark.parametrize(
    ("value", "inside", "message"),
    [
        ({"a": {}}, "#b", "has no 'b' on the path 'b'; there are a"),
        ({"a": 3}, "#a/b", "has no 'b' on the path 'a/b'"),
        ({"a": 3}, "", "holds no table"),
        ({"a": {"psnr": "high"}}, "", "holds no table"),
        ({"a": {"psnr": True}}, "", "holds no table"),
        ([], "", "holds no table"),
        ({"hf": {"images": {"a": 1}}, "psnr": {"images": 3}}, "", "holds no table"),
        ({"a": {"psnr": 10**400}}, "", "holds no table"),
    ],
)
def test_places_without_figures_are_refused(
    tmp_path: Path, value: object, inside: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_scores(write(tmp_path, value) + inside)


def test_files_that_are_no_json_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_scores(str(tmp_path / "x.json"))
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(str(tmp_path / "gone.json"))
