"""A finished file gets its final name: whole even after a power cut, patient with its readers.

The order matters. The data reach the disk before the name does, and the folder's entry after it:
whatever moment the power fails at, the name means the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from addsr.errors import OutputError

PATIENCE = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between tries at a name that another program holds, as viewers and scanners on Windows
do for a moment."""
_HOLDS = os.name == "nt"
"""Whether an open file keeps its name from being replaced."""


def put(temporary: Path, path: Path) -> None:
    """Gives the finished file `temporary` the name `path`, in the same folder, durably.

    Raises:
        OutputError: another program holds `path` open; OSError: anything else.
    """
    # opened for writing: Windows flushes no other handle
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    for pause in (*PATIENCE, None):
        try:
            os.replace(temporary, path)
            break
        except PermissionError as error:
            if not _HOLDS:
                raise
            if pause is None:
                raise OutputError(
                    f"{path}: is held open by another program; close it there and run again"
                ) from error
            time.sleep(pause)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Has the names in `folder` on the disk, where the system can say so for folders."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some network drives sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
