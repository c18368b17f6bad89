"""Files, folders and patterns become the pictures to work on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from addsr.errors import InputError
from addsr.image.expanding import expand
from addsr.image.formats import FORMATS

SUFFIXES = frozenset({*FORMATS, ".heif"})
"""Of the files that a folder is searched for; one that cannot be read is told like any other."""


@dataclass(frozen=True)
class Found:
    """One picture to work on."""

    path: Path
    inside: Path | None = None
    """Its folder within the folder that was given; None: it was named itself."""


def discover(
    inputs: Sequence[Path],
    *,
    recursive: bool = False,
    is_left_out: Callable[[Path], bool] = lambda _: False,
) -> list[Found]:
    """The pictures that `inputs` mean, folders in the order of their names.

    Of a folder these are the files with a picture's suffix, hidden ones excepted. Links to files
    count, links to folders are not followed, so that no loop is walked.

    Args:
        recursive: search the folders below as well.
        is_left_out: asked about files and folders found in a folder, not of what was named.

    Raises:
        InputError: a pattern that matches nothing, or a folder without pictures.
    """
    found: list[Found] = []
    for path in expand(inputs):
        if os.path.isdir(path):
            found += _search(path, recursive, is_left_out)
        else:
            found.append(Found(path))
    return found


def _search(root: Path, recursive: bool, is_left_out: Callable[[Path], bool]) -> list[Found]:
    found: list[Found] = []
    folders_below = False

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: folder cannot be searched ({error.strerror}); check its permissions"
        ) from error

    for here, folders, names in os.walk(root, onerror=refuse):
        folder = Path(here)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and not is_left_out(folder / name)
        )
        folders_below = folders_below or bool(folders)
        if not recursive:
            folders.clear()
        for name in sorted(names):
            path = folder / name
            if (
                name[0] != "."
                and path.suffix.lower() in SUFFIXES
                and not is_left_out(path)
                and _may_be_picture(path)
            ):
                found.append(Found(path, folder.relative_to(root)))
    if not found:
        way = ", or --recursive to search the folders in it" if folders_below else ""
        raise InputError(f"{root}: no pictures in this folder; give another{way}")
    return found


def _may_be_picture(path: Path) -> bool:
    """Not what would be waited for forever, such as a pipe; what is broken is told later."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
