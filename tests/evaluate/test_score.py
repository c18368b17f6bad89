from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.errors import InputError
from addsr.evaluate.cache import Cache
from addsr.evaluate.pairs import Pair
from addsr.evaluate.pictures import to_image
from addsr.evaluate.protocol import Dataset, Protocol
from addsr.evaluate.score import Resources, Scorer, Shot, UnreadableError, as_full_range
from addsr.evaluate.sets import Member, SetScorer
from addsr.metrics.catalog import CATALOG, choose_metrics
from addsr.metrics.distributions import Moments, frechet_distance
from addsr.metrics.phi import phi_features
from addsr.metrics.pixel import gradient, luma, psnr_y, ssim_y
from addsr.models.files import save_weights
from addsr.nets import FeatureNet, FeatureNetConfig

PROTOCOL = Protocol("p", "P", (Dataset("d", Path(), None),))
PARAMS = Path(__file__).parents[2] / "src/addsr/metrics/data/niqe_addsr.npz"


def picture(side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, side // 4, side // 4, generator=generator)
    image = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1)
    return (image * 255).round() / 255


def scorer(*names: str, protocol: Protocol = PROTOCOL) -> Scorer:
    return Scorer(choose_metrics(names), protocol, Resources())


def save(path: Path, image: Tensor) -> Path:
    path.parent.mkdir(exist_ok=True)
    to_image(image).save(path)
    return path


def test_every_metric_of_the_catalog_is_measured_or_says_what_is_missing() -> None:
    ready = scorer("all")
    found = set(ready.measures) | set(ready.sets) | set(ready.missing)
    assert found == set(CATALOG)
    for name, text in ready.missing.items():
        assert name in text and name not in ready.measures
        assert any(word in text for word in ("--", "install"))
    assert set(ready.versions) == set(CATALOG)
    needless = ready.image_metrics(has_hr=False, has_lr=True)
    assert "lr-psnr" in needless and not any("hr" in CATALOG[name].needs for name in needless)
    assert ready.set_metrics(has_hr=False) == []


def test_figures_are_those_of_the_functions_with_the_protocols_border() -> None:
    sr, hr = picture(seed=1), picture(seed=2)
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    ready = scorer("psnr-y", "gradient", "gradient-levels", "lr-psnr", "laplacian-flat", "piqe",
                   protocol=Protocol("p", "P", PROTOCOL.datasets, border=7))  # fmt: skip
    found = ready.score(Shot(sr, hr, lr), list(ready.measures))
    assert found.values["psnr-y"] == float(psnr_y(sr, hr, border=7))
    assert found.values["gradient"] == float(gradient(sr) / gradient(hr))
    assert found.values["gradient-levels"] == float(gradient(sr))
    assert set(found.values) == set(ready.measures) and not found.gaps


def test_the_other_luma_is_measured_as_if_pictures_were_gray_over_the_full_range() -> None:
    sr, hr = picture(seed=1), picture(seed=2)
    assert torch.allclose(luma(as_full_range(sr)), luma(sr, "yiq"), atol=1e-9)
    full = scorer("psnr-y", "ssim-y", protocol=Protocol("p", "P", PROTOCOL.datasets, luma="yiq"))
    found = full.score(Shot(sr, hr, None), ["psnr-y", "ssim-y"]).values
    assert found["psnr-y"] == pytest.approx(float(psnr_y(sr, hr)) - 20 * math.log10(255 / 219))
    assert found["ssim-y"] != pytest.approx(float(ssim_y(sr, hr)), abs=1e-6)


def test_what_is_undefined_for_a_picture_is_nan_with_the_reason() -> None:
    found = scorer("ms-ssim", "psnr-y").score(Shot(picture(), picture(), None), ["ms-ssim"])
    assert math.isnan(found.values["ms-ssim"]) and "160 pixels" in found.gaps["ms-ssim"]


@pytest.mark.skipif(not PARAMS.is_file(), reason="the package's own NIQE model is not there yet")
def test_a_niqe_model_that_is_given_counts_for_both_conventions() -> None:
    ready = Scorer(choose_metrics(["niqe", "niqe-yiq"]), PROTOCOL, Resources(niqe_params=PARAMS))
    sr = picture(192)
    found = ready.score(Shot(sr, None, None), ["niqe", "niqe-yiq"]).values
    assert found["niqe"] != found["niqe-yiq"]
    with pytest.raises(InputError, match="is no NIQE model"):
        Scorer(choose_metrics(["niqe"]), PROTOCOL, Resources(niqe_params=Path(__file__)))


def test_scores_come_from_the_cache_and_change_with_the_picture_and_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hr = save(tmp_path / "hr.png", picture(seed=2))
    sr = save(tmp_path / "sr.png", picture(seed=1))
    pair = Pair("a", hr, None, (64, 64), (64, 64), 4)
    names = ["psnr-y", "piqe"]
    with Cache(tmp_path / "cache") as cache:
        first, sr_hash, hr_hash = scorer(*names).score_file(sr, pair, cache, names)
        assert len(sr_hash) == len(hr_hash) == 64
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score", lambda *_: pytest.fail("measured again"))
            again, _, _ = scorer(*names).score_file(sr, pair, cache, names)
            assert again == first
        # one more metric: only that one is measured
        measured: list[Sequence[str]] = []
        usual = Scorer.score
        monkeypatch.setattr(
            Scorer, "score",
            lambda self, shot, names: (measured.append(names), usual(self, shot, names))[1],
        )  # fmt: skip
        more = [*names, "hf"]
        scorer(*more).score_file(sr, pair, cache, more)
        bordered = Protocol("p", "P", PROTOCOL.datasets, border=0)
        other, _, _ = scorer(*names, protocol=bordered).score_file(sr, pair, cache, names)
        save(sr, picture(seed=3))
        third, _, _ = scorer(*names).score_file(sr, pair, cache, names)
    assert measured == [["hf"], names, names]
    assert other.values["psnr-y"] != first.values["psnr-y"] != third.values["psnr-y"]


def test_it_is_told_whether_the_result_or_the_pair_is_at_fault(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", picture())
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    size = (64, 64)
    with Cache(tmp_path / "cache") as cache:
        with pytest.raises(UnreadableError, match="damaged"):
            scorer("psnr-y").score_file(
                good, Pair("a", bad, None, size, size, 4), cache, ["psnr-y"]
            )
        with pytest.raises(InputError, match="damaged") as told:
            scorer("psnr-y").score_file(
                bad, Pair("a", good, None, size, size, 4), cache, ["psnr-y"]
            )
        assert not isinstance(told.value, UnreadableError)
        with pytest.raises(UnreadableError, match="cannot be read"):
            pair = Pair("a", tmp_path / "gone.png", None, size, size, 4)
            scorer("psnr-y").score_file(good, pair, cache, ["psnr-y"])


# figures of sets


def in_order(function: Any, items: Sequence[Any]) -> Iterator[Any]:
    return map(function, items)


def members(folder: Path, count: int, side: int = 64) -> list[Member]:
    made: list[Member] = []
    for number in range(count):
        hr = save(folder / f"hr{number}.png", picture(side, number))
        sr = save(folder / f"sr{number}.png", (picture(side, number) * 0.8 + 0.1))
        pair = Pair(f"{number}", hr, None, (side, side), (side, side), 4)
        made.append(Member(number, pair, sr, f"sr {folder} {number}", f"hr {folder} {number}"))
    return made


def same(one: Member) -> Member:
    assert one.pair.hr is not None
    return Member(one.number, one.pair, one.pair.hr, one.hr_hash, one.hr_hash)


@pytest.fixture()
def phi(monkeypatch: pytest.MonkeyPatch) -> FeatureNet:
    torch.manual_seed(0)
    net = FeatureNet(FeatureNetConfig(widths=(8, 8, 8, 8, 8))).requires_grad_(False).eval()
    monkeypatch.setattr("addsr.models.phi.has_phi", lambda: True)
    monkeypatch.setattr("addsr.models.phi.load_phi", lambda: net)
    return net


def test_sets_of_the_same_pictures_have_no_distance(tmp_path: Path, phi: FeatureNet) -> None:
    names = ["swd", "fd-phi", "kid-phi"]
    several = members(tmp_path, 6)
    with Cache(tmp_path / "cache") as cache:
        found, gaps = SetScorer(scorer(*names), cache).score(
            [same(one) for one in several], names, in_order
        )
        other, _ = SetScorer(scorer(*names), cache).score(several, names, in_order)
    assert not gaps and found["swd"] == 0
    assert abs(found["fd-phi"]) < 1e-6 and found["kid-phi"] < other["kid-phi"]
    assert other["fd-phi"] > 1e-3


def test_phi_is_found_among_the_metric_weights(tmp_path: Path) -> None:
    config = FeatureNetConfig(widths=(8, 8, 12))
    state = {k: v.half() for k, v in FeatureNet(config).state_dict().items()}
    metadata = {"kind": "features", "config": config.to_dict()}
    save_weights(tmp_path / "phi.safetensors", state, metadata)
    metrics = choose_metrics(["fd-phi"])
    found = Scorer(metrics, PROTOCOL, Resources(metric_weights=tmp_path))
    assert found.set_metrics(has_hr=True) == ["fd-phi"] and not found.missing
    assert found.sets["fd-phi"].config == config


def test_the_frechet_distance_is_that_of_all_vectors(tmp_path: Path, phi: FeatureNet) -> None:
    several = members(tmp_path, 5)
    sides = (Moments(), Moments())
    for one in several:
        for moments, path in zip(sides, (one.path, one.pair.hr), strict=True):
            from addsr.evaluate.pictures import read_picture

            assert path is not None
            moments.add(phi_features(phi, read_picture(path, one.pair)))
    with Cache(tmp_path / "cache") as cache:
        found, _ = SetScorer(scorer("fd-phi"), cache).score(several, ["fd-phi"], in_order)
    # what is kept has 16 bits
    assert found["fd-phi"] == pytest.approx(frechet_distance(*sides), rel=0.01)


def test_features_and_figures_of_sets_are_kept(
    tmp_path: Path, phi: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, names = members(tmp_path, 4), ["fd-phi", "kid-phi"]
    with Cache(tmp_path / "cache") as cache:
        first, _ = SetScorer(scorer(*names), cache).score(several, names, in_order)
        monkeypatch.setattr(phi, "features", lambda _: pytest.fail("computed again"))
        again, _ = SetScorer(scorer(*names), cache).score(several, names, in_order)
        assert again == first
        # another set of the same pictures: their features are known
        fewer, _ = SetScorer(scorer(*names), cache).score(several[:3], names, in_order)
    assert fewer["fd-phi"] != first["fd-phi"]


def test_pictures_too_small_for_a_figure_of_the_set_leave_a_reason(
    tmp_path: Path, phi: FeatureNet
) -> None:
    several, names = members(tmp_path, 3, side=12), ["swd", "fd-phi"]
    with Cache(tmp_path / "cache") as cache:
        found, gaps = SetScorer(scorer(*names), cache).score(several, names, in_order)
    assert all(math.isnan(value) for value in found.values())
    assert "under 16" in gaps["swd"] and "64 or more" in gaps["fd-phi"]


def test_a_flat_reference_has_no_gradient_to_compare_with() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    ready = scorer("gradient")
    assert math.isnan(ready.score(Shot(picture(32), flat, None), ["gradient"]).values["gradient"])


def test_another_package_that_fails_costs_its_own_figure_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fails(*_: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no weights")

    hr = save(tmp_path / "set/hr.png", picture())
    pair = Pair("a", hr, None, (64, 64), (64, 64), 4)
    ready = scorer("psnr-y", "swd")
    ready.measures["musiq"] = ready.sets["fid"] = fails
    ready.versions |= {"musiq": "1", "fid": "1"}
    with Cache(tmp_path / "cache") as cache:
        for _ in range(2):  # what failed is tried again
            found, _, _ = ready.score_file(hr, pair, cache, ["psnr-y", "musiq"])
            assert math.isinf(found.values["psnr-y"]) and math.isnan(found.values["musiq"])
            assert "RuntimeError: no weights" in found.gaps["musiq"]
            several = members(tmp_path, 2)
            sets, gaps = SetScorer(ready, cache).score(several, ["swd", "fid"], in_order)
            assert sets["swd"] > 0 and math.isnan(sets["fid"]) and "no weights" in gaps["fid"]
    assert len(calls) == 4
