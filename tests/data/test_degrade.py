"""The degradation pipeline as a whole, and the specs it follows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from addsr.data.degrade import degrade
from addsr.data.jpeg import jpeg
from addsr.data.resize import resize_lanczos
from addsr.data.spec import (
    MIXTURES,
    PRESETS,
    BlurSpec,
    DegradationSpec,
    JpegSpec,
    MosaicSpec,
    NoiseSpec,
    ResizeSpec,
    WebpSpec,
    resolve,
)
from addsr.data.webp import webp
from addsr.errors import ConfigError, InputError, OptionError

NOTHING = DegradationSpec(
    blur1=BlurSpec(probability=0),
    resize1=ResizeSpec(shares=(0, 0, 1)),
    noise1=NoiseSpec(probability=0),
    jpeg1=JpegSpec(probability=0),
    second_order=0,
    final_sinc=0,
    final_antialias=1,
    jpeg2=JpegSpec(probability=0),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 1, side: int = 64, seed: int = 0) -> Tensor:
    """Smooth shapes with some texture: what photographs are made of, roughly."""
    generator = seeded(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    size = (side, side)
    x = F.interpolate(coarse, size=size, mode="bicubic") * 0.8
    return (x + 0.2 * F.interpolate(fine, size=size, mode="bicubic")).clamp(0, 1)


@pytest.mark.parametrize("preset", ["mild", "strong", "near-clean", "mixture"])
def test_results_are_a_quarter_as_large_and_hold_8_bit_levels(preset: str) -> None:
    lr = degrade(pictures(5), preset, generator=seeded(), group=2)
    assert lr.shape == (5, 3, 16, 16)
    assert lr.dtype == torch.float32
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.allclose(lr * 255, (lr * 255).round(), atol=1e-4)


def test_the_same_seed_gives_the_same_pictures_and_another_one_others() -> None:
    hr = pictures(6)
    first = degrade(hr, generator=seeded(3), group=2)
    assert torch.equal(first, degrade(hr, generator=seeded(3), group=2))
    assert not torch.equal(first, degrade(hr, generator=seeded(4), group=2))
    generator = seeded(3)
    degrade(hr, generator=generator, group=2)
    assert not torch.equal(first, degrade(hr, generator=generator, group=2))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("mild", [15.98, 14.60, 12.08, 15.53, 21.97, 15.17]),
        ("strong", [19.96, 19.31, 14.39, 20.02, 50.61, 27.28]),
    ],
)
def test_what_a_seed_gives_stays_from_release_to_release(
    preset: str, expected: list[float]
) -> None:
    hr = pictures(6)
    lr = degrade(hr, preset, generator=seeded(7), group=2)
    error = (lr - F.interpolate(hr, scale_factor=0.25, mode="area")).abs().mean((1, 2, 3)) * 255
    # wide enough for another machine's rounding; another order of draws changes everything
    assert error.tolist() == pytest.approx(expected, rel=0.02)


def test_a_passed_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    degrade(pictures(2), generator=seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_pictures_of_a_group_still_get_strengths_of_their_own() -> None:
    lr = degrade(pictures().expand(8, -1, -1, -1), "strong", generator=seeded(), group=8)
    for a in range(8):
        for b in range(a):
            assert (lr[a] - lr[b]).abs().mean() > 1 / 255


def test_presets_are_ordered_by_strength() -> None:
    hr = pictures(40, side=64)
    clean = F.interpolate(hr, scale_factor=0.25, mode="area")

    def error(preset: str) -> float:
        return (degrade(hr, preset, generator=seeded(1), group=1) - clean).square().mean().item()

    assert error("near-clean") < 0.5 * error("mild")
    assert error("mild") < 0.8 * error("strong")


def test_a_spec_that_does_nothing_only_makes_the_picture_smaller() -> None:
    hr = pictures(30)
    lr = degrade(hr, NOTHING, generator=seeded(), group=1)
    expected = torch.stack(
        [
            F.interpolate(hr, size=16, mode="area"),
            F.interpolate(hr, size=16, mode="bilinear", antialias=True),
            F.interpolate(hr, size=16, mode="bicubic", antialias=True),
        ]
    )  # (3, B, 3, 16, 16)
    distance = (lr - expected.clamp(0, 1)).abs().amax((2, 3, 4))
    assert (distance.amin(0) <= 0.51 / 255).all()
    assert set(distance.argmin(0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    "change",
    [
        {"blur1": BlurSpec(sinc=0, sigma=(3, 3))},
        {"mosaic": MosaicSpec(1.0, sigma=(30, 30))},
        {"noise1": NoiseSpec(sigma=(30, 30), poisson=(3, 3))},
        {"jpeg1": JpegSpec(quality=(10, 10))},
        {"resize1": ResizeSpec(shares=(0, 1, 0), factor=(0.15, 1))},
        {"second_order": 1.0},
        {"final_sinc": 1.0},
        {"jpeg2": JpegSpec(quality=(10, 10))},
        {"webp": WebpSpec(1.0, quality=(10, 10))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_stage_leaves_its_mark(change: dict[str, object]) -> None:
    hr = pictures(4)
    spec = dataclasses.replace(NOTHING, **change)
    plain = degrade(hr, NOTHING, generator=seeded(2), group=1)
    marked = degrade(hr, spec, generator=seeded(2), group=1)
    assert (plain - marked).abs().max() > 3 / 255


def test_the_last_resize_is_by_lanczos_where_asked() -> None:
    hr = pictures(3)
    lr = degrade(hr, dataclasses.replace(NOTHING, final_lanczos=1.0), generator=seeded(), group=1)
    assert (lr - resize_lanczos(hr, (16, 16)).clamp(0, 1)).abs().max() <= 0.51 / 255


def test_a_camera_leaves_the_pictures_of_other_groups_and_presets_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PRESETS, "plain", NOTHING)
    camera = dataclasses.replace(NOTHING, mosaic=MosaicSpec(1.0, sigma=(30, 30)))
    weights = {"strong": 0.5, "plain": 0.5}
    without = degrade(pictures(12), weights, generator=seeded(3), group=2)
    monkeypatch.setitem(PRESETS, "plain", camera)
    taken = degrade(pictures(12), weights, generator=seeded(3), group=2)
    # groups of two, each of one preset
    differs = (taken != without).flatten(1).any(1).view(6, 2)
    assert torch.equal(differs[:, 0], differs[:, 1])
    assert 0 < differs[:, 0].sum() < 6


def test_a_camera_reaches_the_pictures_it_was_drawn_for_and_no_others() -> None:
    some = dataclasses.replace(NOTHING, mosaic=MosaicSpec(0.5, sigma=(30, 30)))
    every = dataclasses.replace(NOTHING, mosaic=MosaicSpec(1.0, sigma=(30, 30)))
    hr = pictures(12)
    clean, got, noisy = (
        degrade(hr, spec, generator=seeded(1), group=5) for spec in (NOTHING, some, every)
    )
    change = (got - clean).abs().amax((1, 2, 3))
    assert 0 < (change == 0).sum() < 12
    assert ((change == 0) | (change > 3 / 255)).all()
    assert ((noisy - clean).abs().amax((1, 2, 3)) > 3 / 255).all()
    # each is still its own picture: noise of 30 levels is less than what sets two apart
    assert (
        (got - clean).abs().mean((1, 2, 3)) < 0.5 * (clean - clean.roll(1, 0)).abs().mean()
    ).all()


def test_what_comes_from_a_camera_gets_no_other_noise_in_the_first_round() -> None:
    spec = dataclasses.replace(NOTHING, noise1=NoiseSpec(sigma=(30, 30), poisson=(3, 3)))
    camera = dataclasses.replace(spec, mosaic=MosaicSpec(1.0, (0, 0), errors=(0, 0)))
    hr = pictures(4)
    clean = degrade(hr, NOTHING, generator=seeded(), group=1)
    assert (degrade(hr, spec, generator=seeded(), group=1) - clean).abs().max() > 3 / 255
    assert (degrade(hr, camera, generator=seeded(), group=1) - clean).abs().max() < 1.1 / 255


def test_what_becomes_webp_is_not_compressed_as_jpeg_before() -> None:
    bad = dataclasses.replace(NOTHING, jpeg2=JpegSpec(quality=(10, 10)))
    both = dataclasses.replace(bad, webp=WebpSpec(1.0, quality=(90, 90)))
    hr = pictures(4)
    clean = degrade(hr, NOTHING, generator=seeded(), group=2)
    expected = webp(clean, [90] * 4)
    assert torch.equal(degrade(hr, both, generator=seeded(), group=2), expected)


def test_webp_reaches_the_pictures_it_was_drawn_for_and_no_others() -> None:
    some = dataclasses.replace(NOTHING, webp=WebpSpec(0.5, quality=(10, 10)))
    hr = pictures(12)
    clean = degrade(hr, NOTHING, generator=seeded(1), group=4)
    got = degrade(hr, some, generator=seeded(1), group=4)
    compressed = webp(clean, [10] * 12)
    is_compressed = [torch.equal(a, b) for a, b in zip(got, compressed, strict=True)]
    is_clean = [torch.equal(a, b) for a, b in zip(got, clean, strict=True)]
    assert all(a != b for a, b in zip(is_compressed, is_clean, strict=True))
    assert 0 < sum(is_compressed) < 12


def test_what_webp_cannot_hold_stays_uncompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("addsr.data.degrade.MAX_SIDE", 15)
    spec = dataclasses.replace(NOTHING, webp=WebpSpec(1.0, quality=(10, 10)))
    clean = degrade(pictures(2), NOTHING, generator=seeded())
    assert torch.equal(degrade(pictures(2), spec, generator=seeded()), clean)


@pytest.mark.parametrize(
    "change",
    [{"blur2": BlurSpec(sinc=0, sigma=(3, 3))}, {"noise2": NoiseSpec(gaussian=1, sigma=(30, 30))}],
    ids=lambda change: next(iter(change)),
)
def test_the_second_round_blurs_and_adds_noise(change: dict[str, object]) -> None:
    quiet = dataclasses.replace(
        NOTHING,
        second_order=1,
        blur2=BlurSpec(probability=0),
        resize2=ResizeSpec(shares=(0, 0, 1)),
        noise2=NoiseSpec(probability=0),
    )
    hr = pictures(4)
    plain = degrade(hr, quiet, generator=seeded(2), group=2)
    marked = degrade(hr, dataclasses.replace(quiet, **change), generator=seeded(2), group=2)
    assert ((plain - marked).abs().mean((1, 2, 3)) > 1.5 / 255).all()


def test_the_last_compression_comes_before_the_last_filter_or_after_it_but_not_twice() -> None:
    spec = dataclasses.replace(
        NOTHING,
        second_order=1,
        blur2=BlurSpec(probability=0),
        resize2=ResizeSpec(shares=(0, 0, 1)),
        noise2=NoiseSpec(probability=0),
        final_sinc=1,
        jpeg2=JpegSpec(quality=(10, 10)),
    )
    lr = degrade(pictures(40), spec, generator=seeded(), group=8)
    # what was compressed last hardly changes when it is compressed again
    again = (jpeg(lr, 10) - lr).abs().mean((1, 2, 3))
    assert 10 <= (again < 1 / 255).sum() <= 30
    assert 10 <= (again > 3 / 255).sum() <= 30


def test_the_middle_of_a_picture_stays_where_it_is() -> None:
    x = torch.zeros(100, 3, 64, 64)
    x[..., 24:40, 24:40] = 1
    quiet = dataclasses.replace(PRESETS["mild"], noise1=NoiseSpec(probability=0))
    quiet = dataclasses.replace(quiet, noise2=NoiseSpec(probability=0))
    lr = degrade(x, quiet, generator=seeded(), group=1).mean(1)
    place = torch.arange(16).float() - 7.5
    weight = lr.sum((1, 2))
    for axis in (1, 2):
        shift = (lr.sum(axis) * place).sum(1) / weight
        # compression may move a single one; a slip in a resize would move them all
        assert shift.abs().median() < 0.05
        assert shift.mean().abs() < 0.05


@settings(max_examples=25)
@given(
    height=st.integers(4, 90),
    width=st.integers(4, 90),
    preset=st.sampled_from(["strong", "mild", "near-clean"]),
    seed=st.integers(0, 1000),
)
def test_any_size_works(height: int, width: int, preset: str, seed: int) -> None:
    hr = torch.rand(2, 3, height, width, generator=seeded(seed))
    lr = degrade(hr, preset, generator=seeded(seed), group=1)
    assert lr.shape == (2, 3, height // 4, width // 4)
    assert torch.isfinite(lr).all()


def test_other_scales_and_no_pictures_work() -> None:
    assert degrade(pictures(1), scale=2, generator=seeded()).shape == (1, 3, 32, 32)
    assert degrade(torch.zeros(0, 3, 64, 64)).shape == (0, 3, 16, 16)


def test_a_mixture_holds_all_its_presets() -> None:
    specs, shares = resolve("mixture")
    assert specs == tuple(PRESETS[name] for name in MIXTURES["mixture"])
    assert shares == pytest.approx((0.45, 0.40, 0.15))
    specs, shares = resolve({"mild": 3, "strong": 1, "near-clean": 0})
    assert specs == (PRESETS["mild"], PRESETS["strong"])
    assert shares == pytest.approx((0.75, 0.25))


def test_autocast_changes_nothing() -> None:
    hr = pictures(2)
    plain = degrade(hr, "mild", generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, degrade(hr, "mild", generator=seeded()))


@pytest.mark.parametrize(
    "hr", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_what_is_no_batch_of_pictures_is_refused(hr: Tensor) -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        degrade(hr)


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputError, match="3 x 8 is smaller than scale 4"):
        degrade(torch.zeros(1, 3, 8, 3))
    with pytest.raises(OptionError, match="group = 0"):
        degrade(pictures(), group=0)
    with pytest.raises(OptionError, match="scale = 0"):
        degrade(pictures(), scale=0)
    with pytest.raises(ConfigError, match="'wild' is not known; use one of mild"):
        degrade(pictures(), "wild")
    with pytest.raises(ConfigError, match="weight of preset 'mild' is -1"):
        degrade(pictures(), {"mild": -1})
    with pytest.raises(ConfigError, match="no weight above 0"):
        degrade(pictures(), {"mild": 0})


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: BlurSpec(sigma=(2, 1)), r"BlurSpec\.sigma = \(2, 1\).*low <= high <= 10"),
        (lambda: BlurSpec(sizes=(7, 23)), r"BlurSpec\.sizes = \(7, 23\).*<= 21"),
        (lambda: BlurSpec(sizes=(8, 20)), r"BlurSpec\.sizes = \(8, 20\).*odd"),
        (lambda: BlurSpec(kinds=(1, 1, 0, 0, 0, 0)), r"BlurSpec\.kinds.*sum to 1"),
        (lambda: ResizeSpec(factor=(1.1, 1.5)), r"ResizeSpec\.factor.*1 in it"),
        (lambda: NoiseSpec(gray=1.5), r"NoiseSpec\.gray = 1\.5.*0 to 1"),
        (lambda: JpegSpec(quality=(0, 90)), r"JpegSpec\.quality = \(0, 90\).*1 <= low"),
        (lambda: DegradationSpec(second_order=-1), r"DegradationSpec\.second_order = -1"),
        (lambda: DegradationSpec(jpeg1=BlurSpec()), r"DegradationSpec\.jpeg1.*a JpegSpec"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_range(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
