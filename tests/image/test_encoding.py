"""Colour profiles: every encoding is worked on as if it were sRGB and comes back as it was."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from addsr.errors import InputError
from addsr.image.encoding import Encoding, convert_to_srgb, read_encoding, srgb_profile
from addsr.image.kinds import Source, accept
from addsr.image.options import FileOptions
from addsr.image.reading import read_image
from addsr.image.writing import write_image

_spec = importlib.util.spec_from_file_location("profiles", Path(__file__).parent / "profiles.py")
assert _spec and _spec.loader
profiles = importlib.util.module_from_spec(_spec)
sys.modules["profiles"] = profiles
_spec.loader.exec_module(profiles)

CURVES = {
    "gamma 1.8": profiles.gamma(1.8),
    "gamma 2.2": profiles.gamma(2.2),
    "linear": profiles.gamma(1.0),
    "table": profiles.table([round(65535 * (i / 255) ** 2.6) for i in range(256)]),
}
EVERY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _through(source: Source, icc: str = "keep") -> Image.Image:
    picture = source.pictures[0]
    sink = source.sink(picture, *picture.size, None, 0, icc)  # type: ignore[arg-type]
    sink.write(picture.rgb)
    return sink.result()


def _tagged(array: np.ndarray, profile: bytes) -> Image.Image:
    image = Image.fromarray(array)
    image.info["icc_profile"] = profile
    return image


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("is_grey", [False, True])
def test_all_256_values_come_back_from_every_curve(curve: str, is_grey: bool) -> None:
    profile = profiles.make_profile(CURVES[curve], None if is_grey else profiles.PROPHOTO)
    array = EVERY if is_grey else np.stack([EVERY, EVERY.T, EVERY[::-1]], axis=2)
    source = accept(_tagged(array, profile))
    assert source.encoding.curves is not None
    assert float(source.pictures[0].rgb.min()) == 0 and float(source.pictures[0].rgb.max()) == 1
    back = _through(source)
    np.testing.assert_array_equal(np.asarray(back), array)
    assert back.info["icc_profile"] == profile


@given(st.floats(0, 1), st.sampled_from(list(CURVES)))
def test_a_curve_and_its_inverse_cancel(value: float, curve: str) -> None:
    encoding = read_encoding(profiles.make_profile(CURVES[curve], profiles.ADOBE), is_grey=False)
    x = torch.full((1, 3, 1, 1), value)
    torch.testing.assert_close(encoding.from_working(encoding.to_working(x)), x, atol=2e-4, rtol=0)


def test_middle_grey_in_linear_light_is_worked_on_as_srgbs_middle_grey() -> None:
    linear = read_encoding(profiles.make_profile(profiles.gamma(1.0), profiles.SRGB), is_grey=False)
    worked = linear.to_working(torch.full((1, 3, 1, 1), 0.2140))
    assert float(worked.mean()) == pytest.approx(0.5, abs=1e-3)


def test_srgbs_own_curve_is_left_alone() -> None:
    for primaries in (profiles.SRGB, profiles.P3):
        made = profiles.make_profile(profiles.srgb_curve(), primaries)
        assert read_encoding(made, is_grey=False).curves is None
    assert read_encoding(srgb_profile(), is_grey=False).curves is None


def test_wide_colours_are_not_clipped_and_the_profile_is_kept(tmp_path: Path) -> None:
    for name in ("PROPHOTO", "ADOBE", "P3"):
        profile = profiles.make_profile(profiles.gamma(1.8), getattr(profiles, name))
        array = np.zeros((2, 3, 3), np.uint8)
        array[0], array[1] = np.eye(3) * 255, 255 - np.eye(3) * 255
        write_image(_tagged(array, profile), tmp_path / "wide.png")
        back = _through(accept(tmp_path / "wide.png"))
        np.testing.assert_array_equal(np.asarray(back), array)
        assert back.info["icc_profile"] == profile


def test_to_srgb_agrees_with_the_colour_engine() -> None:
    profile = profiles.make_profile(profiles.gamma(2.2), profiles.ADOBE)
    values = np.random.default_rng(0).integers(90, 150, (12, 12, 3), np.uint8)
    ours = _through(accept(_tagged(values, profile)), "srgb")
    theirs = convert_to_srgb(_tagged(values, profile), profile)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    assert ours.info["icc_profile"] == srgb_profile()


def test_strip_leaves_the_numbers_and_takes_the_profile() -> None:
    profile = profiles.make_profile(profiles.gamma(1.8), profiles.PROPHOTO)
    back = _through(accept(_tagged(np.dstack([EVERY] * 3), profile)), "strip")
    np.testing.assert_array_equal(np.asarray(back)[..., 0], EVERY)
    assert "icc_profile" not in back.info


def test_a_grey_profile_to_srgb_is_left_out_and_the_tone_stays() -> None:
    profile = profiles.make_profile(profiles.gamma(1.0))
    grey = np.full((4, 4), round(0.2140 * 255), np.uint8)
    back = _through(accept(_tagged(grey, profile)), "srgb")
    assert abs(int(np.asarray(back)[0, 0]) - 128) <= 2 and "icc_profile" not in back.info


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (b"profile" * 30, "cannot be read; the numbers are taken as sRGB"),
        (profiles.make_profile(profiles.gamma(2.2)), "is for GRAY and the picture is RGB"),
    ],
)
def test_a_profile_that_does_not_fit_is_left_out_and_told(
    profile: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_encoding(profile, is_grey=False) == Encoding()
    assert message in caplog.text


def test_curves_that_cannot_be_used_leave_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    for curve in (profiles.gamma(0.0), profiles.table([9, 5, 1]), b"what" + bytes(12)):
        made = read_encoding(profiles.make_profile(curve, profiles.ADOBE), is_grey=False)
        assert made.curves is None and made.profile is not None
        assert "its curves cannot be read; it is kept" in caplog.text


def test_cmyk_goes_through_its_profile_and_without_one_by_the_plain_formula(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    ink.save(tmp_path / "plain.tif")
    source = accept(tmp_path / "plain.tif")
    assert source.profile is None and source.pictures[0].layout == "RGB"
    ink.save(tmp_path / "broken.tif", icc_profile=srgb_profile())  # RGB: does not fit
    source = accept(tmp_path / "broken.tif")
    assert "cannot be used" in caplog.text and source.profile is None


def test_lab_becomes_srgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (200, 90, 40)), ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"), outputMode="LAB",
    )  # fmt: skip
    back = _through(accept(lab))
    assert np.abs(np.asarray(back)[0, 0].astype(int) - (200, 90, 40)).max() <= 4


def test_srgb_and_strip_reach_the_file(tmp_path: Path) -> None:
    image = _tagged(np.dstack([EVERY] * 3), srgb_profile())
    write_image(image, tmp_path / "a.png", FileOptions(icc="strip"))
    assert "icc_profile" not in read_image(tmp_path / "a.png").info


def test_a_profile_of_tables_is_kept_and_goes_to_srgb_in_eight_bits_only() -> None:
    made = bytearray(profiles.make_profile(profiles.gamma(2.2), profiles.ADOBE))
    made[made.index(b"desc")] = ord("D")  # tags of curves hidden, as if there were tables
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        made[made.index(name) : made.index(name) + 4] = name.upper()
    source = accept(_tagged(np.dstack([EVERY] * 3), bytes(made)))
    assert source.encoding.is_table and source.profile == bytes(made)
    np.testing.assert_array_equal(np.asarray(_through(source))[..., 0], EVERY)
    with pytest.raises(InputError, match="goes to sRGB in 8 bits only; take --bit-depth 8"):
        source.sink(source.pictures[0], 16, 16, 16, 0, "srgb")


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_a_cmyk_profile_decides_what_the_inks_look_like(tmp_path: Path, suffix: str) -> None:
    inks = Image.new("CMYK", (16, 16), (255, 255, 255, 255))
    greys: list[int] = []
    for black in (40, 110):
        profile = profiles.make_cmyk_profile(black=black)
        inks.save(tmp_path / f"a{suffix}", icc_profile=profile)
        source = accept(tmp_path / f"a{suffix}")
        assert source.profile == srgb_profile()
        tone = np.asarray(_through(source))[8, 8].astype(int)
        assert np.ptp(tone) <= 3
        greys.append(int(tone[0]))
        half = Image.new("CMYK", (4, 4), (255, 255, 0, 0))
        half.info["icc_profile"] = profile
        middle = np.asarray(_through(accept(half)))[0, 0]
        assert middle.min() > tone.max() + 40
    # lightness 40 and 110 of 255 are these greys in sRGB
    assert greys == pytest.approx([39, 102], abs=3)


def test_the_profile_of_srgb_states_no_moment() -> None:
    made = srgb_profile()
    assert struct.unpack(">6H", made[24:36]) == (2000, 1, 1, 0, 0, 0)
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(made))).strip()
