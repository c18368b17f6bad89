"""What was made and measured before, found again by content: results as PNG, figures in SQLite.

Nothing here is trusted to be complete. A result appears under its name only when it is whole, a
figure is one row; so a run may end at any moment, and the next one goes on where it stopped. A
damaged database is put aside and begun anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from addsr.errors import OutputError
from addsr.image.writing import write_image

log = logging.getLogger(__name__)

COMMIT_SECONDS = 1.0
"""At most so much measuring is lost when a run is killed."""

_TABLES = """
CREATE TABLE IF NOT EXISTS scores (
    key TEXT, metric TEXT, version TEXT, value REAL, note TEXT,
    PRIMARY KEY (key, metric, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (
    key TEXT, version TEXT, count INTEGER, data BLOB, PRIMARY KEY (key, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY, method TEXT, seconds REAL, pixels INTEGER, warm INTEGER,
    peak_bytes INTEGER, peak_kind TEXT
) WITHOUT ROWID;
"""

# what makes a result: where any of these files changes, results are made anew
_MAKING = (
    *("nets", "diffusion", "engines", "image", "restorers", "upscaler.py", "plan.py"),
    *(f"models/{name}.py" for name in ("files", "hub", "pipeline_files", "registry")),
    *(f"pipelines/{name}.py" for name in ("canvas", "config", "folder", "options", "results")),
    *(f"pipelines/{name}.py" for name in ("stablesr", "stages", "walk")),
    *(f"evaluate/{name}.py" for name in ("methods", "ours", "foreign", "pictures")),
)
_WORDS = ("metrics/catalog.py",)  # change no figure
_MEASURING = ("metrics", *(f"evaluate/{name}.py" for name in ("score", "sets", "pictures")))


def key_of(*parts: object) -> str:
    """A key of 40 hex digits of everything that a value depends on."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:40]


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits; OSError where it cannot be read."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


@cache
def making_version() -> str:
    """Changes with any file of this package that has a say in the pixels of a result."""
    return _digest_of_sources(_MAKING)


@cache
def measuring_version() -> str:
    """Changes with any file of this package that computes figures."""
    return _digest_of_sources(_MEASURING)


def _digest_of_sources(names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        for path, text in sorted(_sources(files("addsr") / name, name)):
            total.update(f"{path}\0".encode() + text)
    return total.hexdigest()[:16]


def _sources(entry: Any, path: str) -> Iterable[tuple[str, bytes]]:
    if entry.is_dir():
        for inner in entry.iterdir():
            yield from _sources(inner, f"{path}/{inner.name}")
    elif entry.name.endswith(".py") and path not in _WORDS:
        yield path, entry.read_bytes()


class Cache:
    """Results and figures in a folder; with `keep` False the folder goes when it is closed.

    Usable from several threads of one process.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, keep: bool = True) -> None:
        self.folder, self.keep = folder, keep
        self._lock = threading.Lock()
        self._last_commit = time.monotonic()
        if not keep:  # what a killed run left
            shutil.rmtree(folder, ignore_errors=True)
        try:
            (folder / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be made ({error.strerror}); choose another output folder"
            ) from error
        self._sweep()
        self._database = self._open()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything measured is on the disk after it."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._database.commit()
            self._database.close()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def flush(self) -> None:
        """Everything stored so far is on the disk after it, and other runs may write."""
        with self._guarded():
            self._database.commit()

    # results

    def result_path(self, key: str) -> Path:
        """Where the result of this key lies, or will."""
        return self.folder / "results" / key[:2] / f"{key}.png"

    def store_result(self, key: str, image: Image.Image) -> Path:
        """Writes a result, whole or not at all."""
        path = self.result_path(key)
        path.parent.mkdir(exist_ok=True)
        write_image(image, path)
        return path

    # figures

    def scores(self, wanted: Mapping[str, tuple[str, str]]) -> dict[str, tuple[float, str]]:
        """Metric -> (value, note) of those known among metric -> (key, version)."""
        found: dict[str, tuple[float, str]] = {}
        for metric, (key, version) in wanted.items():
            row = self._row(
                "SELECT value, note FROM scores WHERE key = ? AND metric = ? AND version = ?",
                (key, metric, version),
            )
            if row is not None:  # SQLite keeps NaN as NULL
                found[metric] = (float("nan") if row[0] is None else float(row[0]), row[1] or "")
        return found

    def store_scores(
        self, wanted: Mapping[str, tuple[str, str]], values: Mapping[str, tuple[float, str]]
    ) -> None:
        """Keeps (value, note) of metrics under their (key, version)."""
        rows = [
            (wanted[metric][0], metric, wanted[metric][1], value, note or None)
            for metric, (value, note) in values.items()
        ]
        self._write("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", rows)

    def features(self, key: str, version: str) -> tuple[int, bytes] | None:
        """Number and bytes of the feature vectors kept under this key."""
        row = self._row(
            "SELECT count, data FROM features WHERE key = ? AND version = ?", (key, version)
        )
        return None if row is None else (int(row[0]), bytes(row[1]))

    def store_features(self, key: str, version: str, count: int, data: bytes) -> None:
        """Keeps feature vectors."""
        self._write("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", [
            (key, version, count, data)
        ])  # fmt: skip

    # how long results took

    def store_run(self, key: str, method: str, seconds: float, pixels: int, warm: bool) -> None:
        """Keeps how long a result took; `warm` is False for the first one of a run."""
        self._write(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, NULL, NULL)",
            [(key, method, seconds, pixels, int(warm))],
        )

    def run(self, key: str) -> tuple[float, int, bool] | None:
        """Seconds, pixels and whether it was warm, of a result."""
        row = self._row("SELECT seconds, pixels, warm FROM runs WHERE key = ?", (key,))
        return None if row is None else (float(row[0]), int(row[1]), bool(row[2]))

    def store_peak(self, method: str, peak_bytes: int, kind: str) -> None:
        """Keeps the most memory that a method took."""
        self._write(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, NULL, NULL, NULL, ?, ?)",
            [(f"peak {method}", method, peak_bytes, kind)],
        )

    def peak(self, method: str) -> tuple[int, str] | None:
        """The most memory a method took, and what kind of figure it is."""
        row = self._row("SELECT peak_bytes, peak_kind FROM runs WHERE key = ?", (f"peak {method}",))
        return None if row is None else (int(row[0]), str(row[1]))

    def _row(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._guarded():
            return self._database.execute(query, values).fetchone()

    def _write(self, query: str, rows: list[tuple[Any, ...]]) -> None:
        with self._guarded():
            self._database.executemany(query, rows)
            if time.monotonic() - self._last_commit > COMMIT_SECONDS:
                self._database.commit()
                self._last_commit = time.monotonic()

    @contextlib.contextmanager
    def _guarded(self) -> Generator[None]:
        """The database for one thread, its errors as ours."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:  # a full disk, another run's lock, damage
                raise OutputError(
                    f"{self.folder}: figures cannot be kept ({error}); free the disk, end other "
                    "runs with this output folder, or use --no-cache"
                ) from error

    def _open(self) -> sqlite3.Connection:
        path = self.folder / "scores.sqlite"
        try:
            return self._connect(path)
        except sqlite3.OperationalError as error:  # locked or not writable, which is no damage
            raise OutputError(
                f"{path}: cannot be used ({error}); end other runs with this output folder, or "
                "choose another one"
            ) from error
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"scores.damaged-{int(time.time())}.sqlite")
            log.warning("%s: is damaged (%s); put aside as %s", path, error, aside.name)
            with contextlib.suppress(OSError):
                os.replace(path, aside)
            try:
                return self._connect(path)
            except sqlite3.DatabaseError as again:
                raise OutputError(
                    f"{path}: cannot be used ({again}); remove it or choose another output folder"
                ) from again

    def _connect(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=30, check_same_thread=False)
        try:
            database.executescript(_TABLES)
            database.execute("SELECT count(*) FROM runs").fetchone()
        except BaseException:
            database.close()
            raise
        return database

    def _sweep(self) -> None:
        """Removes what a killed run left half-written, unless it is so new that one may be on."""
        now = time.time()
        for path in (self.folder / "results").glob("*/.*.part"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > 3600:
                    path.unlink()
