"""The page of `addsr compare`: what it holds, and what it does in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from addsr.errors import InputError, OptionError, OutputError
from addsr.evaluate.compare import write_compare_page

Browser = Any
RED, BLUE, GREEN = (200, 40, 40), (40, 40, 200), (40, 160, 40)


@pytest.fixture()
def files(tmp_path: Path) -> list[Path]:
    found: list[Path] = []
    for name, colour, size in (
        ("red.png", RED, (20, 15)), ("blue.png", BLUE, (80, 60)), ("green.png", GREEN, (80, 60))
    ):  # fmt: skip
        found.append(tmp_path / name)
        Image.new("RGB", size, colour).save(found[-1])
    return found


def block(page: Path, name: str) -> Any:
    found = re.search(rf'id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def test_the_page_holds_every_picture_whole_and_lossless(files: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = write_compare_page(files, page)
    data = block(page, "compare-data")
    assert data["frame"] == [80, 60] and done.packing == data["packing"] == "lossless WebP"
    assert [one["title"] for one in data["pictures"]] == ["red.png", "blue.png", "green.png"]
    assert done.size_bytes == page.stat().st_size
    for i, (colour, size) in enumerate(((RED, (20, 15)), (BLUE, (80, 60)), (GREEN, (80, 60)))):
        image = Image.open(io.BytesIO(base64.b64decode(block(page, f"picture-{i}"))))
        assert image.size == size and image.convert("RGB").getpixel((3, 3)) == colour


def test_the_same_files_give_the_same_bytes(files: list[Path], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_compare_page(files, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_small_budget_costs_quality_and_no_pixels(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.effect_noise((200, 200), 90).save(tmp_path / name)
    names = [tmp_path / "a.png", tmp_path / "b.png"]
    done = write_compare_page(names, tmp_path / "page.html", budget_bytes=50_000)
    assert done.packing.startswith("WebP of quality") and "cut" not in done.packing
    shown = Image.open(io.BytesIO(base64.b64decode(block(tmp_path / "page.html", "picture-0"))))
    assert shown.size == (200, 200)


def test_names_tell_files_of_one_name_apart(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "red.png"
    twin.write_bytes(files[0].read_bytes())
    write_compare_page([files[0], twin, files[1]], tmp_path / "p.html")
    titles = [one["title"] for one in block(tmp_path / "p.html", "compare-data")["pictures"]]
    assert titles == [str(files[0]), str(twin), "blue.png"]


def test_transparency_is_laid_on_white(files: list[Path], tmp_path: Path) -> None:
    Image.new("RGBA", (20, 15)).save(files[0])
    write_compare_page(files, tmp_path / "p.html")
    shown = Image.open(io.BytesIO(base64.b64decode(block(tmp_path / "p.html", "picture-0"))))
    assert shown.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_what_cannot_be_compared_is_refused(files: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    with pytest.raises(OptionError, match="1 pictures cannot be compared; give 2 to 8"):
        write_compare_page(files[:1], page)
    with pytest.raises(OptionError, match="titles: 1 for 3 pictures"):
        write_compare_page(files, page, titles=["a"])
    Image.new("RGB", (20, 20)).save(files[0])
    with pytest.raises(InputError, match=r"red\.png: 20x20 has another shape than 80x60"):
        write_compare_page(files, page)
    with pytest.raises(InputError, match="no such file"):
        write_compare_page([files[1], tmp_path / "gone.png"], page)
    with pytest.raises(OutputError, match="cannot be written"):
        write_compare_page(files[1:], tmp_path / "gone" / "p.html")
    assert not page.exists()


@pytest.mark.parametrize("size", [(20, 15), (21, 15), (17, 13)])
def test_rounded_sides_are_the_same_shape(
    files: list[Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(files[0])
    write_compare_page(files, tmp_path / "p.html")
    assert "compare-data" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_hostile_name_stays_a_name(files: list[Path], tmp_path: Path, browser: Browser) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    page = tmp_path / "p.html"
    write_compare_page(files[:2], page, titles=[hostile, "b"])
    browser.open(page)
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.text(".tag.left") == hostile


# in a browser


@pytest.fixture()
def page(files: list[Path], tmp_path: Path, browser: Browser) -> Browser:
    write_compare_page(files, tmp_path / "page.html")
    browser.open(tmp_path / "page.html", 900, 700)
    return browser


def colour(browser: Browser, x: float, number: int = 0) -> list[int]:
    """Of a canvas at a share of its width, half way down."""
    return browser.js(
        f"(() => {{ const c = document.querySelectorAll('canvas')[{number}];"
        " const copy = document.createElement('canvas');"
        " const context = copy.getContext('2d', { willReadFrequently: true });"
        f" context.drawImage(c, -Math.round(c.width * {x}), -Math.round(c.height * 0.3));"
        " return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3) })()"
    )


def near(found: list[int], wanted: tuple[int, int, int]) -> bool:
    return all(abs(a - b) <= 2 for a, b in zip(found, wanted, strict=True))


def test_the_first_and_last_picture_lie_under_the_slider_offline(page: Browser) -> None:
    assert near(colour(page, 0.4), RED) and near(colour(page, 0.6), GREEN)
    assert len(page.requests()) == 1 and page.requests()[0].startswith("file://")


def test_the_line_is_dragged_with_the_mouse_and_the_keys(page: Browser) -> None:
    page.drag("canvas", (0.5, 0.5), (180, 0))
    assert near(colour(page, 0.6), RED)
    assert page.js("Number(document.querySelector('#split').value)") == pytest.approx(700, abs=5)
    page.js("document.querySelector('#split').focus()")
    page.press("ArrowLeft")
    assert page.js("Number(document.querySelector('#split').value)") < 700


def test_each_side_shows_what_is_chosen_and_b_holds_the_left(page: Browser) -> None:
    page.choose("#lists label:nth-of-type(2) select", "1")
    assert near(colour(page, 0.6), BLUE) and page.text(".tag.right") == "blue.png"
    page.press("b", release=False)
    assert near(colour(page, 0.6), RED) and page.text(".tag.right") == "red.png"
    page.js("document.dispatchEvent(new KeyboardEvent('keyup', {key: 'b'}))")
    assert near(colour(page, 0.6), BLUE)


def test_zoom_and_place_are_the_same_for_all_side_by_side(
    files: list[Path], tmp_path: Path, browser: Browser
) -> None:
    for path in files[1:]:
        image = Image.new("RGB", (80, 60), (250, 250, 250))
        image.paste((0, 0, 0), (60, 40, 64, 44))
        image.save(path)
    files[0].write_bytes(files[1].read_bytes())
    write_compare_page(files, tmp_path / "p.html")
    browser.open(tmp_path / "p.html", 900, 700)
    browser.js("document.querySelector('[aria-label=View] button:nth-of-type(2)').click()")
    assert browser.js("document.querySelectorAll('canvas').length") == 3
    browser.wheel("canvas", -800)
    browser.drag("canvas:first-of-type", (0.5, 0.5), (-60, -30))
    shown = browser.js("[...document.querySelectorAll('canvas')].map(c => c.toDataURL())")
    assert len(set(shown)) == 1, "the three show different parts"
    assert browser.text(".zoom") != "100 %"


def test_it_fits_a_phone(files: list[Path], tmp_path: Path, browser: Browser) -> None:
    write_compare_page(files, tmp_path / "p.html", titles=["w" * 80, "b", "c"])
    browser.open(tmp_path / "p.html", 390, 800, phone=True, ratio=2)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.js("document.querySelector('canvas').clientHeight") > 300


def test_a_damaged_page_says_so(files: list[Path], tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "p.html"
    write_compare_page(files, page)
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r'id="picture-1">"', 'id="picture-1">"AAAA', text), encoding="utf-8")
    browser.open(page)
    assert "is damaged; make it again" in browser.text(".notice")
