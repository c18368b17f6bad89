"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A name beside `path` to write to; at the end that file takes the place of `path`.

    After an error nothing of it stays, and what was at `path` does. Not of `tempfile`: its files
    are private, and what users are given should follow their umask.

    Raises:
        OSError: it cannot take that place.
    """
    # 40 letters are at most 160 bytes: a name that just fits has room for what is put around it
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        # where the folder is a file, or not ours to change, this fails as well as the writing did
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
