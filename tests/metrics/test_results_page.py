"""The makers of docs/results.md and of the CPU figures (benchmarks/)."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

ROOT = Path(__file__).parents[2]
MODULES = ("pictures", "results_page", "results", "rrdbnet", "cpu")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, found as they are when run as `python benchmarks/NAME.py`."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in MODULES:
            sys.modules.pop(name, None)


def save(path: Path, side: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)


@pytest.fixture
def val(tmp_path: Path) -> Path:
    root = tmp_path / "val"
    scores: dict[str, Any] = {"synthetic": {"realesr-general-x4v3": {}}, "real_lr_crops": {}}
    for i in range(6):
        save(root / "hr" / f"val_{i:02}.png", 64, i)
        save(root / "lr" / f"val_{i:02}.png", 16, 10 + i)
        save(root / f"peers/realesrgan-x4plus/synthetic/val_{i:02}.png", 64, 20 + i)
        scores["synthetic"]["realesr-general-x4v3"][f"val_{i:02}"] = {"psnr": 20 + i, "niqe": 5.0}
    save(root / "real_lr_crops" / "street.png", 16, 40)
    save(root / "peers/realesrgan-x4plus/real_lr_crops/street.png", 64, 41)
    scores["real_lr_crops"]["realesr-general-x4v3"] = {"street": {"piqe": 20.0}}
    (root / "peer_scores.json").write_text(json.dumps(scores))
    (root / "MANIFEST.csv").write_text(
        "file,kind,source_repo,source_path,licence,width,height,bytes\n"
        "hr/val_00.png,HR,somebody/pictures,one.png,CC-BY 4.0,64,64,1\n"
        "real_lr/street.jpg,real,somebody/else,street.jpg,unknown,9,9,1\n"
    )
    return root


@pytest.fixture
def docs(benchmarks: dict[str, ModuleType], val: Path, tmp_path: Path) -> Path:
    tiny = CompactConfig(
        widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
        time_channels=32, lr_channels=8,
    )  # fmt: skip
    net = CompactNet(tiny)
    torch.nn.init.normal_(net.decoder.out.weight, std=0.05)  # results that depend on the steps
    path = tmp_path / "tiny.safetensors"
    save_weights(path, net.state_dict(), {"kind": "compact", "config": tiny.to_dict()})
    folder, sheets = tmp_path / "docs", tmp_path / "sheets"
    arguments = ["--val", str(val), "--docs", str(folder), "--sheets", str(sheets)]
    arguments += ["--work", str(tmp_path / "work"), "--model", str(path), "--steps", "1,2"]
    benchmarks["results"].main([*arguments, "--device", "cpu"])
    return folder


def test_one_command_makes_json_page_and_pictures(docs: Path) -> None:
    data = json.loads((docs / "results.json").read_text())
    rows = data["scores"]["synthetic"]
    ids = [method["id"] for method in data["methods"]]
    titles = ["Real-ESRGAN x4plus", "bicubic", "realesr-general-x4v3", "tiny, 1 step"]
    assert sorted(method["title"] for method in data["methods"]) == [*titles, "tiny, 2 steps"]
    assert all(rows[key]["psnr-y"]["count"] == 6 for key in ids)
    assert data["pictures"] == {}
    moved = data["changes"]["synthetic"]
    assert list(moved) == ["tiny-2"]
    assert all(value > 0 for value in moved["tiny-2"].values())
    page = (docs / "results.md").read_text()
    assert "| realesr-general-x4v3 | 22.50" in page
    assert "| tiny, 1 step |" in page
    assert "- tiny, 2 steps: SSIM-Y" in page
    assert str(docs.parent) not in page + (docs / "results.json").read_text()


def test_the_page_comes_from_the_json_alone(docs: Path, benchmarks: dict[str, ModuleType]) -> None:
    page = (docs / "results.md").read_text()
    (docs / "results.md").unlink()
    benchmarks["results"].main(["--render-only", "--docs", str(docs)])
    assert (docs / "results.md").read_text() == page


def test_picture_rows_hold_no_stored_result_and_are_attributed(docs: Path) -> None:
    shown = sorted(p.name for p in (docs / "pictures").iterdir())
    assert shown == ["val_00.webp", "val_05.webp"]  # every fifth, and no picture of unknown licence
    with Image.open(docs / "pictures" / "val_00.webp") as row:
        assert row.size == (3 * 64 + 2 * 8, 64)  # bicubic, model, original
    assert "somebody/pictures: one.png, CC-BY 4.0" in (docs / "results.md").read_text()


def test_sheets_show_every_method_of_every_picture(docs: Path) -> None:
    sheets = docs.parent / "sheets"
    assert len(list(sheets.iterdir())) == 7
    with Image.open(sheets / "synthetic-val_01.png") as page:
        assert page.size == (5 * 64 + 4 * 8, 64 + 20)  # bicubic, x4plus, two models, original
    with Image.open(sheets / "real_lr_crops-street.png") as page:
        assert page.size == (4 * 64 + 3 * 8, 64 + 20)  # there is no original


def test_the_busiest_window_is_where_the_detail_is(benchmarks: dict[str, ModuleType]) -> None:
    image = torch.full((1, 3, 256, 256), 0.5)
    image[..., 130:180, 70:120] = torch.rand(1, 3, 50, 50)
    assert benchmarks["pictures"].busiest_window(image, 64) in {(128, 64), (128, 32), (96, 64)}


@pytest.mark.skipif(
    not (ROOT / "docs" / "results.json").is_file() or not (ROOT / "docs" / "results.md").is_file(),
    reason="docs/results.json or docs/results.md is not there yet",
)
def test_the_results_page_matches_its_figures(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    docs = ROOT / "docs"
    files: list[str] = []
    for name in ("results.json", "time-aware.json", "ablation.json"):
        if (docs / name).is_file():
            shutil.copy(docs / name, tmp_path / name)
            entries = json.loads((docs / name).read_text(encoding="utf-8"))["gallery"]
            files += [file for one in entries for file in one.get("files") or [one["file"]]]
    benchmarks["results"].main(["--render-only", "--docs", str(tmp_path)])
    page = (docs / "results.md").read_text(encoding="utf-8")
    assert page == (tmp_path / "results.md").read_text(encoding="utf-8")
    assert files and all((docs / "pictures" / file).is_file() for file in files)


def test_the_rival_has_the_size_of_real_esrgan(benchmarks: dict[str, ModuleType]) -> None:
    size = benchmarks["cpu"].count("rrdbnet")
    assert size["parameters"] == 16_697_987
    assert size["gmac"] == pytest.approx(293.7, abs=0.5)


def test_the_shipped_network_stays_within_its_budget(benchmarks: dict[str, ModuleType]) -> None:
    size = benchmarks["cpu"].count("compact")
    assert size["mb_fp16"] <= 50
    assert size["gmac"] <= 60


def test_the_rival_enlarges_four_times_and_tiles_as_we_do(
    benchmarks: dict[str, ModuleType],
) -> None:
    net = benchmarks["rrdbnet"].RRDBNet(blocks=1, channels=8, growth=4)
    cpu = benchmarks["cpu"]
    engine = cpu.Engine(net, torch.device("cpu"), torch.float32)
    lr = cpu.picture(150)
    whole = cpu.upscale(engine, lr, 1, 512).int()
    tiled = cpu.upscale(engine, lr, 1, 128).int()
    assert whole.shape == (1, 3, 600, 600)
    assert whole.unique().numel() > 2
    assert (whole - tiled).abs().max() <= 1  # its view is narrower than the halo at one block


def test_the_cpu_table_gives_ratios(benchmarks: dict[str, ModuleType]) -> None:
    runs = {
        "rrdbnet": {"seconds": 8.0, "mib": 300.0},
        "compact-1": {"seconds": 2.0, "mib": 150.0},
    }
    text = benchmarks["cpu"].table(
        {
            "cases": [{"dtype": "bf16", "side": 128, "runs": runs}],
            "nets": {"compact": {"gmac": 57.3, "parameters": 24.0e6, "mb_fp16": 48.0}},
            "machine": {"cpu": "a CPU", "threads": 2, "torch": "2.13"},
            "tile": 256,
        }
    )
    assert "| bf16 | 128 -> 512 | compact-1 | 2.00 | 4.00 | 150 | 0.50 |" in text
