"""Targets: every way to say a size gives exactly that size, or one sentence why not."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from addsr.errors import InputError, OptionError
from addsr.target import Frame, Target

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@pytest.mark.parametrize(
    ("target", "source", "size"),
    [
        (Target(), (100, 150), (400, 600)),
        (Target(scale=2.5), (101, 150), (253, 375)),
        (Target(size="3840x"), (1080, 1920), (2160, 3840)),
        (Target(size="x2160"), (1080, 1921), (2160, 3842)),
        (Target(size="3840x2160"), (1000, 1000), (2160, 2160)),
        (Target(size="3840x2160", fit="inside"), (500, 1500), (1280, 3840)),
        (Target(size="3840x2160", fit="cover"), (1000, 1000), (2160, 3840)),
        (Target(size="3840x2160", fit="stretch"), (1000, 1000), (2160, 3840)),
        (Target(long_side=3000), (1000, 700), (3000, 2100)),
        (Target(long_side=3000), (700, 1000), (2100, 3000)),
        (Target(megapixels=12), (1000, 1500), (2828, 4243)),
        (Target(preview="10,20,30,40"), (100, 100), (160, 120)),
        (Target(size="400x", preview="10,20,30,40"), (100, 100), (160, 120)),
        (Target(size="300x200", fit="stretch", preview="0,0,50,50"), (100, 100), (100, 150)),
    ],
)
def test_each_way_to_say_a_size_gives_that_size(
    target: Target, source: tuple[int, int], size: tuple[int, int]
) -> None:
    assert target.frame(source).size == size


@given(SIZES, st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(["cover", "stretch"]))
def test_cover_and_stretch_hit_the_size_to_the_pixel(
    source: tuple[int, int], width: int, height: int, fit: str
) -> None:
    target = Target(size=f"{width}x{height}", fit=fit)  # type: ignore[arg-type]
    try:
        frame = target.frame(source)
    except InputError:
        return
    assert frame.size == (height, width)
    check(frame, source)
    if fit == "cover":
        assert not frame.is_resized
        # nothing is restored that is not seen, but for whole pixels at the edges
        assert frame.enlarged[0] <= height + 2 * frame.scale + 1
        assert frame.enlarged[1] <= width + 2 * frame.scale + 1


@given(SIZES, st.integers(1, 9000))
def test_a_side_is_met_to_the_pixel_and_the_shape_is_kept(
    source: tuple[int, int], side: int
) -> None:
    for target, of in ((Target(size=f"{side}x"), 1), (Target(size=f"x{side}"), 0)):
        try:
            frame = target.frame(source)
        except InputError:
            continue
        check(frame, source)
        assert frame.size[of] == side
        assert abs(frame.size[1 - of] - source[1 - of] * side / source[of]) <= 0.5 + 1e-6


def check(frame: Frame, source: tuple[int, int]) -> None:
    left, top, width, height = frame.box
    assert left >= 0 and left + width <= source[1] and width >= 1
    assert top >= 0 and top + height <= source[0] and height >= 1
    assert 1 <= frame.scale <= 8
    if not frame.is_resized:
        top, left = frame.corner or (0, 0)
        assert top + frame.size[0] <= frame.enlarged[0]
        assert left + frame.size[1] <= frame.enlarged[1]


def test_what_is_cut_for_cover_is_the_same_on_both_sides() -> None:
    frame = Target(size="800x400", fit="cover").frame((300, 400))
    assert frame.box == (0, 50, 400, 200) and frame.scale == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 9}, "scale: 9 is outside of 1 to 8"),
        ({"scale": 2, "size": "10x"}, "--scale and --size contradict"),
        ({"long_side": 5, "megapixels": 1}, "--long-side and --megapixels contradict"),
        ({"size": "x"}, "size: 'x' is no size; give 3840x"),
        ({"size": "3840"}, "is no size"),
        ({"size": "-5x5"}, "is no size"),
        ({"size": "٣x٣"}, "is no size"),
        ({"size": "999999x5"}, "is no size"),
        ({"size": "0x0"}, "is no size"),
        ({"fit": "cover"}, "give --size WIDTHxHEIGHT"),
        ({"fit": "cover", "size": "100x"}, "give --size WIDTHxHEIGHT"),
        ({"long_side": 0}, "long side: 0 is outside"),
        ({"megapixels": float("nan")}, "megapixels: nan is not possible; give more than 0"),
        ({"megapixels": 0}, "megapixels: 0 is not possible; give more than 0"),
        ({"preview": "1,2,3"}, "preview: '1,2,3' is no part"),
        ({"preview": "-1,2,3,4"}, "is no part"),
    ],
)
def test_a_target_that_means_nothing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Target(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(size="50x"), r"a\.png: 100x80 to 50x would be a factor of 0\.5; it is larger"),
        (Target(size="900x"), r"factor of 9; that is beyond 8"),
        (Target(size="600x80", fit="stretch"), None),
        (Target(size="600x40", fit="stretch"), "it is larger already"),
        (Target(preview="90,0,20,20"), r"preview 90,0,20,20 lies outside of the picture of 100x80"),
        (Target(preview="0,0,0,5"), "lies outside"),
    ],
)
def test_a_picture_that_cannot_reach_its_target_is_told_why(
    target: Target, message: str | None
) -> None:
    if message is None:
        assert target.frame((80, 100)).size == (80, 600)
        return
    with pytest.raises(InputError, match=message):
        target.frame((80, 100), "a.png")


def test_labels_are_fit_for_names() -> None:
    labels = [
        Target().label, Target(scale=2.5).label, Target(size="x2160").label,
        Target(long_side=9).label, Target(megapixels=1.5).label,
    ]  # fmt: skip
    assert labels == ["x4", "x2.5", "x2160", "long9", "1.5mp"]
