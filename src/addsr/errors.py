"""Every error addsr raises on purpose, in one tree.

AddsrError
├── InputError          an input cannot be used: missing, unreadable, truncated, too large
├── OutputError         a result cannot be written where it was asked for
├── OptionError         an option has a value outside what it allows
├── ConfigError         a configuration file or field is wrong
├── ModelError          weights are missing, damaged or of an unknown layout
├── MemoryLimitError    the work would not fit; the message names the expected peak
├── DependencyError     an optional package is needed; the message holds the install command
└── TrainingError       training cannot go on, say after a NaN; the last good checkpoint is kept

Each message names the field, the value and the remedy. The command line prints the message
alone and exits with status 1, after an `OptionError` with 2; Python callers catch `AddsrError` or
one of its branches.
"""

from __future__ import annotations


class AddsrError(Exception):
    """Base of all errors raised on purpose by addsr."""


class InputError(AddsrError, ValueError):
    """An input cannot be used: missing, unreadable, truncated, of the wrong shape or too large."""


class OutputError(AddsrError, OSError):
    """A result cannot be written where it was asked for."""


class OptionError(AddsrError, ValueError):
    """An option has a value outside what it allows."""


class ConfigError(AddsrError, ValueError):
    """A configuration file or one of its fields is wrong."""


class ModelError(AddsrError):
    """Weights are missing, damaged or of an unknown layout."""


class MemoryLimitError(AddsrError, MemoryError):
    """The work would not fit in memory; the message names the expected peak and the remedy."""


class DependencyError(AddsrError, ImportError):
    """An optional package is needed; the message holds the install command."""


class TrainingError(AddsrError, RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""
