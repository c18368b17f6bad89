"""Where the weights of LPIPS and DISTS are looked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from addsr.errors import ModelError, OptionError
from addsr.models import metric_weights
from addsr.models.metric_weights import (
    METRIC_FILES,
    find_metric_weights,
    missing_metric_weights,
)

VGG, HEADS, DISTS = "vgg16-397923af.pth", "LPIPS_v0.1_vgg-a78928a0.pth", "weights.pt"


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caches but those a test fills, and no installed packages."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(metric_weights, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(metric_weights, "find_spec", lambda _: None)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_are_found_in_the_folder_under_their_published_names(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    vgg, own = touch(folder / VGG), touch(folder / DISTS)
    assert find_metric_weights("dists", folder) == (vgg, own)
    assert missing_metric_weights("dists", folder) is None


def test_what_is_missing_says_which_file_comes_from_where(tmp_path: Path) -> None:
    touch(tmp_path / VGG)
    missing = missing_metric_weights("lpips-vgg", tmp_path)
    assert missing is not None
    assert missing.startswith("lpips-vgg: the heads of LPIPS v0.1 for VGG16 is missing; download")
    assert "https://github.com/richzhang/PerceptualSimilarity/raw/master" in missing
    assert HEADS in missing and str(tmp_path) in missing and "AlexNet" not in missing
    with pytest.raises(ModelError, match=r"torchvision's AlexNet .*--metric-weights; .*heads"):
        find_metric_weights("lpips-alex")


@pytest.mark.parametrize("cache", ["checkpoints", "pyiqa"])
def test_the_caches_of_torchvision_and_pyiqa_are_looked_through(tmp_path: Path, cache: str) -> None:
    place = tmp_path / "torch" / "hub" / cache
    vgg, heads = touch(place / VGG), touch(place / HEADS)
    assert find_metric_weights("lpips-vgg") == (vgg, heads)


def test_names_that_say_little_count_in_the_given_folder_only(tmp_path: Path) -> None:
    place = tmp_path / "torch" / "hub" / "checkpoints"
    touch(place / VGG)
    touch(place / DISTS)
    assert missing_metric_weights("dists") is not None
    assert missing_metric_weights("dists", place) is None


def test_the_hub_cache_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repository: str, name: str) -> str:
        return str(touch(tmp_path / repository / name))

    monkeypatch.setattr(metric_weights, "try_to_load_from_cache", cached)
    vgg, heads = find_metric_weights("lpips-vgg")
    assert vgg.parts[-3:] == ("timm", "vgg16.tv_in1k", "model.safetensors")
    assert heads.name == HEADS
    assert missing_metric_weights("lpips-alex", None) is not None  # AlexNet is not on the hub


def test_installed_packages_lend_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = touch(tmp_path / "site" / "lpips" / "weights" / "v0.1" / "vgg.pth")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "site" / "lpips")])
    monkeypatch.setattr(
        metric_weights, "find_spec", lambda package: spec if package == "lpips" else None
    )
    vgg = touch(tmp_path / VGG)
    assert find_metric_weights("lpips-vgg", tmp_path) == (vgg, heads)


def test_a_module_without_a_spec_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ValueError("lpips.__spec__ is None")

    monkeypatch.setattr(metric_weights, "find_spec", refuse)
    assert missing_metric_weights("lpips-alex") is not None


def test_fetching_asks_the_hub_for_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vgg, asked = touch(tmp_path / VGG), []

    def fetch(*place: str) -> str:
        asked.append(place)
        return str(tmp_path / place[1])

    monkeypatch.setattr(metric_weights, "hf_hub_download", fetch)
    found = find_metric_weights("dists", tmp_path, fetch=True)
    assert found == (vgg, tmp_path / "DISTS_weights-f5e65c96.pth")
    assert asked == [("chaofengc/IQA-PyTorch-Weights", "DISTS_weights-f5e65c96.pth")]


def test_an_unreachable_hub_and_a_file_that_is_not_on_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> str:
        raise OSError("offline mode is enabled\nmore")

    monkeypatch.setattr(metric_weights, "hf_hub_download", fail)
    with pytest.raises(
        ModelError,
        match=r"timm/vgg16\.tv_in1k/model\.safetensors cannot be fetched \(offline mode is enab"
        r"led\); or by hand: torchvision's VGG16 is missing; download https://download\.pytorch",
    ):
        find_metric_weights("dists", tmp_path, fetch=True)
    with pytest.raises(ModelError, match="lpips-alex: torchvision's AlexNet is missing"):
        find_metric_weights("lpips-alex", tmp_path, fetch=True)


def test_other_metrics_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"metric: 'fid' .*lpips-alex, lpips-vgg, dists"):
        find_metric_weights("fid")
    assert set(METRIC_FILES) == {"lpips-alex", "lpips-vgg", "dists"}
