"""Defaults that a user sets once, from environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import OptionError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Settings:
    """What the environment says; options of a command or call win over it."""

    model: str = "compact"
    """`ADDSR_MODEL`: name or path."""
    device: str = "auto"
    """`ADDSR_DEVICE`."""
    dtype: str = "auto"
    """`ADDSR_DTYPE`."""
    memory_bytes: int | None = None
    """`ADDSR_MEMORY`, such as 3G: main memory that one picture may take; None: what is free."""


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment`, by default the process's.

    Raises:
        OptionError: `ADDSR_MEMORY` is no size.
    """
    env = os.environ if environment is None else environment
    memory = env.get("ADDSR_MEMORY", "").strip()
    return Settings(
        model=env.get("ADDSR_MODEL") or Settings.model,
        device=env.get("ADDSR_DEVICE") or Settings.device,
        dtype=env.get("ADDSR_DTYPE") or Settings.dtype,
        memory_bytes=parse_size(memory) if memory else None,
    )


def parse_size(text: str) -> int:
    """Bytes from `3G`, `512 MB`, `2.5GiB` or a plain number; units are powers of 1,024."""
    cleaned = text.strip().lower().removesuffix("b").removesuffix("i").strip()
    unit = cleaned[-1:] if cleaned[-1:].isalpha() else ""
    try:
        size = float(cleaned.removesuffix(unit)) * _UNITS[unit]
    except (KeyError, ValueError):
        size = -1.0
    if not 0 < size < float("inf"):
        raise OptionError(f"ADDSR_MEMORY: {text!r} is no size; write for example 3G or 512M")
    return int(size)
