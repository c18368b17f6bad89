"""The ablation, from weights to its section of docs/results.md."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS
from addsr.models.files import save_weights
from addsr.nets import CompactConfig, CompactNet

ROOT = Path(__file__).parents[2]
MODULES = (
    "pictures", "score_tables", "scoring", "results_page", "time_aware_page", "ablation_page",
    "ablation_rows", "results", "ablation",
)  # fmt: skip
ARMS = ("baseline", "baseline-1", "constant", "no-refinement")
OPTIONS = ("--steps", "1,2", "--weights", "0,0.5,1", "--fidelities", "0.5,0.8", "--batch", "4")


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


def save_net(path: Path, seed: int) -> None:
    config = CompactConfig(
        widths=(16, 16, 16), depths=(1, 1, 1), decoder_widths=(16, 16, 16), decoder_depth=1,
        context_channels=8, time_channels=32,
    )  # fmt: skip
    net, dice = CompactNet(config), torch.Generator().manual_seed(seed)
    for parameter in net.parameters():  # fresh networks all give their input back
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=dice)
    metadata = {"kind": "compact", "config": config.to_dict(), "step": "7"}
    save_weights(path, net.state_dict(), metadata)


@pytest.fixture(scope="module")
def scored(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which four arms have been scored on two pictures, and one without reference."""
    root = tmp_path_factory.mktemp("ablation")
    for k in range(2):
        save(root / "val/hr" / f"{k}.png", 96, 192, k)
        save(root / "val/lr" / f"{k}.png", 24, 48, k + 5)
    save(root / "val/real_lr_crops/a.png", 13, 17, 9)  # no multiples, and too small for NIQE
    for seed, arm in enumerate(ARMS):
        save_net(root / f"{arm}.st", seed)
    # in two calls, as two leases of a machine would
    for arms in (ARMS[:2], ARMS[2:]):
        nets = [text for arm in arms for text in ("--net", f"{arm}={root / arm}.st")]
        places = ["--val", str(root / "val"), "--scores", str(root / "scores")]
        assert benchmark.main([*nets, *places, "--docs", str(root / "docs"), *OPTIONS]) == 0
    return root


def figures_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "docs/ablation.json").read_text())


def test_every_setting_of_every_arm_is_scored(scored: Path) -> None:
    data = figures_of(scored)
    assert list(data["arms"]) == list(ARMS)
    table = data["arms"]["constant"]["scores"]
    curve = ("0.5", "0.8")
    assert set(table["synthetic"]) == {
        *(f"1/0/{f}" for f in curve),
        *(f"2/{w}/{f}" for w in ("0", "0.5") for f in curve),
        "2/1/0.5",
    }
    figures = table["synthetic"]["2/0.5/0.5"]
    assert set(figures) == {"psnr-y", "ssim-y", "lr-psnr", "niqe-addsr", "gradient"}
    assert all(len(values) == 2 for values in figures.values())
    assert set(table["real_lr_crops"]["1/0/0.5"]) == {"lr-psnr"}
    assert data["arms"]["baseline"]["facts"]["crops"] == 28


def test_a_setting_is_what_the_sampler_gives(benchmark: Any, scored: Path) -> None:
    net, _ = benchmark.load_net(scored / "baseline.st", 1)
    lr = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    got = benchmark.restore(net, lr, 4, 0.25, (0.5, 0.8), 3)
    for sr, fidelity in zip(got, (0.5, 0.8), strict=True):
        expected = sample_addsr(net, lr, noise, LEVELS[4], psr_weight=0.25, fidelity=fidelity)
        torch.testing.assert_close(sr[None], expected, atol=0.6 / 255, rtol=0)


def test_differences_are_from_both_seeds_and_at_each_arms_own_weight(scored: Path) -> None:
    data = figures_of(scored)

    def ssim(arm: str, setting: str) -> Any:
        return np.array(data["arms"][arm]["scores"]["synthetic"][setting]["ssim-y"])

    entries = {
        (e["arm"], e["steps"]): e
        for e in data["differences"]
        if e["dataset"] == "synthetic" and e["metric"] == "ssim-y"
    }
    assert set(entries) == {(arm, n) for arm in ARMS[2:] for n in (1, 2)}
    first, second = (ssim(arm, "2/0.5/0.5") for arm in ARMS[:2])
    entry = entries["no-refinement", 2]
    expected = (ssim("no-refinement", "2/0/0.5") - (first + second) / 2).mean()
    assert entry["mean"] == pytest.approx(expected, abs=1e-9)
    assert entry["seeds"] == pytest.approx(abs(first.mean() - second.mean()), abs=1e-9)
    swept = [e for e in data["refinement"] if (e["arm"], e["metric"]) == ("baseline", "ssim-y")]
    assert [(e["steps"], e["weight"]) for e in swept if e["dataset"] == "synthetic"] == [
        (2, 0.5), (2, 1.0)
    ]  # fmt: skip
    assert swept[0]["mean"] == pytest.approx((first - ssim("baseline", "2/0/0.5")).mean(), abs=1e-9)


def test_the_page_has_the_claims_beside_what_was_found(benchmark: Any, scored: Path) -> None:
    text = sys.modules["ablation_page"].render(figures_of(scored))
    assert "\n| constant | Weights that grow" in text
    assert (
        "Not scored here: lr-regulated, next, next-sharpened, next-fifth, no-distillation." in text
    )
    assert "### Degraded photos with an original: self-refinement at 2 steps" in text
    assert "| no-refinement, w = 1 |" in text
    assert "SSIM-Y at the NIQE that the baseline has" in text
    assert "different numbers of steps" not in text
    assert str(scored) not in text


def test_rows_of_pictures_hold_every_arm_and_every_weight(scored: Path) -> None:
    (entry,) = figures_of(scored)["gallery"]
    sizes: list[tuple[int, int]] = []
    for file in entry["files"]:
        with Image.open(scored / "docs/pictures" / file) as row:
            sizes.append(row.size)
    columns = (len(ARMS) + 2, 1 + 3)  # with bicubic and original; one step and three weights
    assert sizes == [(n * 96 + (n - 1) * 8, 96) for n in columns]


def test_only_what_is_beyond_the_seeds_and_beyond_the_pictures_is_bold(benchmark: Any) -> None:
    told = sys.modules["ablation_page"]._told
    entry = {"metric": "ssim-y", "mean": 0.02, "low": 0.01, "high": 0.03, "seeds": 0.004}
    assert told(entry) == "**+0.020** [+0.010, +0.030] (0.004)"
    assert "**" not in told({**entry, "seeds": 0.011})
    assert "**" not in told({**entry, "low": -0.001})
    assert told({**entry, "seeds": None}) == "+0.020 [+0.010, +0.030]"


def test_a_claim_holds_as_far_as_what_follows_of_it_is_found(benchmark: Any) -> None:
    page = sys.modules["ablation_page"]

    def told(**means: float) -> str:
        names = {"ssim": "ssim-y", "lr": "lr-psnr", "gradient": "gradient"}
        entries = [
            {"arm": "constant", "dataset": "synthetic", "steps": 4, "metric": names[name],
             "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "seeds": 0.4}
            for name, mean in means.items()
        ]  # fmt: skip
        return page._verdict({"differences": entries}, "constant")

    assert told(ssim=-1, lr=-1, gradient=1) == "**yes**: 3 of 3 found"
    part = told(ssim=-0.7, lr=-1, gradient=1)  # within twice what lies between the seeds
    assert part.startswith("**in part**: 2 of 3 found; LR-PSNR at 4 steps, Gradient")
    turned = told(ssim=1, lr=-1, gradient=1)
    assert turned.startswith("**no**: 2 of 3 found") and "the reverse for SSIM" in turned
    assert told(ssim=0, lr=0) == "**no**: 0 of 2 found"
    assert told() == "not measured"


def test_the_curve_is_read_between_its_points_and_nowhere_else(benchmark: Any) -> None:
    at = sys.modules["ablation_page"]._at
    curve = [(4.0, 0.5), (5.0, 0.7)]
    assert at(curve, 4.5) == "0.600" and at(curve, 4.0) == "0.500"
    assert at(curve, 3.9) == at(curve, 5.1) == at([], 4.0) == "-"


def test_an_arm_is_compared_with_what_it_was_made_from(
    benchmark: Any, scored: Path, tmp_path: Path
) -> None:
    shutil.copytree(scored / "scores", tmp_path / "scores")
    for arm, source in (("next", "baseline"), ("next-fifth", "constant")):
        shutil.copy(scored / f"scores/{source}.json", tmp_path / f"scores/{arm}.json")
    places = ["--scores", str(tmp_path / "scores"), "--docs", str(tmp_path / "docs")]
    assert benchmark.main(places) == 0
    found = figures_of(tmp_path)
    entries = [e for e in found["differences"] if e["metric"] == "psnr-y" and e["steps"] == 1]
    assert {e["arm"] for e in entries} == {"constant", "no-refinement", "next-fifth"}
    table = {a: found["arms"][a]["scores"]["synthetic"]["1/0/0.5"]["psnr-y"] for a in ARMS}
    entry = next(e for e in entries if e["arm"] == "next-fifth")
    assert entry["mean"] == pytest.approx(np.mean(table["constant"]) - np.mean(table["baseline"]))
    seeds = abs(np.mean(table["baseline"]) - np.mean(table["baseline-1"]))
    assert entry["seeds"] == pytest.approx(seeds)


def test_scores_are_put_together_without_weights(
    benchmark: Any, scored: Path, tmp_path: Path
) -> None:
    shutil.copytree(scored / "scores", tmp_path / "scores")
    places = ["--scores", str(tmp_path / "scores"), "--docs", str(tmp_path / "docs")]
    assert benchmark.main(places) == 0
    assert figures_of(tmp_path) == figures_of(scored)
    path = tmp_path / "scores/constant.json"
    data = json.loads(path.read_text())
    data["facts"]["training_steps"] = 8
    path.write_text(json.dumps(data))
    assert benchmark.main(places) == 0
    text = sys.modules["ablation_page"].render(figures_of(tmp_path))
    assert "trained for different numbers of steps" in text


def test_without_baselines_there_are_figures_and_no_differences(
    benchmark: Any, scored: Path, tmp_path: Path
) -> None:
    (tmp_path / "scores").mkdir()
    shutil.copy(scored / "scores/constant.json", tmp_path / "scores")  # and no crops
    places = ["--scores", str(tmp_path / "scores"), "--docs", str(tmp_path / "docs")]
    assert benchmark.main(places) == 0
    data = figures_of(tmp_path)
    assert data["differences"] == data["refinement"] == data["gallery"] == []
    text = sys.modules["ablation_page"].render(data)
    assert "| constant, 2 steps |" in text and "claims" not in text


def test_arms_scored_in_different_ways_are_not_mixed(
    benchmark: Any, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scored / "scores", tmp_path / "scores")
    path = tmp_path / "scores/constant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "default": 0.8}))
    places = ["--scores", str(tmp_path / "scores"), "--docs", str(tmp_path / "docs")]
    assert benchmark.main(places) == 1
    assert "constant and baseline have different default" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


def test_what_cannot_be_scored_is_told(
    benchmark: Any, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--scores", str(tmp_path / "scores"), "--docs", str(tmp_path), "--val", str(tmp_path)]
    assert benchmark.main(places) == 1
    assert "scores: there are none" in capsys.readouterr().err
    assert benchmark.main([*places, "--net", "other=file"]) == 1
    assert "'other=file' is not ARM=FILE, ARM of baseline" in capsys.readouterr().err
    assert benchmark.main([*places, "--net", f"constant={scored / 'constant.st'}"]) == 1
    assert "neither lr/ with hr/" in capsys.readouterr().err
    assert benchmark.main(["--render-only", "--docs", str(tmp_path)]) == 1
    for wrong in (["--steps", "3"], ["--default", "0.3"], ["--net", "constant=file"]):
        with pytest.raises(SystemExit):
            benchmark.main(["--scores", str(tmp_path / "scores"), *wrong])
