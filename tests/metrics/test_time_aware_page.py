"""The comparison of ways of conditioning, from weights to its section of docs/results.md."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.models.files import load_weights, save_weights
from addsr.nets import CompactConfig, CompactNet

ROOT = Path(__file__).parents[2]
MODULES = (
    "pictures", "results_page", "score_tables", "scoring", "time_aware_page", "ablation_page",
    "results", "time_aware",
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield [importlib.import_module(name) for name in MODULES][-1]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in MODULES:
            sys.modules.pop(name, None)


def save(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)


@pytest.fixture
def nets(tmp_path: Path) -> list[str]:
    options: list[str] = []
    for name in ("concat", "time-aware"):
        config = CompactConfig(
            widths=(16, 16, 16), depths=(1, 1, 1), decoder_widths=(16, 16, 16), decoder_depth=1,
            context_channels=8, time_channels=32, conditioning=name, guide_channels=16,
        )  # fmt: skip
        metadata = {"kind": "compact", "config": config.to_dict(), "step": "7"}
        save_weights(tmp_path / f"{name}.st", CompactNet(config).state_dict(), metadata)
        options += ["--net", f"{name}={tmp_path / name}.st"]
    return options


def test_the_section_has_every_setting_and_its_pictures(
    benchmark: Any, nets: list[str], tmp_path: Path
) -> None:
    val, docs = tmp_path / "val", tmp_path / "docs"
    for k in range(2):
        save(val / "hr" / f"{k}.png", 96, 192, k)
        save(val / "lr" / f"{k}.png", 24, 48, k + 5)
    save(val / "real_lr_crops" / "a.png", 13, 17, 9)  # no multiples, and too small for NIQE
    (docs).mkdir()
    options = ["--steps", "1,2", "--fidelities", "0,0.5,1", "--docs", str(docs)]
    options += ["--minutes", "12", "--batch", "4"]
    assert benchmark.main([*nets, "--val", str(val), *options]) == 0
    data = json.loads((docs / "time-aware.json").read_text())
    assert data["nets"]["time-aware"]["crops"] == 28
    assert set(data["scores"]["synthetic"]["concat"]) == {
        f"{n}/{w}" for n in (1, 2) for w in ("0", "0.5", "1")
    }
    real = data["scores"]["real_lr_crops"]["time-aware"]["2/0.5"]
    assert set(real) == {"lr-psnr"}
    figures = data["scores"]["synthetic"]["time-aware"]["1/1"]
    assert set(figures) == {"psnr-y", "ssim-y", "lr-psnr", "niqe-addsr", "gradient"}
    assert len(figures["psnr-y"]["images"]) == 2
    for file in data["gallery"][0]["files"]:
        assert (docs / "pictures" / file).is_file()
    text = sys.modules["time_aware_page"].render(data)
    assert "(12 minutes)" in text
    assert text.count("| time-aware, w = ") == 6
    assert "- 2 steps: SSIM-Y " in text and "Gradient ratio " in text
    assert str(tmp_path) not in text


def test_pictures_without_two_whole_blocks_get_no_niqe(benchmark: Any) -> None:
    models = {"niqe-addsr": sys.modules["scoring"].niqe_models(None)["niqe-addsr"]}
    for height, width, told in ((160, 160, False), (96, 192, True), (92, 400, False)):
        sr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        lr = torch.nn.functional.avg_pool2d(sr, 4)
        figures = sys.modules["scoring"].measure(sr, lr, None, models)
        assert ("niqe-addsr" in figures) is told


def test_weights_averaged_over_runs_have_the_steps_of_all(
    benchmark: Any, nets: list[str], tmp_path: Path
) -> None:
    state, metadata = load_weights(tmp_path / "concat.st")
    save_weights(tmp_path / "mean.st", state, {**metadata, "step": "5776+3000"})
    assert benchmark.load_net(tmp_path / "mean.st", 2)[1]["crops"] == 2 * 8776
    save_weights(tmp_path / "new.st", state, {**metadata, "step": "unknown"})
    assert benchmark.load_net(tmp_path / "new.st", 2)[1]["crops"] == 0


def test_scores_of_the_first_set_outlive_a_failure_in_the_second(
    benchmark: Any, nets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = tmp_path / "val"
    save(val / "hr" / "0.png", 32, 32, 0)
    save(val / "lr" / "0.png", 8, 8, 1)
    save(val / "real_lr_crops" / "a.png", 8, 8, 2)
    real = benchmark.restore

    def failing(net: Any, lr: Any, steps: int, fidelities: Any, seed: int) -> Any:
        if (tmp_path / "docs" / "time-aware.json").is_file():
            raise KeyboardInterrupt
        return real(net, lr, steps, fidelities, seed)

    monkeypatch.setattr(benchmark, "restore", failing)
    options = ["--steps", "1", "--fidelities", "0.5", "--docs", str(tmp_path / "docs")]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main([*nets, "--val", str(val), *options])
    data = json.loads((tmp_path / "docs" / "time-aware.json").read_text())
    assert list(data["scores"]) == ["synthetic"]
    assert sys.modules["time_aware_page"].render(data)


def test_a_page_without_figures_is_refused(benchmark: Any, tmp_path: Path, capsys: Any) -> None:
    assert benchmark.main(["--render-only", "--docs", str(tmp_path)]) == 1
    assert "no results.json" in capsys.readouterr().err


def test_what_cannot_be_scored_is_told(
    benchmark: Any, nets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert benchmark.main([*nets, "--val", str(empty), "--docs", str(tmp_path)]) == 1
    assert "neither lr/ with hr/" in capsys.readouterr().err
    assert benchmark.main(["--net", "concat", "--val", str(empty)]) == 1
    assert "'concat' is not NAME=FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--val", str(empty), "--default", "0.3", *nets])
