"""What a configuration of a network may ask for at most.

Networks are built without numbers first, but each layer costs time and memory all the same, and a
scheduler makes tables as long as it is told. A configuration comes from a file of strangers, so
absurd sizes are refused before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from addsr.errors import ModelError

MAX_LEVELS = 16
MAX_LAYERS = 1000
"""Levels times layers of each times transformer blocks of each; SDXL has 120."""
MAX_SIZE = 1 << 17
"""Of channels, heads, context, pictures and timesteps; SDXL's widest layer has 10 240 channels."""

_PER_LEVEL = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "conditioning_embedding_out_channels",
    "widths",
    "depths",
)
_LAYERS = ("layers_per_block", "blocks", "layers", "depths")
_IN_EACH = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")


def check_limits(config: Mapping[str, Any]) -> None:
    """Lets a configuration pass whose sizes are those of a network.

    Raises:
        ModelError: a field asks for more than any published model, or for less than nothing.
    """
    for name, value in config.items():
        for number in _numbers(value):
            if not -MAX_SIZE <= number <= MAX_SIZE:  # NaN is neither
                raise ModelError(
                    f"{name} = {_short(value)}: no more than {MAX_SIZE} is possible; fetch the "
                    "model again"
                )
    levels = 1
    for name in _PER_LEVEL:
        value = config.get(name)
        if isinstance(value, list | tuple):
            levels = max(levels, len(cast("list[Any]", value)))
    if levels > MAX_LEVELS:
        raise ModelError(f"has {levels} levels; no more than {MAX_LEVELS} are possible")
    outer, inner = (
        int(max([1, *(n for name in names for n in _numbers(config.get(name)))]))
        for names in (_LAYERS, _IN_EACH)
    )
    if levels * outer * inner > MAX_LAYERS:
        told = ", ".join(f"{n} = {_short(config[n])}" for n in (*_LAYERS, *_IN_EACH) if n in config)
        raise ModelError(
            f"{told}: no more than {MAX_LAYERS} layers in all are possible; fetch the model again"
        )


def _numbers(value: Any) -> list[float]:
    """The numbers in `value`, a number or a list of such and of lists."""
    found: list[float] = []
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            waiting.extend(cast("list[Any]", one))
        elif isinstance(one, int | float) and not isinstance(one, bool):
            found.append(one)
    return found


def _short(value: Any) -> str:
    """What is shown of a value from a file."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
