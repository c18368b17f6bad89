"""The [net] table of a recipe as the shape of a network."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from addsr.errors import ConfigError
from addsr.nets import tuples

T = TypeVar("T")


def parsed(shape: type[T], table: dict[str, Any], *others: str) -> T:
    """`table` as a `shape`, a dataclass; `others` are fields of [net] that belong elsewhere.

    Raises:
        ConfigError: an unknown field, or a value that no network can be built of.
    """
    fields = [f.name for f in dataclasses.fields(cast("Any", shape))]
    unknown = sorted(set(table) - set(fields))
    if unknown:
        known = ", ".join([*fields, *others])
        raise ConfigError(f"net.{unknown[0]} is unknown; [net] has {known}")
    try:
        return shape(**tuples(table))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"net.{error}") from error
