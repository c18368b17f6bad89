"""Where each result goes: decided, and refused, before any work."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from addsr.errors import InputError, OptionError, OutputError
from addsr.image.formats import FORMATS, KEPT_SUFFIXES, find_format

from .discovery import Found


@dataclass(frozen=True)
class Job:
    """An input and the file it becomes."""

    source: Path
    target: Path


FIELDS = ("stem", "suffix", "scale", "target", "model", "seed", "preview")
"""What a name template may hold."""
_FORMAT = re.compile(r"([^{}]?[<>=^])?0?[0-9]{0,2}(\.[0-9]{1,2})?[sdxX]?")
"""What may follow a field in the braces: nothing that fails or fills the memory for some seed."""
_SPOILT = re.compile(r"[\x00-\x1f/\\\\]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any suffix."""


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
        find_format(path)
    except OutputError as error:
        raise OutputError(f"{error}, or {output}{os.sep} for a folder") from error
    files = len({_identity(one) for one in inputs})
    if files > 1:
        raise OptionError(
            f"output: {path} is one file, but there are {files} inputs; give a folder"
        )
    return None


def check_template(template: str) -> str:
    """`template` itself.

    Raises:
        OptionError: a field that does not exist or cannot be filled in, a folder in it, or the same
            name for all.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
        fields = [name for _, name, _, _ in parts]
        unknown = [name for name in fields if name not in FIELDS]
        if unknown:
            raise OptionError(
                f"name: {{{unknown[0]}}} is unknown; use {', '.join(f'{{{n}}}' for n in FIELDS)}"
            )
        for _, name, spec, conversion in parts:
            if conversion is not None or not _FORMAT.fullmatch(spec or ""):
                raise ValueError(f"what follows {name} in its braces cannot be used")
        template.format(**dict.fromkeys(FIELDS, "x") | {"seed": 0})
    except OptionError:
        raise
    except (ValueError, LookupError) as error:
        raise OptionError(
            f"name: {template!r} is no template ({error}); write fields such as {{stem}} and "
            "{seed:03}, and {{ for a brace"
        ) from error
    if "stem" not in fields:
        raise OptionError(f"name: {template!r} gives all results one name; put {{stem}} into it")
    if _SPOILT.search(template):
        raise OptionError(f"name: {template!r} holds a folder; give folders with --output")
    return template


def make_jobs(
    found: Sequence[Found],
    output: str | None,
    label: str,
    *,
    template: str | None = None,
    values: dict[str, Any] | None = None,
    suffix: str | None = None,
) -> list[Job]:
    """Each input with the file it becomes; a picture that is named twice appears once.

    Without `output`, or in an input's own folder, that is NAME_LABEL.SUFFIX beside it. What was
    found in a folder keeps its place below it.

    Args:
        label: the target in a name (`Target.label`).
        template: the name of each result, instead.
        values: for the fields of the template besides `stem` and `suffix`.
        suffix: of the results, in place of the inputs' own.

    Raises:
        OptionError: a result would take the place of an input or of another result, or a template
            that cannot be used.
        InputError: an input without a name, such as `.`.
    """
    inputs = [one.path for one in found]
    folder = choose_folder(output, inputs)
    if folder is None and output is None and any(one.inside is not None for one in found):
        raise OptionError("output: results of a folder need a place; give a folder with -o")
    originals = {_identity(path): path for path in inputs}
    jobs: dict[tuple[object, str], Job] = {}
    for one in found:
        path = one.path
        if output is None or folder is not None:
            place = folder if folder is None or one.inside is None else folder / one.inside
            target = _name(path, place, label, template, values or {}, suffix)
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
        other = jobs.setdefault((_identity(target.parent), _folded(target.name)), Job(path, target))
        if _identity(other.source) != _identity(path):
            raise OptionError(
                f"output: {other.source} and {path} would both become {target}; "
                "rename one or run them apart"
            )
    return list(jobs.values())


def _name(
    path: Path,
    folder: Path | None,
    label: str,
    template: str | None,
    values: dict[str, Any],
    suffix: str | None,
) -> Path:
    if not path.name:
        raise InputError(f"{path}: is a folder; give picture files, for example {path / '*.jpg'}")
    is_wanted = suffix is not None
    if suffix is None:
        suffix = path.suffix if path.suffix.lower() in KEPT_SUFFIXES else ".png"
    if template is not None:
        name = template.format(**{"target": label, **values, "stem": path.stem, "suffix": suffix})
        own = Path(name).suffix.lower()
        if own not in FORMATS:
            name += suffix
        elif is_wanted and FORMATS[own] != FORMATS[suffix.lower()]:
            raise OptionError(
                f"name: {name} and --format {suffix.removeprefix('.')} contradict each other; end "
                "the template with {suffix}, or leave one out"
            )
        _check_name(name, path)
        return (path.parent if folder is None else folder) / name
    if folder is None or _identity(folder) == _identity(path.parent):
        return path.with_name(f"{path.stem}_{label}{suffix}")
    return folder / f"{path.stem}{suffix}"


def _check_name(name: str, path: Path) -> None:
    if _SPOILT.search(name) or name.startswith(".") or _RESERVED.fullmatch(name):
        raise OptionError(
            f"name: {path} would become {name!r}, which is no name for a file everywhere; "
            "change the template"
        )


def _folded(name: str) -> str:
    """What names have in common that macOS or Windows hold for the same, as A.png and a.png."""
    return unicodedata.normalize("NFC", name).casefold()


def _identity(path: Path) -> object:
    """What all spellings of and links to one file have in common, whether it exists or not."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
