"""Patterns that the shell left alone, filled in."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from addsr.errors import InputError


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
