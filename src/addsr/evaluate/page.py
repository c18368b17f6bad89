"""The report as one HTML page: tables, scatter, pictures side by side; from file://, offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from addsr.errors import InputError
from addsr.image.reading import read_image

from .embed import assemble, data_block, to_json, write_whole
from .packing import LOSSLESS, PACKINGS, Box, Packing, choose_packing, spread, to_text

FORMAT, VERSION = "addsr-report", 1
BUDGET_BYTES = 24_000_000
MOST_IMAGES = 96
"""Images whose pictures a page holds at most; of more, the best and worst by each metric."""
SAMPLE = 12
"""Pictures from which the size of all is estimated."""

Progress = Callable[[int, int], None]
Member = tuple[str, str]
"""Dataset and image."""

_SCRIPTS = ("core.js", "zoom.js", "table.js", "scatter.js", "gallery.js", "viewer.js", "report.js")


@dataclass(frozen=True)
class PageSummary:
    """What `write_report_page` wrote."""

    size_bytes: int
    images: int
    """Images of which the page holds pictures."""
    packing: str
    """How they are stored, in words; empty without pictures."""
    left_out: tuple[str, ...]
    """Picture files that could not be shown, each with the reason."""


def write_report_page(
    result: dict[str, Any],
    root: Path,
    path: Path,
    *,
    pictures: bool = True,
    budget_bytes: int = BUDGET_BYTES,
    on_image: Progress | None = None,
) -> PageSummary:
    """Writes a report (the parsed report.json) as one self-contained page, whole or not at all.

    The page holds the report itself, for download, and of the pictures named in it (relative to
    `root`) as much as `budget_bytes` of base64 allow: whole and lossless if they fit, else in the
    highest WebP quality, else the most detailed part of each. The same input gives the same bytes.

    Args:
        result: a report of format `addsr-report`, version 1.
        root: the folder that the pictures' paths are relative to.
        path: the page.
        pictures: False leaves all pictures out.
        budget_bytes: most bytes that pictures may take in the page; the rest comes on top.
        on_image: called with (done, total) after the pictures of each image.

    Raises:
        InputError: `result` is no such report or not strict JSON; OutputError: `path` cannot be
            written.
    """
    check_format(result, FORMAT, VERSION, "report")
    report = to_json(result)
    shown = _collect(result, root, budget_bytes, on_image) if pictures else _Shown()
    index = {
        "packing": shown.packing,
        "images": shown.index,
        "left_out": shown.left_out,
        "omitted": shown.omitted,
    }
    protocol = _mapping(result.get("protocol"))
    page = assemble(
        "report.html",
        styles=("base.css", "report.css"),
        scripts=_SCRIPTS,
        texts={"title": f"{protocol.get('title') or 'Evaluation'} - addsr report"},
        blocks=[
            data_block("report-data", report),
            data_block("picture-index", to_json(index)),
            *shown.blocks,
        ],
    )
    write_whole(path, page)
    return PageSummary(
        size_bytes=len(page.encode()),
        images=len(shown.blocks),
        packing=shown.packing,
        left_out=tuple(
            f"{one['dataset']}/{one['image']}, {one['picture']}: {one['problem']}"
            for one in shown.left_out
        ),
    )


def check_format(value: Any, name: str, version: int, what: str) -> None:
    """Raises InputError where `value` is not a JSON object of this format and version."""
    if not isinstance(value, dict) or value.get("format") != name:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{what}: format is {found!r}, not {name!r}; give a file that addsr made")
    if value.get("version") != version:
        raise InputError(
            f"{what}: version {value.get('version')!r} is not {version}; use the addsr it is from"
        )


@dataclass
class _Shown:
    """What a page holds of the pictures."""

    packing: str = ""
    blocks: list[str] = field(default_factory=list)
    index: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    omitted: int = 0
    """Images with pictures beyond `MOST_IMAGES`."""


def _collect(
    result: dict[str, Any], root: Path, budget_bytes: int, on_image: Progress | None
) -> _Shown:
    members = _choose(result)
    files = [root / path for member in members for path in _paths(result, member).values()]
    sample: list[Image.Image] = []
    for file in spread(files, SAMPLE):
        try:
            sample.append(read_image(file).convert("RGB"))
        except InputError:
            continue  # told below, where every file has its turn
    first = choose_packing(sample, len(files), budget_bytes)
    for packing in PACKINGS[first:]:
        shown = _Shown(packing=str(packing) if files else "")
        shown.omitted = sum(1 for _ in _members(result)) - len(members)
        used = 0
        for done, member in enumerate(members, start=1):
            used += _add(shown, member, _paths(result, member), root, packing)
            # the sample told too little: the next packing starts over
            if used > budget_bytes and packing is not PACKINGS[-1]:
                break
            if on_image is not None:
                on_image(done, len(members))
        else:
            return shown
    raise AssertionError("the last packing is always taken")


def _add(
    shown: _Shown, member: Member, paths: Mapping[str, str], root: Path, packing: Packing
) -> int:
    """Packs the pictures of one image; gives the bytes they take."""
    dataset, name = member
    opened: dict[str, Image.Image] = {}
    for key, path in paths.items():
        try:
            opened[key] = read_image(root / path).convert("RGB")
        except InputError as error:
            shown.left_out.append(
                {"dataset": dataset, "image": name, "picture": key, "problem": str(error)}
            )
    # the reference sets the frame; without one, the largest picture
    frame = opened.get("hr") or max(
        opened.values(), key=lambda image: image.width * image.height, default=None
    )
    if frame is None:
        return 0
    ratios = [frame.width // image.width for image in opened.values() if image.width < frame.width]
    box = packing.box(frame, max(ratios, default=1))
    packed: dict[str, str] = {}
    areas: dict[str, Box] = {}
    for key, image in opened.items():
        part = _part(image, frame.size, box)
        if part is None:  # of a size that does not belong: whole, stretched over the frame
            areas[key] = (0, 0, *frame.size)
            part = (0, 0, *image.size)
        how = LOSSLESS if key == "lr" else packing  # inputs are small and are looked at as squares
        packed[key] = to_text(how.encode(image.crop(part)))
    number = len(shown.blocks)
    block = data_block(f"pictures-{number}", to_json(packed))
    shown.blocks.append(block)
    shown.index.setdefault(dataset, {})[name] = {
        "block": number,
        "size": frame.size,
        "box": box,
        "areas": areas,
        "sizes": {key: image.size for key, image in opened.items()},
    }
    return len(block)


def _part(size_of: Image.Image, frame: tuple[int, int], box: Box) -> Box | None:
    """`box` of the frame in a picture's own pixels; None where it falls between pixels."""
    (width, height), (w, h) = frame, size_of.size
    exact = [box[0] * w, box[1] * h, box[2] * w, box[3] * h]
    sides = [width, height, width, height]
    if any(value % side for value, side in zip(exact, sides, strict=True)):
        return None
    left, top, right, bottom = (value // side for value, side in zip(exact, sides, strict=True))
    return left, top, right, bottom


def _members(result: dict[str, Any]) -> Iterator[Member]:
    """The images that have pictures, in the report's order."""
    pictures = _mapping(result.get("pictures"))
    for dataset in result.get("datasets") or ():
        images = _mapping(pictures.get(dataset["name"]))
        for image in dataset.get("images") or ():
            if images.get(image):
                yield dataset["name"], image


def _paths(result: dict[str, Any], member: Member) -> dict[str, str]:
    """Picture -> path of one image: references first, then the methods in the report's order."""
    given = _mapping(_mapping(_mapping(result["pictures"])[member[0]])[member[1]])
    order = ["hr", "lr", *(method["id"] for method in result.get("methods") or ())]
    return {key: str(given[key]) for key in dict.fromkeys(order) if given.get(key)}


def _choose(result: dict[str, Any]) -> list[Member]:
    """At most `MOST_IMAGES` images: all, or every dataset's best and worst by each metric."""
    everything = list(_members(result))
    if len(everything) <= MOST_IMAGES:
        return everything
    known = set(everything)
    queues: list[list[Member]] = []
    for dataset, scores in _mapping(result.get("scores")).items():
        for metrics in _mapping(scores).values():
            for figures in _mapping(metrics).values():
                ranked = [
                    (dataset, name)
                    for name in _ranked(_mapping(_mapping(figures).get("images")))
                    if (dataset, name) in known
                ]
                queues += [ranked[:MOST_IMAGES], ranked[: -MOST_IMAGES - 1 : -1]]
    queues.append(spread(everything, MOST_IMAGES))  # should there be fewer figures than pictures
    chosen: set[Member] = set()
    for place in range(MOST_IMAGES):  # the first of every ranking, then the second, and so on
        for queue in queues:
            if len(chosen) < MOST_IMAGES and place < len(queue):
                chosen.add(queue[place])
    return [member for member in everything if member in chosen]


def _ranked(figures: Mapping[str, Any]) -> list[str]:
    """Names by rising figure; those without a number are left out."""
    numbers = {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) or value in ("inf", "-inf")
    }
    return sorted(numbers, key=lambda name: (numbers[name], name))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
