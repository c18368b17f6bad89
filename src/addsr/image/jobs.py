"""Which files are read and where each result goes: decided, and refused, before any work."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from addsr.errors import InputError, OptionError, OutputError

from .io import FORMATS, output_format

Job = tuple[Path, Path]
"""An input and the file it becomes."""


def expand(inputs: Sequence[Path]) -> list[Path]:
    """`inputs` with patterns that the shell left alone (in quotes, on Windows) filled in.

    Raises:
        InputError: a pattern that matches nothing.
    """
    found: list[Path] = []
    for path in inputs:
        # a file may really be called `a[1].jpg`
        if os.path.lexists(path) or not any(c in str(path) for c in "*?["):
            found.append(path)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise InputError(f"{path}: matches nothing; check the pattern and the folder")
        found += [Path(match) for match in matches]
    return found


def choose_folder(output: str | None, inputs: Sequence[Path]) -> Path | None:
    """The folder that `output` means, there or yet to be made; None: a file, or none was given.

    A text and not a path, because `results/` says that it is a folder and a path forgets that.

    Raises:
        OptionError: one file for several inputs; OutputError: a suffix that cannot be written.
    """
    if output is None:
        return None
    path = Path(output)
    separators = (os.sep, os.altsep or os.sep)
    if output.endswith(separators) or os.path.isdir(path) or not path.suffix:
        return path
    try:
        output_format(path)
    except OutputError as error:
        raise OutputError(f"{error}, or {output}{os.sep} for a folder") from error
    files = len({_identity(one) for one in inputs})
    if files > 1:
        raise OptionError(
            f"output: {path} is one file, but there are {files} inputs; give a folder"
        )
    return None


def make_jobs(inputs: Sequence[Path], output: str | None, scale: float) -> list[Job]:
    """Each input with the file it becomes; a picture that is named twice appears once.

    Without `output`, or in an input's own folder, that is NAME_x4.SUFFIX beside it.

    Raises:
        OptionError: a result would take the place of an input or of another result.
        InputError: an input without a name, such as `.`.
    """
    folder = choose_folder(output, inputs)
    originals = {_identity(path): path for path in inputs}
    jobs: dict[tuple[object, str], Job] = {}
    for path in inputs:
        if output is None or folder is not None:
            target = _name(path, folder, scale)
        else:
            target = Path(output)
        original = originals.get(_identity(target))
        if original is not None:
            is_own = _identity(original) == _identity(path)
            what = "the input itself" if is_own else f"an input too ({original})"
            raise OptionError(
                f"output: {path} would become {target}, which is {what}; "
                "originals are kept: give another name or folder with -o"
            )
        # file systems of macOS and Windows hold A.png and a.png for the same
        place = (_identity(target.parent), target.name.casefold())
        other, _ = jobs.setdefault(place, (path, target))
        if _identity(other) != _identity(path):
            raise OptionError(
                f"output: {other} and {path} would both become {target}; "
                "rename one or run them apart"
            )
    return list(jobs.values())


def _name(path: Path, folder: Path | None, scale: float) -> Path:
    if not path.name:
        raise InputError(f"{path}: is a folder; give picture files, for example {path / '*.jpg'}")
    suffix = path.suffix if path.suffix.lower() in FORMATS else ".png"
    if folder is None or _identity(folder) == _identity(path.parent):
        return path.with_name(f"{path.stem}_x{scale:g}{suffix}")
    return folder / f"{path.stem}{suffix}"


def _identity(path: Path) -> object:
    """What all spellings of and links to one file have in common, whether it exists or not."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
