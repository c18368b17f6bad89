"""What was done in an output folder, kept in a file there that survives a kill and a power cut.

SQLite with its rollback journal and full synchronisation: a row is on the disk when `record`
returns. One process at a time: the file stays locked while a batch works, and the system lifts the
lock of a process that was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from addsr.errors import InputError, OutputError

log = logging.getLogger(__name__)

NAME = "addsr-batch.sqlite"
VERSION = 1
"""`user_version` of the file; another one is refused."""
State = Literal["done", "failed"]
_TABLE = """
CREATE TABLE IF NOT EXISTS pictures (
    output TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    source_sha256 TEXT,
    settings_sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('done', 'failed')),
    output_bytes INTEGER,
    error TEXT,
    seconds REAL,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One row: what became of one result."""

    source: str
    source_sha256: str | None
    """None: the source could not be read."""
    settings_sha256: str
    state: State
    output_bytes: int | None = None
    error: str | None = None
    seconds: float = 0.0


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        InputError: it cannot be read.
    """
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                total.update(block)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; check the spelling and the folder") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give picture files") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; check its permissions") from error
    except OSError as error:  # such as a link to itself, or a disk that fails
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the disk") from error
    return total.hexdigest()


def hash_settings(settings: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides what a result looks like; what is no plain value as its repr."""
    text = json.dumps(settings, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


class Manifest:
    """The file in one output folder, locked for this process until it is closed.

    Raises:
        OutputError: another process works in the folder, or the file is damaged, of another
            version, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._lock = threading.Lock()  # the stages of a batch run in several threads
        self._is_full = False
        try:
            self._rows = sqlite3.connect(self.path, timeout=0.1, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            self._open()
        except BaseException:
            self._rows.close()
            raise

    def _open(self) -> None:
        try:
            self._rows.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._rows.execute("PRAGMA journal_mode = DELETE")
            self._rows.execute("PRAGMA synchronous = FULL")
            self._rows.execute("BEGIN EXCLUSIVE")
            (found,) = self._rows.execute("PRAGMA user_version").fetchone()
            if found not in (0, VERSION):
                raise OutputError(
                    f"{self.path}: is of version {found}, not {VERSION}; use the addsr it is from, "
                    "or another folder"
                )
            self._rows.execute(_TABLE)
            self._rows.execute(f"PRAGMA user_version = {VERSION}")
            self._rows.execute("SELECT source_sha256, output_bytes, error FROM pictures LIMIT 1")
            self._rows.commit()
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> OutputError:
        if "locked" in str(error):
            return OutputError(
                f"{self.folder}: another addsr works in this folder; wait for it, or give another"
            )
        if "not a database" in str(error) or "malformed" in str(error) or "no such" in str(error):
            return OutputError(
                f"{self.path}: is damaged ({error}); delete it, and all pictures are done again"
            )
        return OutputError(f"{self.path}: cannot be written ({error}); choose another folder")

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._rows.close()

    def find(self, target: Path) -> Entry | None:
        """What is known of `target`.

        Raises:
            OutputError: the file is damaged.
        """
        try:
            with self._lock:
                row = self._rows.execute(
                    "SELECT source, source_sha256, settings_sha256, state, output_bytes, error, "
                    "seconds FROM pictures WHERE output = ?",
                    (self._key(target),),
                ).fetchone()
        except sqlite3.Error as error:
            raise self._explain(error) from error
        return None if row is None else Entry(*row)

    def is_done(self, target: Path, source_sha256: str, settings_sha256: str) -> bool:
        """Whether `target` was made of the same source in the same way and is still there whole."""
        entry = self.find(target)
        if entry is None or entry.state != "done":
            return False
        if (entry.source_sha256, entry.settings_sha256) != (source_sha256, settings_sha256):
            return False
        try:
            return target.stat().st_size == entry.output_bytes
        except OSError:
            return False

    def record(self, target: Path, entry: Entry) -> None:
        """Keeps `entry`; on the disk when this returns.

        A manifest that cannot be written costs a later run its knowledge and no picture, so that
        is told once and not raised.
        """
        values = (
            self._key(target), entry.source, entry.source_sha256, entry.settings_sha256,
            entry.state, entry.output_bytes, entry.error, entry.seconds,
        )  # fmt: skip
        try:
            with self._lock:
                self._rows.execute(
                    "INSERT OR REPLACE INTO pictures (output, source, source_sha256, "
                    "settings_sha256, state, output_bytes, error, seconds) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
                self._rows.commit()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._rows.rollback()
            if not self._is_full:
                log.warning(
                    "%s: cannot be written (%s); what is done now will be done again by the next "
                    "run", self.path, error,
                )  # fmt: skip
            self._is_full = True

    def made_here(self, path: Path) -> bool:
        """Whether `path` is a result of an earlier run, or the manifest with its journal."""
        return path.name.startswith(NAME) or self.find(path) is not None

    def _key(self, target: Path) -> str:
        return plain(os.path.relpath(target, self.folder).replace(os.sep, "/"))


def plain(text: str) -> str:
    """`text` with what UTF-8 cannot write, as in names of other encodings, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def remove_leftovers(targets: Iterable[Path]) -> int:
    """Deletes the half-written files that a killed run left beside `targets`; gives their number.

    Only while the manifest is locked: another process's files are none of ours.
    """
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name[:40])
    count = 0
    for folder, wanted in names.items():
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                match = _LEFTOVER.fullmatch(entry.name)
                if match and match[1] in wanted:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
                        count += 1
    return count


_LEFTOVER = re.compile(r"\.(.{1,40})\.[0-9a-f]{8}\.part", re.DOTALL)
"""What `addsr.image.writing` calls a file before it is whole."""
