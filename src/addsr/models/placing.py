"""Folders of imported models put in their place, and removed: whole, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from addsr.errors import ModelError, OptionError, OutputError

from .inventory import embedded_models
from .store import (
    FACTS,
    Installed,
    Part,
    check_name,
    find_installed,
    read_facts,
    store_folder,
)

log = logging.getLogger("addsr")

_CHUNK = 1 << 22
_STALE_SECONDS = 24 * 3600
_SLACK_BYTES = 16 << 20
_BEFORE = ".before"
"""A model that makes way for another; it is never deleted before that one is in its place."""
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def check_free(name: str, force: bool) -> None:
    """Whether a model can be imported under `name`.

    Raises:
        OptionError: it is no name, or that of an embedded model.
        ModelError: it is taken, and not `force`; or what is there was not imported.
    """
    check_name(name)
    _settle()
    if name in embedded_models():
        raise OptionError(f"name: {name!r} is the embedded model; choose another --name")
    folder = store_folder() / name
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not (folder / FACTS).is_file():
        raise ModelError(
            f"{folder}: is there already and no imported model; move it away, or choose another "
            "--name"
        )
    if not force:
        raise ModelError(
            f"{name}: is imported already ({folder}); give --force to replace it, or another --name"
        )


def check_space(needed: int) -> None:
    """Whether the disk of the store has `needed` bytes left.

    Raises:
        OutputError: it has not, or the store cannot be made.
    """
    folder = store_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made ({error}); point ADDSR_MODELS to a folder that can"
        ) from error
    if free < needed + _SLACK_BYTES:
        raise OutputError(
            f"{folder}: the model takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "make room, point ADDSR_MODELS to another disk, or import with --dtype fp16"
        )


@contextmanager
def unfinished(name: str) -> Generator[Path]:
    """A new hidden folder in the store; whatever happens, it is gone in the end.

    What other imports left behind, killed without notice, is removed first.

    Raises:
        OutputError: the store cannot be written.
    """
    store = store_folder()
    folder = store / f".{name}.{secrets.token_hex(4)}.part"
    try:
        store.mkdir(parents=True, exist_ok=True)
        for old in store.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # its own import was quicker
                if old.is_dir() and time.time() - old.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise OutputError(
            f"{store}: cannot be written ({error}); point ADDSR_MODELS to a folder that can"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(folder: Path, name: str, force: bool) -> Path:
    """Moves a finished folder to its place; with `force` an imported model makes way for it.

    Files that no import wrote move from the old folder to the new one.

    Raises:
        OptionError, ModelError: as `check_free`, for another import may have been quicker.
        OutputError: it cannot be moved; what was there before is there still.
    """
    check_free(name, force)
    target = store_folder() / name
    before = None
    try:
        if target.exists():
            before = target.with_name(f".{name}.{secrets.token_hex(4)}{_BEFORE}")
            target.rename(before)
        folder.rename(target)
    except BaseException as error:  # Ctrl-C too
        if before is not None and before.exists() and not target.exists():
            before.rename(target)
        if isinstance(error, OSError):
            raise OutputError(f"{target}: cannot be put in place ({error})") from error
        raise
    if before is not None:
        _retire(before, target)
    return target


def _settle() -> None:
    """Ends what a process began that was killed while one model made way for another."""
    for before in store_folder().glob(f".*{_BEFORE}"):
        # .NAME.RANDOM.before
        target = before.with_name(before.name.removesuffix(_BEFORE)[1:].rpartition(".")[0])
        with contextlib.suppress(OSError):
            if target.exists():
                _retire(before, target)
            else:
                before.rename(target)


def _retire(before: Path, successor: Path) -> None:
    """Deletes a model that was replaced; what no import wrote moves to its successor."""
    ours = {FACTS}
    for folder in (before, successor):
        try:
            ours |= read_facts(folder).files.keys()
            break
        except ModelError:  # damaged, which may be why it is replaced: both have the same layout
            continue
    try:
        for path in sorted(before.rglob("*")):
            inside = path.relative_to(before)
            if (path.is_dir() and not path.is_symlink()) or inside.as_posix() in ours:
                continue
            new = successor / inside
            if os.path.lexists(new):
                new = new.with_name(f"{new.name}{_BEFORE}")
            new.parent.mkdir(parents=True, exist_ok=True)
            path.rename(new)
    except OSError as error:
        log.warning("%s: files that no import wrote stay there (%s)", before, error)
        return
    shutil.rmtree(before, ignore_errors=True)


def remove(name: str) -> list[str]:
    """Deletes what the import of `name` wrote; gives the files it did not write, which stay.

    Raises:
        OptionError: it is an embedded model, which is part of the package.
        ModelError: nothing of that name was imported, or its facts are damaged.
        OutputError: a file cannot be deleted.
    """
    if name in embedded_models():
        raise OptionError(f"{name}: is embedded in addsr and cannot be removed alone")
    model = find_installed(name)
    if model is None:
        raise ModelError(
            f"{name}: no imported model is called that in {store_folder()}; see `addsr models list`"
        )
    if model.folder.is_symlink():
        raise ModelError(f"{model.folder}: is a link, which no import makes; remove it by hand")
    whole = model.folder.resolve()
    for inside in model.files:
        if not (model.folder / inside).parent.resolve().is_relative_to(whole):
            raise ModelError(
                f"{model.folder / inside}: leads out of the folder, which no import makes; remove "
                "the model by hand"
            )
    try:
        # the facts go last: if this is broken off, it can be done again
        for inside in (*model.files, FACTS):
            (model.folder / inside).unlink(missing_ok=True)
        folders = sorted((f for f in model.folder.rglob("*") if f.is_dir()), reverse=True)
        for folder in (*folders, model.folder):
            with contextlib.suppress(OSError):  # holds files of others
                folder.rmdir()
    except OSError as error:
        raise OutputError(f"{model.folder}: cannot be removed ({error})") from error
    return sorted(str(f) for f in model.folder.rglob("*") if not f.is_dir())


def measure(path: Path, progress: Progress | None = None) -> Part:
    """Size and sha256 of a file.

    Raises:
        ModelError: it cannot be read.
    """
    total = hashlib.sha256()
    done = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, size)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    return Part(done, total.hexdigest())


def measure_all(folder: Path) -> dict[str, Part]:
    """All files below `folder`, by their path in it."""
    return {
        file.relative_to(folder).as_posix(): measure(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def damages(model: Installed, progress: Progress | None = None) -> list[str]:
    """What is wrong with the files of a model, one line for each; empty if nothing is."""
    found: list[str] = []
    done, size = 0, model.bytes
    for name, part in model.files.items():
        path = model.folder / name
        if not path.is_file():
            found.append(f"{path}: is missing")
        elif path.stat().st_size != part.bytes:
            found.append(f"{path}: has {path.stat().st_size} bytes, not {part.bytes}")
        else:
            start = done
            try:
                now = measure(path, progress and (lambda n, _, s=start: progress(s + n, size)))
            except ModelError as error:
                found.append(str(error))
            else:
                if now.sha256 != part.sha256:
                    found.append(f"{path}: has changed (sha256 {now.sha256}, not {part.sha256})")
        done += part.bytes
    return found
