"""The report page: what it holds, whom it trusts, how it looks at figures and pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from addsr.errors import InputError, OutputError
from addsr.evaluate import page as page_module
from addsr.evaluate.embed import asset, to_json
from addsr.evaluate.packing import PACKINGS, choose_packing, detailed_box, spread
from addsr.evaluate.page import write_report_page

Browser = Any
HOSTILE = "</script><img src=x onerror=alert(1)>"
ASSETS = ("core.js", "zoom.js", "table.js", "scatter.js", "gallery.js", "viewer.js", "report.js",
          "sign.js", "ab.js")  # fmt: skip


def scene(size: int = 64, blue: int = 0, grain: int = 0) -> Image.Image:
    """A picture whose red and green say where one is, and whose blue says which picture it is."""
    y, x = np.mgrid[:size, :size]
    noise = np.random.default_rng(blue).integers(0, grain + 1, (size, size))
    levels = np.stack([x * 255 // size, y * 255 // size, blue + noise], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


def metric(name: str, better: str, aspect: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "title": name.upper(), "unit": "", "better": better, "aspect": aspect,
        "range": "0..", "note": "a note", "scope": "image", "verified": True, "missing": None,
        "digits": 2, **more,
    }  # fmt: skip


def method(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "title": f"Method {name}", "kind": "model", "steps": None, "sha256": None,
        "licence": None, "details": {}, "seconds_per_image": 1.5, "megapixels_per_second": 0.2,
        "peak_memory_bytes": 3 << 20, "speed_note": None, **more,
    }  # fmt: skip


def figures(values: dict[str, Any], half: float = 0.5) -> dict[str, Any]:
    numbers = [value for value in values.values() if isinstance(value, float | int)]
    mean = sum(numbers) / len(numbers)
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": len(values),
            "images": values}  # fmt: skip


def make_report(images: tuple[str, ...] = ("one", "two", "three")) -> dict[str, Any]:
    """Two methods; x has the higher psnr, y the better niqe (by little); b wins no metric."""
    psnr = {"x": [30.0, 20.0, 25.0], "y": [29.0, 21.0, 22.0], "b": [19.0, 18.0, 17.0]}
    niqe = {"x": [5.0, 6.0, 7.0], "y": [4.0, 6.5, 6.0], "b": [9.0, 9.0, 9.0]}
    scores = {
        name: {
            "psnr": figures(dict(zip(images, psnr[name], strict=True))),
            "niqe": figures(dict(zip(images, niqe[name], strict=True))),
        }
        for name in psnr
    }

    def pair(a: str, b: str, mean: float, half: float) -> dict[str, Any]:
        return {"a": a, "b": b, "mean": mean, "low": mean - half, "high": mean + half,
                "wins": 2, "count": 3}  # fmt: skip

    return {
        "format": "addsr-report",
        "version": 1,
        "made_by": {"addsr": "9.9.9", "torch": "2", "python": "3", "platform": "here",
                    "device": "cpu", "threads": 2},
        "command": "addsr evaluate --hr hr --lr lr x y",
        "date": "2026-01-02T03:04:05Z",
        "protocol": {"name": "plain", "title": "A plain protocol", "border": 4, "luma": "bt601",
                     "scale": 4, "source": "nowhere", "datasets": [{"name": "set", "crop": None}]},
        "bootstrap": {"resamples": 2000, "confidence": 0.95, "seed": 0},
        "metrics": [
            metric("psnr", "higher", "fidelity", unit="dB"),
            metric("niqe", "lower", "realism"),
            metric("musiq", "higher", "realism", verified=False),
            metric("lpips", "lower", "fidelity", missing="fetch the weights from their authors"),
            metric("fd", "lower", "realism", scope="set"),
        ],
        "datasets": [{"name": "set", "images": list(images), "has_hr": True, "has_lr": True}],
        "methods": [method("b", kind="resize"), method("x", steps=1), method("y", kind="scores")],
        "scores": {"set": {**scores, "x": {**scores["x"], "musiq": figures({images[0]: 55.0})}}},
        "set_scores": {"set": {"x": {"fd": 1.5}, "y": {"fd": "inf"}}},
        "gaps": [{"dataset": "set", "method": "x", "metric": "musiq", "count": 2,
                  "reason": "too small for it"}],
        "paired": {
            "set": {
                "psnr": [pair("x", "y", 1.0, 0.4), pair("x", "b", 7.0, 1.0),
                         pair("y", "b", 6.0, 1.0)],
                "niqe": [pair("x", "y", 0.5, 0.9), pair("x", "b", -3.0, 1.0)],
            }
        },
        "problems": [{"dataset": "set", "image": "four", "method": None, "problem": "is damaged",
                      "remedy": "copy it again"}],
        "pictures": {},
    }  # fmt: skip


def add_pictures(report: dict[str, Any], root: Path, size: int = 64, grain: int = 0) -> None:
    shown: dict[str, Any] = {}
    for number, name in enumerate(report["datasets"][0]["images"]):
        paths: dict[str, str] = {}
        sources = {"hr": scene(size, 10, grain), "lr": scene(size, 10).reduce(4)}
        sources |= {"x": scene(size, 100, grain), "y": scene(size, 200, grain)}
        for key, image in sources.items():
            path = Path("pictures") / str(number) / f"{key}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / path)
            paths[key] = path.as_posix()
        shown[name] = paths
    report["pictures"] = {report["datasets"][0]["name"]: shown}


class Elements(HTMLParser):
    """Tags with attributes, and the text of scripts and styles, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:  # inside a script or style
            self.texts[-1] += data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        pairs = zip(self.tags, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in pairs if name == tag]

    def data(self, name: str) -> Any:
        return json.loads(next(text for a, text in self.of("script") if a.get("id") == name))


def write(report: dict[str, Any], folder: Path, **options: Any) -> Path:
    write_report_page(report, folder, folder / "report.html", **options)
    return folder / "report.html"


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    report = make_report()
    add_pictures(report, tmp_path)
    return write(report, tmp_path)


# what the file holds


def test_the_page_holds_the_report_itself(tmp_path: Path) -> None:
    report = make_report()
    elements = Elements(write(report, tmp_path).read_text(encoding="utf-8"))
    assert elements.data("report-data") == report


def test_the_same_report_gives_the_same_bytes(shown: Path) -> None:
    first = shown.read_bytes()
    report = make_report()
    add_pictures(report, shown.parent)
    assert write(report, shown.parent).read_bytes() == first


def test_the_policy_admits_the_packaged_style_and_script_and_no_network(shown: Path) -> None:
    elements = Elements(shown.read_text(encoding="utf-8"))
    policy = next(
        a["content"] or "" for a, _ in elements.of("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("script", "style"):
        (text,) = [text for a, text in elements.of(tag) if "type" not in a]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert set(rules) <= {"default-src", "img-src", "script-src", "style-src", "base-uri",
                          "form-action"}  # fmt: skip


def test_the_page_names_no_place_outside_itself(shown: Path) -> None:
    text = shown.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|eval\(", text)
    for tag, attributes in Elements(text).tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src") is None
        assert (attributes.get("href") or "#")[:5] in ("#", "#scor", "data:")


def test_scripts_build_from_nodes_and_never_from_markup() -> None:
    for name in ASSETS:
        text = asset(name)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|Function\(", text)
        assert "</script" not in text and "<!--" not in text


NAMES = [HOSTILE, "</script/", "<!--<script ", "{{script}}", "__proto__", "constructor",
         "a\udcffb", "\u2028&amp;\"'", "../../up"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_name_breaks_out_of_the_data(tmp_path: Path, name: str) -> None:
    report = make_report((name, "two", "three"))
    report["methods"][1]["title"] = report["protocol"]["title"] = report["command"] = name
    report["problems"][0]["problem"] = name
    add_pictures(report, tmp_path)
    text = write(report, tmp_path).read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.data("report-data") == report
    assert "x" in elements.data("pictures-0")
    # two blocks of data and three of pictures, and in none of them a sign that could end it
    blocks = re.findall(r'<script type="application/json" id="[^"]+">[^<>&]*</script>', text)
    assert len(blocks) == 5
    assert name in elements.data("picture-index")["images"]["set"]
    plain = Elements(write(make_report(), tmp_path, pictures=False).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in elements.tags if tag != "script"]
    assert tags == [tag for tag, _ in plain.tags if tag != "script"]


def test_pictures_that_fit_are_whole_and_lossless(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    done = write_report_page(report, tmp_path, tmp_path / "report.html")
    assert (done.images, done.packing, done.left_out) == (3, "lossless WebP", ())
    assert done.size_bytes == (tmp_path / "report.html").stat().st_size
    elements = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    for key, text in elements.data("pictures-1").items():
        stored = Image.open(io.BytesIO(base64.b64decode(text)))
        original = Image.open(tmp_path / report["pictures"]["set"]["two"][key])
        assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(original)), key
        assert not stored.info.get("exif") and not stored.info.get("icc_profile")


def test_the_budget_is_kept_by_quality_first_and_then_by_cutting(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path, size=256, grain=55)
    sizes: list[int] = []
    words: list[str] = []
    bare = write_report_page(report, tmp_path, tmp_path / "bare.html", pictures=False).size_bytes
    for budget in (4_000_000, 400_000, 30_000):
        done = write_report_page(report, tmp_path, tmp_path / "a.html", budget_bytes=budget)
        assert done.size_bytes - bare <= budget + 2_000  # the index of the pictures
        sizes.append(done.size_bytes)
        words.append(done.packing)
    assert sizes == sorted(sizes, reverse=True)
    assert words[0] == "lossless WebP"
    assert re.fullmatch(r"WebP of quality \d\d", words[1])
    assert re.fullmatch(r"WebP of quality 90, cut to (\d+) x \1 pixels", words[2])
    elements = Elements((tmp_path / "a.html").read_text(encoding="utf-8"))
    entry = elements.data("picture-index")["images"]["set"]["one"]
    left, top, right, bottom = entry["box"]
    assert all(edge % 4 == 0 for edge in entry["box"])
    small = Image.open(io.BytesIO(base64.b64decode(elements.data("pictures-0")["lr"])))
    assert small.size == ((right - left) // 4, (bottom - top) // 4)
    whole = Image.open(tmp_path / report["pictures"]["set"]["one"]["lr"])
    part = whole.crop((left // 4, top // 4, right // 4, bottom // 4))
    assert np.array_equal(np.asarray(small.convert("RGB")), np.asarray(part))


def test_a_page_without_pictures_is_small(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    done = write_report_page(report, tmp_path, tmp_path / "a.html", pictures=False)
    assert done.images == 0 and done.packing == ""
    assert done.size_bytes < 120_000


def test_pictures_that_cannot_be_read_are_named_and_the_rest_shown(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    (tmp_path / report["pictures"]["set"]["one"]["x"]).write_bytes(b"no picture")
    (tmp_path / report["pictures"]["set"]["two"]["hr"]).unlink()
    for path in report["pictures"]["set"]["three"].values():
        (tmp_path / path).unlink()
    done = write_report_page(report, tmp_path, tmp_path / "a.html")
    assert done.images == 2
    assert [text.split(":")[0] for text in done.left_out] == [
        "set/one, x", "set/two, hr", "set/three, hr", "set/three, lr", "set/three, x",
        "set/three, y",
    ]  # fmt: skip
    elements = Elements((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert set(elements.data("pictures-0")) == {"hr", "lr", "y"}


def test_a_picture_of_another_size_is_kept_whole(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    odd = tmp_path / report["pictures"]["set"]["one"]["x"]
    scene(50, 100).save(odd)
    elements = Elements(write(report, tmp_path).read_text(encoding="utf-8"))
    entry = elements.data("picture-index")["images"]["set"]["one"]
    assert entry["sizes"]["x"] == [50, 50]
    stored = Image.open(io.BytesIO(base64.b64decode(elements.data("pictures-0")["x"])))
    assert stored.size == (50, 50)


def test_of_many_images_the_best_and_worst_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MOST_IMAGES", 4)
    names = tuple(f"image {i}" for i in range(20))
    report = make_report()
    report["datasets"][0]["images"] = list(names)
    report["scores"]["set"] = {"x": {"psnr": figures({n: float(i) for i, n in enumerate(names)})}}
    scene(16).save(tmp_path / "a.png")
    report["pictures"] = {"set": {name: {"x": "a.png"} for name in names}}
    elements = Elements(write(report, tmp_path).read_text(encoding="utf-8"))
    index = elements.data("picture-index")
    assert list(index["images"]["set"]) == [names[0], names[1], names[18], names[19]] or (
        {names[0], names[19]} <= set(index["images"]["set"]) and len(index["images"]["set"]) == 4
    )
    assert index["omitted"] == 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 2}, "version 2"),
        ({"date": float("nan")}, "strict JSON"),
        ({"date": {1, 2}}, "strict JSON"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        write({**make_report(), **change}, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(make_report(), tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_report_page(make_report(), tmp_path, tmp_path / "missing" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_progress_counts_images(tmp_path: Path) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    seen: list[tuple[int, int]] = []
    write(report, tmp_path, on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_json_for_a_script_says_the_same() -> None:
    value = {"</script>": "<!-- & \u2028 \udc80", "n": 1.5}
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isascii() and not set(text) & set("<>&")


# packing


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.sampled_from([1, 2, 3, 4, 8]))
def test_the_detailed_part_lies_inside_and_on_the_grid(w: int, h: int, side: int, n: int) -> None:
    noise = np.random.default_rng(w * 41 + h).integers(0, 256, (h, w, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    left, top, right, bottom = detailed_box(image, side, n)
    assert 0 <= left < right <= w and 0 <= top < bottom <= h
    assert left % n == top % n == 0
    longest = max(side // n, 1) * n
    assert (right - left, bottom - top) == (min(w, longest), min(h, longest))


def test_the_detailed_part_is_where_the_detail_is() -> None:
    levels = np.full((96, 128, 3), 128, np.uint8)
    levels[16:40, 80:104] = np.random.default_rng(0).integers(0, 256, (24, 24, 3))
    left, top, right, bottom = detailed_box(Image.fromarray(levels), 32, 4)
    assert left <= 80 and right >= 104 and top <= 16 and bottom >= 40
    flat = Image.fromarray(np.full((96, 128, 3), 9, np.uint8))
    assert detailed_box(flat, 32, 4) == (48, 32, 80, 64)


def test_packings_go_from_best_to_smallest() -> None:
    image = scene(540, 0, 200)
    sizes = [len(packing.encode(image.crop(packing.box(image)))) for packing in PACKINGS]
    whole = [packing.side is None for packing in PACKINGS].index(False)
    for part in (sizes[:whole], sizes[whole:]):
        assert part == sorted(part, reverse=True)
    assert choose_packing([image], 1, 10**9) == 0
    assert choose_packing([image], 10**6, 1) == len(PACKINGS) - 1
    assert choose_packing([], 0, 0) == 0


@given(st.integers(0, 50), st.integers(1, 20))
def test_a_spread_is_even_and_starts_with_the_first(length: int, count: int) -> None:
    found = spread(range(length), count)
    assert len(found) == min(length, count)
    assert found == sorted(set(found))
    assert length == 0 or found[0] == 0


# in a browser

CELL = (
    "(row, column) => [...document.querySelectorAll('table.scores tbody tr')]"
    ".find(r => r.querySelector('.method').textContent === row)"
    ".children[[...document.querySelectorAll('table.scores [data-key]')]"
    ".findIndex(b => b.dataset.key === column)]"
)


def cell(browser: Browser, row: str, column: str) -> tuple[str, str]:
    """Words and class of a cell of the first table."""
    where = f"({CELL})('Method {row}', '{column}')"
    return browser.js(f"[{where}.innerText.replace(/\\s+/g, ' ').trim(), {where}.className]")


def order(browser: Browser) -> str:
    """Last letters of the methods in the order of the rows."""
    return browser.js(
        "[...document.querySelectorAll('table.scores .method')].map(m => m.textContent.at(-1))"
        ".join('')"
    )


def test_the_page_tells_protocol_border_luma_versions_and_command(
    browser: Browser, shown: Path
) -> None:
    browser.open(shown)
    head = browser.text("#top")
    for words in ("A plain protocol", "plain, nowhere", "4 pixels", "BT.601", "\u00d74",
                  "addsr 9.9.9", "torch 2", "2026-01-02, 03:04 UTC",
                  "addsr evaluate --hr hr --lr lr x y",
                  "3 methods on 3 images"):  # fmt: skip
        assert words in head
    assert "95 % bootstrap intervals" in browser.text("#tables")
    assert browser.requests() == [shown.as_uri()]


def test_cells_show_means_intervals_and_the_best(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    assert cell(browser, "x", "psnr") == ["25.00 (best) 24.50 … 25.50", "best"]
    assert cell(browser, "y", "psnr")[1] == ""  # its paired interval excludes zero
    assert cell(browser, "y", "niqe") == ["5.50 (best) 5.00 … 6.00", "best"]
    assert cell(browser, "x", "niqe")[1] == "close"
    assert cell(browser, "x", "musiq") == ["55.00 of 1", ""]  # one image has no interval
    assert cell(browser, "y", "fd") == ["∞", ""]
    assert cell(browser, "b", "fd") == ["\u2013", "none"]
    assert cell(browser, "x", "cost memory")[0].startswith("3.00 MiB")
    assert browser.js("document.querySelector('[data-key=musiq] sup').textContent") == "†"
    assert "not verified here" in browser.text("#tables")
    assert not browser.js("document.querySelector('[data-key=lpips]')")
    browser.click("#tables summary")
    assert "fetch the weights from their authors" in browser.text("#tables details")
    browser.click("#tables details:nth-of-type(2) summary")
    gap = browser.text("#tables details:nth-of-type(2)")
    assert "MUSIQ, Method x: 2 images" in gap and "too small for it" in gap


def test_columns_sort_by_click_and_key_best_first(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    state = "document.querySelector('[data-key=niqe]').parentElement.getAttribute('aria-sort')"
    arrow = "document.querySelector('[data-key=niqe] .arrow').textContent.trim()"
    assert order(browser) == "bxy"
    browser.click("[data-key=niqe]")
    assert order(browser) == "yxb"
    assert (browser.js(state), browser.js(arrow)) == ("ascending", "▲")
    browser.press("Enter")  # the button kept the focus
    assert order(browser) == "bxy"
    assert (browser.js(state), browser.js(arrow)) == ("descending", "▼")
    browser.press("Enter")
    assert browser.js(state) == "none"
    browser.click("[data-key=psnr]")
    assert order(browser) == "xyb"
    browser.click("[data-key=fd]")  # infinity before nothing
    assert order(browser) == "xyb"
    browser.press("Enter")
    assert order(browser) == "yxb"


def test_differences_tell_whether_the_interval_excludes_zero(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    browser.choose("#score-controls select", "y")
    text, style = cell(browser, "x", "psnr")
    assert style == "better" and "+1.00" in text and "+0.60 … +1.40" in text
    assert "better on 2/3" in text and "excludes zero" in text
    text, style = cell(browser, "x", "niqe")
    assert style == "equal" and "includes zero" in text
    text, style = cell(browser, "b", "psnr")  # stored the other way round
    assert style == "worse" and "\u22126.00" in text and "\u22127.00 … \u22125.00" in text
    text, style = cell(browser, "b", "niqe")  # never compared
    assert style == "unknown" and "+3.50" in text and "no interval" in text
    assert "reference" in cell(browser, "y", "psnr")[0]
    browser.click("[data-key=psnr]")
    assert order(browser) == "xyb"


def test_differences_to_a_method_without_the_figure_are_empty_and_not_sorted(
    browser: Browser, shown: Path
) -> None:
    browser.open(shown)
    browser.choose("#score-controls select", "b")
    assert [cell(browser, row, "fd")[0] for row in "bxy"] == ["\u2013"] * 3
    browser.click("[data-key=fd]")
    assert order(browser) == "bxy"
    assert "not as differences" in browser.text("#tables")


def test_one_image_gives_no_interval_and_no_verdict(browser: Browser, tmp_path: Path) -> None:
    report = make_report()
    report["datasets"][0]["images"] = ["one"]
    for scores in report["scores"]["set"].values():
        for one in scores.values():
            one.update(count=1, low=one["mean"], high=one["mean"])
    for pair in report["paired"]["set"]["psnr"]:
        pair.update(count=1, low=pair["mean"], high=pair["mean"])
    browser.open(write(report, tmp_path))
    assert cell(browser, "x", "psnr") == ["25.00 (best)", "best"]
    assert "no intervals" in browser.text("#tables")
    browser.choose("#score-controls select", "y")
    text, style = cell(browser, "x", "psnr")
    assert style == "unknown" and "no interval" in text and "excludes" not in text


def test_groups_of_columns_can_be_hidden(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    browser.click("#score-controls .switcher button:nth-child(2)")
    keys = "[...document.querySelectorAll('table.scores [data-key]')].map(b => b.dataset.key)"
    assert browser.js(keys) == ["method", "psnr", "cost seconds", "cost rate", "cost memory"]


def overlaps(browser: Browser) -> list[str]:
    return browser.js(
        """(() => {
          const boxes = [...document.querySelectorAll('.scatter .label')].map(l =>
            [l.textContent, l.getBoundingClientRect()]);
          const frame = document.querySelector('.scatter').getBoundingClientRect();
          const found = boxes.filter(([, b]) => b.left < frame.left || b.right > frame.right ||
            b.top < frame.top || b.bottom > frame.bottom).map(([t]) => t + ' is cut');
          boxes.forEach(([s, a], i) => boxes.slice(i + 1).forEach(([t, b]) => {
            if (Math.min(a.right, b.right) > Math.max(a.left, b.left) &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
              found.push(s + ' | ' + t);
          }));
          return found;
        })()"""
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_the_scatter_stay_apart(browser: Browser, tmp_path: Path, width: int) -> None:
    report = make_report()
    report["methods"] = [method(f"m{i}", title=f"A method numbered {i}") for i in range(9)]
    # three points on one spot, the others near
    report["scores"]["set"] = {
        f"m{i}": {
            "psnr": figures({"one": 20 + 0.02 * max(i - 2, 0)}, 0.01),
            "niqe": figures({"one": 5 + 0.01 * (max(i - 2, 0) % 3)}, 0.01),
        }
        for i in range(9)
    }
    browser.open(write(report, tmp_path), width, 900)
    assert browser.js("document.querySelectorAll('.scatter .label').length") == 9
    assert overlaps(browser) == []


def test_the_scatter_puts_better_to_the_upper_right_on_any_axes(
    browser: Browser, shown: Path
) -> None:
    browser.open(shown)
    middle = (
        "Object.fromEntries([...document.querySelectorAll('.scatter .point')].map(p => "
        "[p.querySelector('.label').textContent.at(-1), [+p.querySelector('circle')."
        "getAttribute('cx'), +p.querySelector('circle').getAttribute('cy')]]))"
    )
    places = browser.js(middle)
    assert places["x"][0] > places["y"][0] > places["b"][0]  # higher psnr further right
    assert places["y"][1] < places["x"][1] < places["b"][1]  # lower niqe further up
    assert browser.js("document.querySelectorAll('.scatter .bar').length") == 6
    assert browser.js("document.querySelectorAll('.scatter circle.hollow').length") == 1
    browser.choose("#trade-controls label:nth-child(2) select", "niqe")
    browser.choose("#trade-controls label:nth-child(3) select", "psnr")
    turned = browser.js(middle)
    assert turned["y"][0] > turned["x"][0] and turned["x"][1] < turned["y"][1]
    label = browser.js("document.querySelector('.scatter').getAttribute('aria-label')")
    assert "PSNR against NIQE" in label and "Method x: NIQE 6.00 (5.50 to 6.50)" in label


def test_the_scatter_starts_where_most_methods_can_be_drawn_and_names_the_others(
    browser: Browser, tmp_path: Path
) -> None:
    report = make_report()
    report["metrics"].insert(1, report["metrics"].pop(2))  # musiq, of x alone, before niqe
    browser.open(write(report, tmp_path))
    count = "document.querySelectorAll('.scatter circle').length"
    up = "#trade-controls label:nth-child(3) select"
    assert browser.js(count) == 3
    assert browser.js(f"document.querySelector('{up}').value") == "niqe"
    assert "Not shown" not in browser.text("#trade-figure")
    browser.choose(up, "musiq")
    assert browser.js(count) == 1
    told = browser.text("#trade-figure figcaption")
    assert "Not shown, as a figure is missing or infinite: Method b, Method y." in told


@pytest.mark.parametrize(("better", "promised"), [("none", False), ("one", False), ("lower", True)])
def test_the_scatter_calls_the_upper_right_better_only_where_it_is(
    browser: Browser, tmp_path: Path, better: str, promised: bool
) -> None:
    report = make_report()
    report["metrics"][1]["better"] = better
    browser.open(write(report, tmp_path))
    told = browser.text("#trade-figure figcaption")
    assert ("upper right is better" in told) == promised
    assert ("Dashed: 1" in told) == (better == "one")


def cards(browser: Browser) -> list[str]:
    return browser.js(
        "[...document.querySelectorAll('#picture-list .card-words')].map(c => c.innerText"
        ".replace(/\\s+/g, ' '))"
    )


def test_worst_and_best_follow_the_metric_and_the_comparison(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    pick = "#picture-controls label:nth-child({}) select"
    browser.choose(pick.format(2), "x")
    assert cards(browser) == ["two 20.00", "three 25.00", "one 30.00"]
    browser.choose(pick.format(3), "niqe")
    assert cards(browser) == ["three 7.00", "two 6.00", "one 5.00"]
    browser.choose(pick.format(4), "y")
    assert cards(browser) == ["three +1.00", "one +1.00", "two \u22120.50"]


def test_ends_are_shown_first_and_everything_on_demand(browser: Browser, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(20)]
    report = make_report()
    report["datasets"][0]["images"] = names
    report["scores"]["set"] = {"x": {"psnr": figures({n: i * 1.0 for i, n in enumerate(names)})}}
    browser.open(write(report, tmp_path))
    shown = "[...document.querySelectorAll('#picture-list .card-name')].map(c => c.textContent)"
    assert browser.js(shown) == [f"n{i}" for i in (0, 1, 2, 3, 4, 5, 19, 18, 17, 16, 15, 14)]
    browser.click("#picture-list .more")
    assert browser.js(shown) == names
    assert "made without pictures" in browser.text("#picture-list")


# a row of pixels of a canvas, by way of another: reading one back would change how it is drawn
READ = (
    "(from, x, y, width) => { const to = document.createElement('canvas'); to.width = width;"
    " to.height = 1; const pen = to.getContext('2d', {willReadFrequently: true});"
    " pen.drawImage(from, -x, -y); return pen.getImageData(0, 0, width, 1).data }"
)


def open_viewer(browser: Browser, path: Path, **window: Any) -> None:
    browser.open(path, **window)
    browser.choose("#picture-controls label:nth-child(2) select", "x")
    browser.click("#picture-list .card")
    browser.wait("document.querySelector('#viewer[open] canvas')?.dataset.pixelated")


def pixels(browser: Browser, x: float = 0.5, y: float = 0.5) -> list[list[int]]:
    """Red, green and blue at the same place of every canvas."""
    return browser.js(
        f"[...document.querySelectorAll('#viewer canvas')].map(c => [...({READ})(c, "
        f"Math.floor(c.width * {x}), Math.floor(c.height * {y}), 1)].slice(0, 3))"
    )


def zoom(browser: Browser) -> int:
    return int(browser.text("#viewer .zoom").removesuffix("%"))


def test_the_viewer_moves_all_pictures_together(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    hr, x = pixels(browser)
    assert hr[:2] == x[:2] and abs(hr[0] - 128) < 6
    assert (hr[2], x[2]) == (10, 100)
    before = zoom(browser)
    browser.wheel("#viewer canvas", -600, 0.25, 0.25)
    assert zoom(browser) > 2 * before
    hr, x = pixels(browser)
    assert hr[:2] == x[:2] and hr[0] < 120 and hr[1] < 120  # towards the upper left
    browser.drag("#viewer .pane:nth-child(2) canvas", (0.5, 0.5), (0, -120))
    moved, moved_x = pixels(browser)
    assert moved[:2] == moved_x[:2]
    assert moved[1] > hr[1] and moved[0] == hr[0]
    browser.press("ArrowRight")
    assert pixels(browser)[0][0] > moved[0]
    browser.press("0")
    assert zoom(browser) == before


def test_pixels_are_squares_from_200_percent_on(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    row = (
        "(() => { const c = document.querySelector('#viewer canvas');"
        f" const d = ({READ})(c, 0, Math.floor(c.height / 2), c.width);"
        " return Array.from({length: c.width}, (_, i) => d[i * 4]).filter((_, i) => d[i * 4 + 3])"
        " })()"
    )

    def levels() -> set[int]:
        return set(browser.js(row))

    own = {x * 255 // 64 for x in range(64)}
    browser.press("4")
    assert zoom(browser) == 400
    assert levels() <= own
    assert browser.js("document.querySelector('#viewer canvas').dataset.pixelated") == "true"
    browser.press("2")
    assert levels() <= own
    browser.press("-")
    assert zoom(browser) == 150
    assert not levels() <= own
    assert browser.js("document.querySelector('#viewer canvas').dataset.pixelated") == "false"
    browser.press("1")
    assert levels() == own


def test_the_split_shows_one_picture_on_each_side(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    browser.press("s")
    browser.wait("document.querySelectorAll('#viewer canvas').length === 1 && "
                 "document.querySelector('#viewer canvas').dataset.pixelated")  # fmt: skip
    assert pixels(browser, 0.45)[0][2] == 10
    assert pixels(browser, 0.55)[0][2] == 100
    browser.drag("#viewer canvas", (0.5, 0.5), (-200, 0))
    assert pixels(browser, 0.45)[0][2] == 100
    browser.js("document.querySelector('#viewer .split').focus()")
    for _ in range(60):
        browser.press("ArrowRight")
    assert pixels(browser, 0.55)[0][2] == 10


def test_panes_can_show_input_and_its_enlargement(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    choices = "[...document.querySelector('#viewer select').options].map(o => o.textContent)"
    assert browser.js(choices) == ["HR, the reference", "LR, the input", "LR enlarged (bicubic)",
                                   "Method x", "Method y"]  # fmt: skip
    browser.choose("#viewer [data-pane='0']", "lr")
    browser.choose("#viewer [data-pane='1']", " bicubic")
    browser.wait("document.querySelectorAll('#viewer canvas')[1]?.dataset.pixelated")
    small, large = pixels(browser)
    assert small[2] == large[2] == 10
    # Catmull-Rom of a ramp is the ramp; squares of four are not
    assert abs(large[0] - 125) <= 3 and small[0] in (117, 133)
    browser.click("#viewer .bar button[title='Add a picture']")
    browser.wait("document.querySelectorAll('#viewer canvas').length === 3 && "
                 "document.querySelectorAll('#viewer canvas')[2].dataset.pixelated")  # fmt: skip
    assert len({tuple(one[2:]) for one in pixels(browser)}) == 2


def test_the_viewer_turns_pages_blinks_and_closes_by_keys(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    name = "document.querySelector('#viewer strong').textContent"
    first = browser.js(name)
    browser.press("PageDown")
    second = browser.js(name)
    browser.press("PageDown")
    assert len({first, second, browser.js(name)}) == 3
    browser.press("PageUp", "PageUp")
    assert browser.js(name) == first
    browser.wait("[...document.querySelectorAll('#viewer canvas')].every(c => c.dataset.pixelated)")
    assert "PSNR 20.00" in browser.text("#viewer .panes")
    browser.press("b", release=False)
    assert [one[2] for one in pixels(browser)] == [10, 10]
    browser.press("b")
    assert [one[2] for one in pixels(browser)] == [10, 100]
    browser.press("Escape")
    assert not browser.js("document.querySelector('#viewer').open")
    assert browser.js("document.activeElement.className") == "card"


def test_a_picture_that_one_image_lacks_is_back_on_the_next(
    browser: Browser, tmp_path: Path
) -> None:
    report = make_report()
    add_pictures(report, tmp_path)
    del report["pictures"]["set"]["three"]["x"]
    open_viewer(browser, write(report, tmp_path))  # on two, the worst
    picked = "[...document.querySelectorAll('#viewer select')].map(s => s.value)"
    assert browser.js(picked) == ["hr", "x"]
    browser.press("PageDown")
    assert browser.js(picked) == ["hr", "hr"]
    browser.press("PageUp")
    assert browser.js(picked) == ["hr", "x"]


def test_a_blink_ends_where_its_key_comes_up_elsewhere(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    browser.press("B", release=False)  # with the lock of capitals
    assert [one[2] for one in pixels(browser)] == [10, 10]
    browser.js("dispatchEvent(new Event('blur'))")
    assert [one[2] for one in pixels(browser)] == [10, 100]


def test_keys_work_while_the_split_has_the_focus(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    browser.press("s")
    browser.wait("document.querySelector('#viewer canvas').dataset.pixelated")
    browser.js("document.querySelector('#viewer .split').focus()")
    browser.press("4")
    assert zoom(browser) == 400
    browser.press("S")
    assert browser.js("document.querySelectorAll('#viewer canvas').length") == 2


def test_two_fingers_zoom_and_one_moves(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown, width=390, height=800, phone=True, ratio=2)
    before = zoom(browser)
    x, y = browser.place("#viewer canvas")
    browser.touch("touchStart", (x - 20, y), (x + 20, y))
    browser.touch("touchMove", (x - 40, y), (x + 40, y))
    browser.touch("touchMove", (x - 80, y), (x + 80, y))
    browser.touch("touchEnd")
    assert zoom(browser) == pytest.approx(4 * before, rel=0.15)
    hr, other = pixels(browser)
    assert hr[:2] == other[:2]
    browser.touch("touchStart", (x, y))
    browser.touch("touchMove", (x - 60, y))
    browser.touch("touchEnd")
    assert pixels(browser)[0][0] > hr[0]


def test_hostile_names_are_shown_as_text_and_run_nothing(browser: Browser, tmp_path: Path) -> None:
    report = make_report((HOSTILE, "__proto__", "constructor"))
    report["datasets"][0]["name"] = "<b>set"
    for part in ("scores", "set_scores", "paired"):
        report[part] = {"<b>set": report[part]["set"]}
    for one in (*report["methods"], *report["metrics"], report["protocol"]):
        one["title"] = f"{one.get('id') or one['name']}{HOSTILE}"
    report["metrics"][3]["missing"] = report["problems"][0]["problem"] = HOSTILE
    report["methods"][1]["speed_note"] = report["methods"][1]["licence"] = HOSTILE
    report["methods"][1]["details"] = {HOSTILE: HOSTILE}
    report["command"] = report["date"] = HOSTILE
    add_pictures(report, tmp_path)
    report["pictures"]["<b>set"][HOSTILE]["y"] = "javascript:alert(1)"
    browser.open(write(report, tmp_path))
    browser.choose("#score-controls select", "y")
    browser.choose("#picture-controls label:nth-child(2) select", "x")
    browser.click("#picture-list .card")
    browser.wait("document.querySelector('#viewer[open] canvas')?.dataset.pixelated")
    assert browser.js("document.querySelectorAll('img[src=x], b').length") == 0
    assert browser.js("document.querySelectorAll('[href^=javascript]').length") == 0
    assert browser.text("#viewer strong") == "__proto__"  # psnr 20, the worst
    assert HOSTILE in browser.text("#tables") and HOSTILE in browser.text("#glossary")
    assert HOSTILE in browser.text("#problems") and HOSTILE in browser.text("#top")


def test_the_report_can_be_saved_as_it_was(browser: Browser, shown: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    browser.downloads_to(folder)
    browser.open(shown)
    browser.click("#download")
    saved = folder / "report.json"
    browser.wait_for(saved.exists)
    stored = Elements(shown.read_text(encoding="utf-8")).data("report-data")
    assert json.loads(saved.read_text(encoding="utf-8")) == stored


def test_dark_and_light_differ_and_both_can_be_read(browser: Browser, shown: Path) -> None:
    contrast = (
        "(() => { const of = (e, p) => getComputedStyle(e)[p].match(/[\\d.]+/g).slice(0, 3).map("
        "v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });"
        " const luma = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;"
        " const paper = luma(of(document.body, 'backgroundColor'));"
        " return [paper, ...['body', '.muted', 'a[href=\"#scores\"]', '.best .value', '.facts']."
        "map(s => { const ink = luma(of(document.querySelector(s), 'color'));"
        " return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) })] })()"
    )
    browser.open(shown)
    light, *ratios = browser.js(contrast)
    assert light > 0.8 and min(ratios) >= 4.5
    browser.open(shown, dark=True)
    dark, *ratios = browser.js(contrast)
    assert dark < 0.1 and min(ratios) >= 4.5


def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, shown: Path) -> None:
    browser.open(shown, 390, 844, phone=True)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    holder = "document.querySelector('#tables .scroll')"
    assert browser.js(f"{holder}.scrollWidth > {holder}.clientWidth")
    browser.js(f"{holder}.scrollLeft = 300")
    assert browser.js("document.querySelector('.scores th[scope=row]').getBoundingClientRect().left") < 40  # noqa: E501  # fmt: skip


def test_a_long_word_does_not_push_columns_out(browser: Browser, tmp_path: Path) -> None:
    report = make_report()
    report["problems"][0]["problem"] = f"/folder/{'x' * 200}.png: is damaged"
    for width in (1280, 390):
        browser.open(write(report, tmp_path), width, 844)
        holder = "document.querySelector('#problem-list .scroll')"
        assert browser.js(f"{holder}.scrollWidth <= {holder}.clientWidth")


def test_everything_that_acts_has_a_name_and_can_be_reached(browser: Browser, shown: Path) -> None:
    open_viewer(browser, shown)
    nameless = browser.js(
        "[...document.querySelectorAll('button, select, input, canvas, svg, dialog')].filter(e => "
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    assert browser.js("document.querySelectorAll('[tabindex]:not([tabindex=\"0\"]):not(section)').length") == 0  # noqa: E501  # fmt: skip
    browser.press("Escape", "Tab")
    assert browser.js("document.activeElement.matches(':focus-visible')")


def test_paper_gets_tables_that_fit(browser: Browser, shown: Path) -> None:
    browser.open(shown)
    browser.js("window.wide = null; addEventListener('beforeprint', () => { wide = document"
               ".querySelectorAll('#print-tables table').length })")  # fmt: skip
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert browser.js("wide") == 1
    assert browser.js("document.querySelectorAll('#print-tables table').length") == 0


def test_a_report_with_nothing_in_it_opens(browser: Browser, tmp_path: Path) -> None:
    browser.open(write({"format": "addsr-report", "version": 1}, tmp_path))
    assert "Evaluation" in browser.text("#top")
