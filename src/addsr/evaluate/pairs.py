"""Which file belongs to which: pictures matched by name, and everything that does not match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from addsr.errors import InputError
from addsr.image.reading import read_image, read_size

from .protocol import Dataset, Protocol

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

_ADDED = re.compile(r"(?:[-_. ](?!\d+$).+|x\d.*)")
"""What tools put behind a name: `_x4`, `-x4plus`, `_out`, `x4`; a number alone is another name."""
_ROLE = re.compile(r"[-_. ]?(?:(?:lr|hr|lq|gt)(?:x?\d)?|x\d)$", re.IGNORECASE)
"""What data sets put behind the names of inputs and references: `0801x4`, `Canon_001_LR4`."""


@dataclass(frozen=True)
class Problem:
    """Something that kept a picture from being scored, and what to do about it."""

    dataset: str
    image: str
    """Empty where it concerns a whole data set or method."""
    method: str | None
    problem: str
    remedy: str


@dataclass(frozen=True)
class Pair:
    """One picture of a data set."""

    name: str
    hr: Path | None
    lr: Path | None
    size: tuple[int, int]
    """Height and width that a result has, after the crop."""
    full: tuple[int, int]
    """The same before the crop."""
    scale: int
    """How many times larger than the input a result is."""


def list_pictures(folder: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """Name without suffix -> file, sorted by name, and the names that several files have.

    Raises:
        InputError: no such folder, or it cannot be listed.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: is no folder that can be read; give one") from error
    found: dict[str, list[Path]] = {}
    for path in entries:
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            found.setdefault(path.stem, []).append(path)
    single = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
    return single, {name: paths for name, paths in found.items() if len(paths) > 1}


def list_names(dataset: Dataset) -> set[str]:
    """The names of all pictures of a data set, whether they can be used or not."""
    folder = dataset.hr if dataset.hr is not None else dataset.lr
    assert folder is not None
    return {name for names in list_pictures(folder) for name in names}


def without_suffix(name: str) -> str:
    """A picture's name; only the suffixes of pictures are taken off, as `a.b` is a name too."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def find_pairs(
    dataset: Dataset, protocol: Protocol, limit: int | None = None
) -> tuple[list[Pair], list[Problem]]:
    """The pictures of a data set that can be used, in the order of their names, and the rest.

    Raises:
        InputError: a folder holds no pictures, or none can be used.
    """
    problems: list[Problem] = []

    def report(image: str, problem: str, remedy: str) -> None:
        problems.append(Problem(dataset.name, image, None, problem, remedy))

    folders: dict[str, dict[str, Path]] = {}
    doubled: set[str] = set()
    for role, folder in (("lr", dataset.lr), ("hr", dataset.hr)):
        if folder is None:
            continue
        files, several = list_pictures(folder)
        if not files and not several:
            raise InputError(f"{role}: {folder} holds no pictures; give PNG, WebP, JPEG or TIFF")
        for name, paths in several.items():
            names = " and ".join(path.name for path in paths)
            report(name, f"{names} in {folder} have the same name", "keep one of them")
            doubled.add(name)
        folders[role] = files
    names, lr, hr = _match_roles(folders, doubled, report, dataset)
    if dataset.images is not None:
        wanted = list(map(without_suffix, dataset.images))
        for name in wanted:
            if name not in names and name not in doubled:
                report(name, "is on the list but not in the folder", "add it, or shorten the list")
        problems = [one for one in problems if one.image in wanted or not one.image]
        names = [name for name in names if name in set(wanted)]
    if dataset.count is not None and dataset.images is None and limit is None:
        total = len(names) + len(doubled)
        if total != dataset.count:
            report(
                "", f"{total} pictures where the papers use {dataset.count}",
                "complete the folder; until then figures are not those of the papers",
            )  # fmt: skip
    pairs: list[Pair] = []
    for name in names[:limit]:
        try:
            pairs.append(_check(name, hr.get(name), lr.get(name), dataset, protocol))
        except _Unfit as error:
            report(name, error.problem, error.remedy)
        except InputError as error:
            report(name, *_split(str(error)))
    if not pairs:
        told = "; ".join(f"{one.image}: {one.problem}" for one in problems[:3])
        raise InputError(f"dataset {dataset.name}: no picture can be used ({told})")
    return pairs, problems


def match_results(
    names: Iterable[str],
    files: Sequence[str],
    what: str = "result",
    others: Iterable[str] = (),
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Picture -> stem of its result, and picture -> (problem, remedy) where there is no such.

    A result has the picture's name, or that name with something behind it (`_x4`, `-x4plus`,
    `_out`) if only one file has; of several names that begin it the longest counts, be it one of
    `others`, pictures of the data set that no result is looked for.
    """
    known = list(names)
    exact = set(files)
    found = {name: name for name in known if name in exact}
    open_names = {name for name in known if name not in exact}
    candidates: dict[str, list[str]] = {}
    if open_names:
        everything = {*known, *others}
        for stem in files:
            if stem in everything:
                continue
            for cut in range(len(stem) - 1, 0, -1):  # the longest name first
                if stem[:cut] in everything and _ADDED.fullmatch(stem[cut:]):
                    candidates.setdefault(stem[:cut], []).append(stem)
                    break
    missing: dict[str, tuple[str, str]] = {}
    for name in sorted(open_names):
        fitting = candidates.get(name, [])
        if len(fitting) == 1:
            found[name] = fitting[0]
        elif fitting:
            missing[name] = (
                f"{' and '.join(sorted(fitting)[:4])} could all be its {what}",
                f"keep one, or rename it {name}",
            )
        else:
            missing[name] = (f"has no {what}", f"add {name}.png")
    return found, missing


def _match_roles(
    folders: Mapping[str, dict[str, Path]],
    doubled: set[str],
    report: object,
    dataset: Dataset,
) -> tuple[list[str], dict[str, Path], dict[str, Path]]:
    """Names of the pictures with their inputs and references; what lacks one is reported."""
    lr, hr = folders.get("lr"), folders.get("hr")
    if lr is None or hr is None:
        only = lr if lr is not None else hr
        assert only is not None
        names = [name for name in only if name not in doubled]
        return names, lr or {}, hr or {}
    assert callable(report)
    # references keep their names; inputs may carry a `x4` or `_LR4`, references a `_HR`
    plain_lr, plain_hr = _plain(lr), _plain(hr)
    matched_lr: dict[str, Path] = {}
    for name in hr:
        key = name if name in lr else plain_lr.get(_stripped(name), "")
        if key and (key == name or plain_hr.get(_stripped(name)) == name):
            matched_lr[name] = lr[key]
    used = set(matched_lr.values())
    for name in hr:
        if name not in matched_lr and name not in doubled:
            report(name, f"has no input in {dataset.lr}", "add it, or take the reference away")
    for name, path in lr.items():
        if path not in used and name not in doubled:
            report(name, f"has no reference in {dataset.hr}", "add it, or take the input away")
    names = [name for name in hr if name in matched_lr and name not in doubled]
    return names, matched_lr, hr


def _stripped(name: str) -> str:
    return _ROLE.sub("", name) or name


def _plain(files: Mapping[str, Path]) -> dict[str, str]:
    """Name without its role -> name; left out where two names are the same without."""
    counted: dict[str, list[str]] = {}
    for name in files:
        counted.setdefault(_stripped(name), []).append(name)
    return {plain: names[0] for plain, names in counted.items() if len(names) == 1}


class _Unfit(Exception):
    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


def _check(
    name: str, hr: Path | None, lr: Path | None, dataset: Dataset, protocol: Protocol
) -> Pair:
    scale, crop = protocol.scale, dataset.crop
    full = (0, 0)
    if lr is not None:
        height, width = picture_size(lr, None)
        full = (height * scale, width * scale)
    if hr is not None:
        found = picture_size(hr, full if lr is not None else None)
        if lr is not None and found != full:
            raise _Unfit(
                f"reference {_size(found)} is not {scale} times the input "
                f"{_size((full[0] // scale, full[1] // scale))}",
                f"give a reference of {_size(full)}",
            )
        full = found
    size = full
    if crop is not None:
        if min(full) < crop:
            raise _Unfit(
                f"{_size(full)} is smaller than the crop of {crop}",
                "give larger pictures, or leave it out",
            )
        size = (crop, crop)
    return Pair(name, hr, lr, size, full, scale)


def picture_size(path: Path, expected: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width as shown; only where the stored size is not `expected` is more read.

    Raises:
        InputError: it cannot be read.
    """
    stored = read_size(path)
    if stored == expected or path.suffix.lower() in {".png", ".bmp"}:
        return stored
    if expected is not None and stored[::-1] != expected:
        return stored
    image = read_image(path) if _may_be_turned(path) else None
    return stored if image is None else (image.height, image.width)


def _may_be_turned(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _split(message: str) -> tuple[str, str]:
    """The problem and the remedy of one of our error messages, which a semicolon parts."""
    problem, _, remedy = message.rpartition("; ")
    return (problem, remedy) if problem else (message, "give another file")
