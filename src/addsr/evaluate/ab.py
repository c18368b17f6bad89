"""Blind comparison of two folders of results: the page to judge on, and what its answers say."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from addsr import __version__
from addsr.errors import InputError, OptionError
from addsr.image.formats import FORMATS
from addsr.image.reading import read_image

from .embed import assemble, check_page, data_block, to_json, write_whole
from .packing import LOSSLESS, PACKINGS, Box, Packing, choose_packing, spread, to_text
from .page import BUDGET_BYTES, SAMPLE, check_format

FORMAT, VERSION = "addsr-ab", 1
LARGEST_SEED = 2**53 - 1
LARGEST_FILE = 50_000_000

Choice = Literal["a", "b", "tie", "skip"]
_CHOICES = ("a", "b", "tie", "skip")
_SCRIPTS = ("core.js", "zoom.js", "sign.js", "ab.js")


@dataclass(frozen=True)
class AbSummary:
    """What `write_ab_page` wrote."""

    pairs: int
    size_bytes: int
    packing: str
    """How the pictures are stored, in words."""
    left_out: tuple[tuple[str, str], ...]
    """Name and problem of each picture that could not be used."""


@dataclass(frozen=True)
class Answer:
    """One judgement."""

    image: str
    choice: Choice
    seconds: float


@dataclass(frozen=True)
class AbResult:
    """The answers of one judge, as the page saves them."""

    title_a: str
    title_b: str
    seed: int
    page: str
    """Names the page, so that answers to other pictures are not mixed in."""
    pairs: int
    """How many the page held; there may be fewer answers."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Tally:
    """How often each side was preferred."""

    title_a: str
    title_b: str
    judges: int
    wins_a: int
    wins_b: int
    ties: int
    skipped: int
    p: float
    """Two-sided p of the sign test over the preferences; ties and skipped pairs say nothing."""
    seconds: float
    """Mean time for a pair; NaN without answers."""


def write_ab_page(
    folder_a: Path,
    folder_b: Path,
    path: Path,
    *,
    seed: int,
    count: int | None = None,
    lr: Path | None = None,
    hr: Path | None = None,
    title_a: str | None = None,
    title_b: str | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> AbSummary:
    """Writes one self-contained page on which the pictures of two folders are judged blind.

    Pictures belong together by their names without suffix. Order and sides are shuffled by `seed`,
    each side is first equally often (to one), and both sides are stored alike: lossless if
    `budget_bytes` of base64 allow, else in the highest WebP quality, else the most detailed part.
    Which side is which, and the titles, are encoded in the page: out of sight, not out of reach.

    Args:
        folder_a: results of one method.
        folder_b: results of the other.
        path: the page; written whole or not at all.
        seed: from 0 to 2**53 - 1; the same seed and files give the same page.
        count: judge only so many pairs, drawn by `seed`.
        lr: inputs, to be shown between the two.
        hr: references, to be shown between the two.
        title_a: name of the first method; the folder's without it.
        title_b: name of the second method.
        budget_bytes: most bytes that pictures may take in the page.

    Raises:
        InputError: a folder is missing, or no pair is left to judge; OptionError: `seed` or `count`
            out of range, or `path` is no name for a page; OutputError: `path` cannot be written.
    """
    check_page(path)
    if not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"seed = {seed} is not allowed; give a whole number from 0 to 2**53 - 1")
    if count is not None and count < 1:
        raise OptionError(f"count = {count} is not allowed; give a whole number from 1")
    left_out: list[tuple[str, str]] = []
    sides = {
        key: _pictures(folder, left_out)
        for key, folder in (("a", folder_a), ("b", folder_b), ("hr", hr), ("lr", lr))
        if folder is not None
    }
    dice = random.Random(seed)
    names = _usable(sides, left_out, dice, count)
    if not names:
        told = "; ".join(f"{name}: {problem}" for name, problem in left_out[:3])
        raise InputError(
            f"{folder_a} and {folder_b}: no pair to judge ({told or 'both are empty'}); "
            "give two folders with results of the same pictures under the same names"
        )
    first = ["ab"[i % 2] for i in range(len(names))]
    dice.shuffle(first)
    titles = {"a": title_a or folder_a.resolve().name, "b": title_b or folder_b.resolve().name}
    if titles["a"] == titles["b"]:
        titles = {key: f"{title} ({key.upper()})" for key, title in titles.items()}

    blocks, items, packing = _pack(names, first, sides, budget_bytes)
    key = to_json({**titles, "first": "".join(first)})
    references = [name for name in ("hr", "lr") if any(name in item["shown"] for item in items)]
    identity = hashlib.sha256("".join([*blocks, key, str(seed)]).encode()).hexdigest()[:16]
    data = {
        "id": identity,
        "seed": seed,
        "made_by": f"addsr {__version__}",
        "packing": str(packing),
        "references": references,
        "items": items,
        "left_out": [{"name": name, "problem": problem} for name, problem in left_out],
        "key": encode_key(key, identity),
    }
    page = assemble(
        "ab.html",
        styles=("base.css", "ab.css"),
        scripts=_SCRIPTS,
        texts={"title": "Which picture is better?"},
        blocks=[data_block("ab-data", to_json(data)), *blocks],
    )
    write_whole(path, page)
    return AbSummary(len(names), len(page.encode()), str(packing), tuple(left_out))


def _pictures(folder: Path, left_out: list[tuple[str, str]]) -> dict[str, Path]:
    """Name without suffix -> picture file of a folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give a folder of pictures")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in FORMATS or not file.is_file():
            continue
        if file.stem in found:
            left_out.append((file.name, f"{found[file.stem]} has the same name; keep one of them"))
        else:
            found[file.stem] = file
    return found


def _usable(
    sides: dict[str, dict[str, Path]],
    left_out: list[tuple[str, str]],
    dice: random.Random,
    count: int | None,
) -> list[str]:
    """`count` shuffled names that can be judged; what is wrong with others goes to `left_out`."""
    for one, other in (("a", "b"), ("b", "a")):
        for name in sorted(sides[one].keys() - sides[other].keys()):
            left_out.append((name, f"only {sides[one][name]} is there; its partner is missing"))
    both = sorted(sides["a"].keys() & sides["b"].keys())
    dice.shuffle(both)
    names: list[str] = []
    for name in both:
        if len(names) == count:
            break
        try:
            sizes = [read_image(sides[key][name]).size for key in ("a", "b")]
        except InputError as error:
            left_out.append((name, str(error)))
        else:
            if sizes[0] == sizes[1]:
                names.append(name)
                _check_references(name, sizes[0], sides, left_out)
            else:
                (w, h), (v, g) = sizes
                left_out.append((name, f"sizes differ: {w} x {h} and {v} x {g}; make them equal"))
    left_out.sort()
    return names


def _check_references(
    name: str,
    size: tuple[int, int],
    sides: dict[str, dict[str, Path]],
    left_out: list[tuple[str, str]],
) -> None:
    """Drops references of `name` that cannot be shown; the pair itself is judged without."""
    for key in ("hr", "lr"):
        if key not in sides:
            continue
        problem = f"no {key} picture of this name"
        if name in sides[key]:
            try:
                width, height = read_image(sides[key][name]).size
            except InputError as error:
                problem = str(error)
            else:
                if abs(width * size[1] - height * size[0]) <= max(size):
                    continue  # of the same shape, up to one pixel
                problem = f"{sides[key][name]}: {width} x {height} is of another shape"
            del sides[key][name]
        left_out.append((name, f"{problem}; judged without it"))


def _pack(
    names: list[str], first: list[str], sides: dict[str, dict[str, Path]], budget_bytes: int
) -> tuple[list[str], list[dict[str, Any]], Packing]:
    """Data blocks and descriptions of the pairs in the best packing that fits."""
    keys = [key for key in sides if key != "lr"]
    files = [sides[key][name] for name in names for key in keys if name in sides[key]]
    sample = [read_image(file).convert("RGB") for file in spread(files, SAMPLE)]
    chosen = choose_packing(sample, len(files), budget_bytes)
    for packing in PACKINGS[chosen:]:
        blocks: list[str] = []
        items: list[dict[str, Any]] = []
        for name, one in zip(names, first, strict=True):
            images = {
                key: read_image(files[name]).convert("RGB")
                for key, files in sides.items()
                if name in files
            }
            block, item = _pair(images, one, packing, len(blocks))
            blocks.append(block)
            items.append({"name": name, **item})
            if sum(map(len, blocks)) > budget_bytes and packing is not PACKINGS[-1]:
                break  # the sample told too little: the next packing starts over
        else:
            return blocks, items, packing
    raise AssertionError("the last packing is always taken")


def _pair(
    images: dict[str, Image.Image], first: str, packing: Packing, number: int
) -> tuple[str, dict[str, Any]]:
    a = images["a"]
    scale = a.width // images["lr"].width if "lr" in images else 1
    # chosen on both, so that it shows what either of them made
    box = packing.box(Image.blend(a, images["b"], 0.5), max(scale, 1))
    packed: dict[str, str] = {}
    for key, image in images.items():
        ratio = image.width / a.width, image.height / a.height
        part = tuple(round(value * ratio[i % 2]) for i, value in enumerate(box))
        name = key if key in ("hr", "lr") else "1" if key == first else "2"
        how = LOSSLESS if key == "lr" else packing  # small, and looked at pixel by pixel
        packed[name] = to_text(how.encode(image.crop(cast("Box", part))))
    # sorted: the order of the entries must not tell which is which
    block = data_block(f"pair-{number}", to_json(dict(sorted(packed.items()))))
    size = [box[2] - box[0], box[3] - box[1]]
    return block, {"size": size, "shown": [key for key in ("hr", "lr") if key in packed]}


def encode_key(text: str, identity: str) -> str:
    """`text` (ASCII) out of plain sight: a fixed stream of bytes laid over it, in base64.

    Anyone who wants to can undo that; the page itself does.
    """
    state = int(identity[:8], 16) | 1
    mixed = bytearray()
    for byte in text.encode("ascii"):
        state ^= (state << 13) & 0xFFFFFFFF
        state ^= state >> 17
        state ^= (state << 5) & 0xFFFFFFFF
        mixed.append(byte ^ (state >> 24))
    return base64.b64encode(mixed).decode()


def read_ab(path: str | Path) -> AbResult:
    """The answers in a file that the page saved.

    Raises:
        InputError: missing, not such a file, or a field with a value that cannot be.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: is too large for saved answers; give the file of the page")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); save it from the page again") from error
    check_format(value, FORMAT, VERSION, str(path))

    def take(field: str, kind: type | tuple[type, ...], where: Any = value) -> Any:
        found = where.get(field) if isinstance(where, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise InputError(f"{path}: {field} is {found!r}; save the file from the page again")
        return found

    titles = take("titles", dict)
    answers: list[Answer] = []
    for one in take("answers", list):
        choice = take("choice", str, one)
        seconds = float(take("seconds", (int, float), one))
        if choice not in _CHOICES:
            raise InputError(f"{path}: choice is {choice!r}; allowed are {', '.join(_CHOICES)}")
        if not 0 <= seconds < math.inf:
            raise InputError(f"{path}: seconds is {seconds}; it must be a number from 0")
        answers.append(Answer(take("image", str, one), choice, seconds))
    names = [answer.image for answer in answers]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: answers name a picture twice; save the file from the page again")
    return AbResult(
        title_a=take("a", str, titles),
        title_b=take("b", str, titles),
        seed=take("seed", int),
        page=take("page", str),
        pairs=take("pairs", int),
        answers=tuple(answers),
    )


def tally(results: AbResult | Iterable[AbResult]) -> Tally:
    """Counts of one judge's answers, or of several judges' on the same two methods, and the test.

    The test takes every answer as independent; several judges of the same pictures are not quite.

    Raises:
        InputError: no results, or results that compare other methods.
    """
    several = [results] if isinstance(results, AbResult) else list(results)
    if not several:
        raise InputError("results: none to count; give at least one saved file")
    titles = several[0].title_a, several[0].title_b
    for one in several:
        if (one.title_a, one.title_b) != titles:
            raise InputError(
                f"titles: {one.title_a!r} against {one.title_b!r} is another comparison than "
                f"{titles[0]!r} against {titles[1]!r}; count them apart"
            )
    answers = [answer for one in several for answer in one.answers]
    counts = {choice: sum(answer.choice == choice for answer in answers) for choice in _CHOICES}
    seconds = math.fsum(answer.seconds for answer in answers)
    return Tally(
        *titles,
        judges=len(several),
        wins_a=counts["a"],
        wins_b=counts["b"],
        ties=counts["tie"],
        skipped=counts["skip"],
        p=sign_test(counts["a"], counts["b"]),
        seconds=seconds / len(answers) if answers else math.nan,
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: 2 P(X <= min(wins, losses)), at most 1, X ~ B(n, 1/2).

    In [0, 1]; small: a split this uneven would be rare if both were equally good. Correctly
    rounded, since numerator and denominator are whole numbers.

    >>> sign_test(9, 1)
    0.021484375

    Raises:
        OptionError: a negative count.
    """
    if wins < 0 or losses < 0:
        raise OptionError(f"wins = {wins}, losses = {losses}: give counts from 0")
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return 2 * tail / 2**n if 2 * tail < 2**n else 1.0
