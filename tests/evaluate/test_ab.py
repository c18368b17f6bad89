"""Blind comparison: the page hides which is which, counts rightly, and its files are read back."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from addsr.errors import InputError, OptionError, OutputError
from addsr.evaluate.ab import AbResult, Answer, read_ab, sign_test, tally, write_ab_page
from addsr.evaluate.embed import asset

Browser = Any
RED, BLUE = (200, 40, 40), (40, 40, 200)
HOSTILE = "</script><img src=x onerror=alert(1)>"


def fill(folder: Path, colour: tuple[int, int, int], names: list[str], size: int = 32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (size, size), colour).save(folder / f"{name}.png")
    return folder


def folders(root: Path, count: int = 6, names: list[str] | None = None) -> tuple[Path, Path]:
    """Results of a "reddish" and of a "bluish" method."""
    names = names or [f"photo {i}" for i in range(count)]
    return fill(root / "reddish", RED, names), fill(root / "bluish", BLUE, names)


def data(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'id="ab-data">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


def pair(path: Path, number: int) -> dict[str, Image.Image]:
    found = re.search(rf'id="pair-{number}">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found
    return {key: Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            for key, text in json.loads(found[1]).items()}  # fmt: skip


def first_is_red(path: Path) -> list[bool]:
    """For every pair whether picture 1 is of the reddish method."""
    return [pair(path, i)["1"].getpixel((0, 0)) == RED for i in range(len(data(path)["items"]))]


# the page


def test_sides_and_order_are_shuffled_by_the_seed_and_balanced(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 21)
    orders: set[tuple[str, ...]] = set()
    sides: set[tuple[bool, ...]] = set()
    for seed in range(4):
        write_ab_page(a, b, tmp_path / "ab.html", seed=seed)
        orders.add(tuple(item["name"] for item in data(tmp_path / "ab.html")["items"]))
        side = first_is_red(tmp_path / "ab.html")
        assert sum(side) in (10, 11)
        sides.add(tuple(side))
    assert len(orders) == len(sides) == 4
    assert all(sorted(order) != list(order) for order in orders)


def test_the_same_seed_and_files_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    for name in ("one", "two"):
        write_ab_page(a, b, tmp_path / f"{name}.html", seed=5, hr=a)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_the_file_does_not_say_which_is_which(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    write_ab_page(a, b, tmp_path / "ab.html", seed=1, title_a="Ours", title_b="Theirs")
    text = (tmp_path / "ab.html").read_text(encoding="utf-8")
    plain = text[text.index("<script type") :].replace("addsr", "")
    for word in ("Ours", "Theirs", "reddish", "bluish", "aabb", "abab"):
        assert word not in plain
        assert base64.b64encode(word.encode()).decode().rstrip("=")[:-1] not in plain
    for number in range(6):
        assert list(pair(tmp_path / "ab.html", number)) == ["1", "2"]


def test_pictures_carry_no_trace_of_their_files(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 1)
    image = Image.open(a / "photo 0.png")
    image.load()
    exif = Image.Exif()
    exif[0x0131] = "made by Ours"
    image.save(a / "photo 0.png", exif=exif, icc_profile=b"x" * 200)
    write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    for shown in pair(tmp_path / "ab.html", 0).values():
        assert not shown.info.get("exif") and not shown.info.get("icc_profile")


def test_what_cannot_be_compared_is_named_and_the_rest_used(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 4)
    Image.new("RGB", (16, 32)).save(b / "photo 0.png")
    (b / "photo 1.png").unlink()
    (a / "photo 2.png").write_bytes(b"no picture")
    fill(b, BLUE, ["only b"])
    (a / "notes.txt").write_text("no picture at all")
    Image.new("RGB", (32, 32)).save(a / "photo 3.bmp")  # sorts before photo 3.png
    done = write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    assert done.pairs == 1
    told = dict(done.left_out)
    assert set(told) == {"photo 0", "photo 1", "photo 2", "photo 3.png", "only b"}
    assert "32 x 32 and 16 x 32" in told["photo 0"]
    assert "its partner is missing" in told["photo 1"]
    assert "no picture in a format" in told["photo 2"]
    assert "same name" in told["photo 3.png"]
    assert {one["name"] for one in data(tmp_path / "ab.html")["left_out"]} == set(told)


def test_references_that_do_not_fit_are_left_out_and_the_pair_judged(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 3)
    hr = fill(tmp_path / "hr", (0, 200, 0), ["photo 0", "photo 1"])
    lr = fill(tmp_path / "lr", (0, 90, 0), ["photo 0", "photo 1", "photo 2"], size=8)
    Image.new("RGB", (8, 4)).save(lr / "photo 1.png")
    (hr / "photo 1.png").write_bytes(b"")
    done = write_ab_page(a, b, tmp_path / "ab.html", seed=0, hr=hr, lr=lr)
    assert done.pairs == 3
    assert [name for name, _ in done.left_out] == ["photo 1", "photo 1", "photo 2"]
    assert all("judged without it" in problem for _, problem in done.left_out)
    page = data(tmp_path / "ab.html")
    shown = {item["name"]: item["shown"] for item in page["items"]}
    assert shown == {"photo 0": ["hr", "lr"], "photo 1": [], "photo 2": ["lr"]}
    number = [item["name"] for item in page["items"]].index("photo 0")
    assert pair(tmp_path / "ab.html", number)["lr"].size == (8, 8)


def test_parts_of_a_pair_show_the_same_place(tmp_path: Path) -> None:
    y, x = np.mgrid[:256, :256]
    noise = np.random.default_rng(0).integers(0, 256, (256, 256))
    for name, blue in (("reddish", 0), ("bluish", 1), ("hr", 2)):
        (tmp_path / name).mkdir()
        levels = np.stack([x, y, noise // 3 * 3 + blue], -1).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / name / "a.png")
    done = write_ab_page(
        tmp_path / "reddish", tmp_path / "bluish", tmp_path / "ab.html", seed=0,
        hr=tmp_path / "hr", budget_bytes=30_000,
    )  # fmt: skip
    assert "cut to" in done.packing
    shown = {key: np.asarray(one, int) for key, one in pair(tmp_path / "ab.html", 0).items()}
    assert len({one.shape for one in shown.values()}) == 1
    for one in shown.values():
        assert abs(one[..., :2].mean((0, 1)) - shown["1"][..., :2].mean((0, 1))).max() < 1
    assert (tmp_path / "ab.html").stat().st_size < 30_000 + 60_000


def test_a_number_of_pairs_is_drawn(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 9)
    drawn: set[frozenset[str]] = set()
    for seed in range(3):
        assert write_ab_page(a, b, tmp_path / "ab.html", seed=seed, count=4).pairs == 4
        drawn.add(frozenset(item["name"] for item in data(tmp_path / "ab.html")["items"]))
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [({"seed": -1}, "seed = -1"), ({"seed": 2**53}, "seed"), ({"count": 0}, "count = 0")],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    a, b = folders(tmp_path, 1)
    with pytest.raises(OptionError, match=told):
        write_ab_page(a, b, tmp_path / "ab.html", **{"seed": 0, **options})


def test_folders_without_a_pair_are_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 1)
    (tmp_path / "ab.html").write_text("old")
    (b / "photo 0.png").unlink()
    with pytest.raises(InputError, match="photo 0: only"):
        write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    with pytest.raises(InputError, match="is no folder"):
        write_ab_page(a, tmp_path / "none", tmp_path / "ab.html", seed=0)
    assert (tmp_path / "ab.html").read_text() == "old"
    fill(b, BLUE, ["photo 0"])
    with pytest.raises(OutputError):
        write_ab_page(a, b, tmp_path / "none" / "ab.html", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab.html", "bluish", "reddish"]


# counting


def test_the_sign_test_is_the_exact_binomial() -> None:
    for n in range(14):
        for wins in range(n + 1):
            few = min(wins, n - wins)
            tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(few + 1))
            assert sign_test(wins, n - wins) == float(min(Fraction(1), 2 * tail))
    assert sign_test(0, 0) == 1
    assert sign_test(0, 2000) == 0.0
    with pytest.raises(OptionError, match="losses = -1"):
        sign_test(1, -1)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_has_two_like_sides(wins: int, losses: int) -> None:
    p = sign_test(wins, losses)
    assert 0 < p <= 1
    assert p == sign_test(losses, wins)


def test_the_sign_test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((9, 1), (24, 11), (20, 20), (130, 90), (0, 6)):
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-12)


def answers(**changes: Any) -> dict[str, Any]:
    rows = [("one", "a", 2.0), ("two", "a", 4.0), ("three", "b", 3.0), ("four", "tie", 1.0),
            ("five", "skip", 0)]  # fmt: skip
    return {
        "format": "addsr-ab", "version": 1, "page": "abc", "seed": 7, "pairs": 6,
        "titles": {"a": "Ours", "b": "Theirs"},
        "answers": [{"image": i, "choice": c, "seconds": s} for i, c, s in rows],
        **changes,
    }  # fmt: skip


def store(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_saved_answers_are_read_and_counted(tmp_path: Path) -> None:
    result = read_ab(store(tmp_path / "a.json", answers()))
    assert (result.title_a, result.title_b, result.seed, result.pairs) == ("Ours", "Theirs", 7, 6)
    assert result.answers[3] == Answer("four", "tie", 1.0)
    counted = tally(result)
    assert (counted.wins_a, counted.wins_b, counted.ties, counted.skipped) == (2, 1, 1, 1)
    assert (counted.judges, counted.p, counted.seconds) == (1, 1.0, 2.0)


def test_several_judges_are_added_up(tmp_path: Path) -> None:
    result = read_ab(store(tmp_path / "a.json", answers()))
    counted = tally([result, result, result])
    assert (counted.judges, counted.wins_a, counted.wins_b) == (3, 6, 3)
    assert counted.p == sign_test(6, 3)
    other = AbResult("Ours", "Others", 0, "x", 1, ())
    with pytest.raises(InputError, match="another comparison"):
        tally([result, other])
    with pytest.raises(InputError, match="none to count"):
        tally([])
    assert math.isnan(tally(other).seconds)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "format is 'list'"),
        (answers(format="other"), "format is 'other'"),
        (answers(version=2), "version 2"),
        (answers(titles=None), "titles is None"),
        (answers(titles={"a": "x"}), "b is None"),
        (answers(seed="7"), "seed is '7'"),
        (answers(pairs=True), "pairs is True"),
        (answers(answers={}), "answers is {}"),
        (answers(answers=["a"]), "choice is None"),
        (answers(answers=[{"image": "x", "choice": "c", "seconds": 1}]), "choice is 'c'"),
        (answers(answers=[{"image": "x", "choice": "a", "seconds": -1}]), "seconds is -1"),
        (answers(answers=[{"image": "x", "choice": "a", "seconds": float("inf")}]), "seconds"),
        (answers(answers=[{"image": 5, "choice": "a", "seconds": 1}]), "image is 5"),
        (answers(answers=[{"image": "x", "choice": "a", "seconds": 1}] * 2), "twice"),
    ],
)
def test_files_that_no_page_saved_are_refused(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        read_ab(store(tmp_path / "a.json", value))


def test_a_missing_file_of_answers_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_ab(tmp_path / "none.json")


# in a browser

# the colour in the middle of every pane
WHICH = """[...document.querySelectorAll('#judge canvas')].map(from => {
  const to = document.createElement('canvas');
  to.width = to.height = 1;
  const pen = to.getContext('2d', {willReadFrequently: true});
  pen.drawImage(from, -from.width / 2, -from.height / 2);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
})"""


def start(browser: Browser, path: Path, **window: Any) -> None:
    browser.open(path, **window)
    browser.press("Enter")  # the start button has the focus
    ready(browser, 0)


def ready(browser: Browser, position: int) -> None:
    browser.wait(f"document.documentElement.dataset.pair === '{position}'")


def red_side(browser: Browser) -> str:
    """Which picture, 1 or 2, is of the reddish method."""
    colours = browser.js(WHICH)
    return "1" if tuple(colours[0]) == RED else "2"


def save(browser: Browser, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    browser.downloads_to(folder)
    browser.click("#save")
    browser.wait_for(lambda: list(folder.glob("*.json")))
    (found,) = folder.glob("*.json")
    return {"path": found, **json.loads(found.read_text(encoding="utf-8"))}


def test_a_whole_comparison_by_keys_counts_for_the_right_method(
    browser: Browser, tmp_path: Path
) -> None:
    a, b = folders(tmp_path, 9)
    write_ab_page(a, b, tmp_path / "ab.html", seed=3, title_a="Ours", title_b=HOSTILE)
    start(browser, tmp_path / "ab.html")
    assert not browser.js("document.body.innerText.includes('Ours')")
    for position in range(9):
        ready(browser, position)
        arrow = {"1": "ArrowLeft", "2": "ArrowRight"}
        other = {"1": "ArrowRight", "2": "ArrowLeft"}
        side = red_side(browser)
        browser.press({6: "ArrowDown", 7: other[side], 8: "s"}.get(position, arrow[side]))
    told = browser.text("#result")
    assert f"Ours was better in 6, {HOSTILE} in 1 of 8 pairs; no difference in 1, 1 skipped" in told
    assert "No clear preference" in told and "p = 0.13" in told
    saved = save(browser, tmp_path / "downloads")
    result = read_ab(saved["path"])
    assert (result.title_a, result.title_b, result.seed) == ("Ours", HOSTILE, 3)
    assert [one.image for one in result.answers] == [
        item["name"] for item in data(tmp_path / "ab.html")["items"]
    ]
    counted = tally(result)
    assert (counted.wins_a, counted.wins_b, counted.ties, counted.skipped) == (6, 1, 1, 1)
    assert saved["tally"] == {"a": 6, "b": 1, "tie": 1, "skip": 1, "p": counted.p}
    firsts = [one["first"] == "a" for one in saved["answers"]]
    assert firsts == first_is_red(tmp_path / "ab.html")
    assert all(0 <= one.seconds < 60 for one in result.answers)
    assert [url for url in browser.requests() if not url.startswith("blob:")] == [
        (tmp_path / "ab.html").as_uri()
    ]


def test_buttons_do_what_keys_do_and_answers_can_be_taken_back(
    browser: Browser, tmp_path: Path
) -> None:
    a, b = folders(tmp_path, 4)
    write_ab_page(a, b, tmp_path / "ab.html", seed=1)
    start(browser, tmp_path / "ab.html")
    assert browser.js("document.getElementById('undo').disabled")
    for position, button in enumerate(("#first", "#second", "#tie")):
        ready(browser, position)
        browser.click(button)
    ready(browser, 3)
    browser.click("#undo")
    ready(browser, 2)
    browser.press("Backspace")
    ready(browser, 1)
    assert browser.text("#judge .progress").startswith("2 of 4")
    browser.click("#finish")
    assert "Go on, 3 left" in browser.text("#result")
    saved = save(browser, tmp_path / "downloads")
    first = first_is_red(tmp_path / "ab.html")[0]
    assert [one["choice"] for one in saved["answers"]] == ["a" if first else "b"]
    browser.click("#on")
    ready(browser, 1)


def test_a_judge_can_leave_and_come_back(browser: Browser, tmp_path: Path) -> None:
    a, b = folders(tmp_path, 4)
    write_ab_page(a, b, tmp_path / "ab.html", seed=2)
    start(browser, tmp_path / "ab.html")
    browser.press("ArrowLeft")
    ready(browser, 1)
    browser.press("ArrowDown")
    ready(browser, 2)

    def is_known() -> bool:
        browser.open(tmp_path / "ab.html")
        return browser.text("#start") == "Go on at pair 3"

    # Chromium hands what a page stores to the next one's process when it gets to it
    browser.wait_for(is_known)
    browser.press("Enter")
    ready(browser, 2)
    browser.open(tmp_path / "ab.html")
    browser.click("#restart")
    ready(browser, 0)
    write_ab_page(a, b, tmp_path / "ab.html", seed=8)  # another page knows nothing of this one
    browser.open(tmp_path / "ab.html")
    assert browser.text("#start") == "Start"


def test_a_key_held_down_answers_once(browser: Browser, tmp_path: Path) -> None:
    a, b = folders(tmp_path, 4)
    write_ab_page(a, b, tmp_path / "ab.html", seed=4)
    start(browser, tmp_path / "ab.html")
    for repeat in (False, True, True):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft",
                     windowsVirtualKeyCode=37, autoRepeat=repeat)  # fmt: skip
        ready(browser, 1)
    assert browser.text("#judge .progress").startswith("2 of 4")


def test_both_sides_and_the_reference_zoom_together(browser: Browser, tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    for name, blue in (("reddish", 0), ("bluish", 100), ("hr", 200)):
        (tmp_path / name).mkdir()
        levels = np.stack([x * 4, y * 4, np.full_like(x, blue)], -1).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / name / "a.png")
    write_ab_page(tmp_path / "reddish", tmp_path / "bluish", tmp_path / "ab.html", seed=0,
                  hr=tmp_path / "hr")  # fmt: skip
    start(browser, tmp_path / "ab.html")
    assert browser.js(WHICH)[1][2] == 200  # the reference is in the middle
    browser.wheel("#judge canvas", -600, 0.2, 0.5)
    shown = browser.js(WHICH)
    assert len(shown) == 3 and len({tuple(one[:2]) for one in shown}) == 1
    assert shown[0][0] < 120
    browser.press("ArrowRight", modifiers=8)  # with shift: moves and does not answer
    assert browser.js(WHICH)[0][0] > shown[0][0]
    assert browser.text("#judge .progress").startswith("1 of 1")
    browser.press("r")
    browser.wait("document.querySelectorAll('#judge canvas').length === 2")
    browser.press("b", release=False)
    one, two = browser.js(WHICH)
    assert one == two
    browser.press("b")
    one, two = browser.js(WHICH)
    assert one[:2] == two[:2] and one[2] != two[2]


@pytest.mark.parametrize("how", ["the window is left", "the last answer is given"])
def test_no_pair_is_judged_on_a_blink_that_has_not_ended(
    browser: Browser, tmp_path: Path, how: str
) -> None:
    a, b = folders(tmp_path, 1)
    write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    start(browser, tmp_path / "ab.html")
    tags = "[...document.querySelectorAll('#judge .tag')].map(t => t.textContent).join('')"
    browser.press("B", release=False)
    browser.wait(f"{tags} === '11'")
    one, two = browser.js(WHICH)
    assert one == two
    if how == "the window is left":
        browser.js("dispatchEvent(new Event('blur'))")
    else:
        browser.press("ArrowLeft")
        browser.press("b")
        browser.js("confirm = () => true")
        browser.click("#restart-2")
    browser.wait(f"{tags} === '12'")
    one, two = browser.js(WHICH)
    assert one != two


def test_a_result_without_answers_claims_nothing(browser: Browser, tmp_path: Path) -> None:
    a, b = folders(tmp_path, 2)
    write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    start(browser, tmp_path / "ab.html")
    browser.click("#finish")
    told = browser.text("#result")
    assert "No answers yet" in told and "p =" not in told and "preference" not in told


def test_hostile_names_stay_text_in_the_judging_page(browser: Browser, tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", "\u2044")  # no file name holds a slash
    a, b = folders(tmp_path, names=[hostile, "<b>bold", "&amp;"])
    Image.new("RGB", (1, 1)).save(b / "<b>bold.png")
    write_ab_page(a, b, tmp_path / "ab.html", seed=0)
    start(browser, tmp_path / "ab.html")
    assert browser.text("#judge .progress span") in (hostile, "&amp;")
    browser.press("ArrowLeft")
    ready(browser, 1)
    browser.press("ArrowLeft")
    assert hostile in browser.text("#result") and "&amp;" in browser.text("#result")
    assert browser.js("document.querySelectorAll('img, b').length") == 0


def test_a_phone_stacks_the_pictures_and_fits(browser: Browser, tmp_path: Path) -> None:
    a, b = folders(tmp_path, 2)
    write_ab_page(a, b, tmp_path / "ab.html", seed=0, hr=a)
    start(browser, tmp_path / "ab.html", width=390, height=844, phone=True, ratio=2)
    boxes = browser.js(
        "[...document.querySelectorAll('#judge canvas')].map(c => c.getBoundingClientRect())"
        ".map(b => [b.left, b.top, b.bottom])"
    )
    assert len(boxes) == 2 and boxes[0][0] == boxes[1][0] and boxes[1][1] >= boxes[0][2]
    assert browser.js("[document.documentElement.scrollWidth, document.documentElement"
                      ".scrollHeight]") == [390, 844]  # fmt: skip


def test_the_page_computes_the_sign_test_to_the_last_bit(browser: Browser) -> None:
    cases = [(w, n) for w in range(0, 40, 3) for n in range(0, 40, 2)]
    cases += [(500, 430), (1200, 1100), (1023, 0), (1074, 0), (2000, 10), (1400, 1330), (90, 1)]
    found = browser.js(
        f"(() => {{ {asset('sign.js')}; return {json.dumps(cases)}"
        ".map(([w, l]) => signTest(w, l)) })()"
    )
    assert found == [sign_test(wins, losses) for wins, losses in cases]
