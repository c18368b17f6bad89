"""Facts about each model, stated once; what a model does not have it refuses in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, cast

from addsr.errors import ModelError, OptionError


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of the program needs to know about a model besides its weights."""

    name: str
    description: str
    licence: str
    scale: int
    steps: tuple[int, ...]
    """Numbers of sampling steps it was trained for."""
    default_steps: int
    fidelity_drives: str | None
    """What the `fidelity` number changes; None: the model has no such knob."""
    default_fidelity: float
    default_color: str
    kind: str
    """Which network `addsr.nets.build` makes for it."""
    size_mb: float
    """Of the weights file."""
    multiple: int
    """Input sides are padded to this, and tiles start at multiples of it."""
    halo: int
    """Input pixels beside a cut that are computed and dropped."""
    blend: int
    """Input pixels over which neighbouring tiles are mixed."""
    tile_bytes_per_pixel: int
    """Measured peak of a tile per input pixel in 16-bit types; fp32 takes twice as much."""
    best_tile: int
    """Tile side beyond which a CPU gains nothing."""

    def check_steps(self, steps: int | None) -> int:
        """`steps`, or the default for None.

        Raises:
            OptionError: a number this model was not trained for.
        """
        if steps is None:
            return self.default_steps
        if steps not in self.steps:
            allowed = ", ".join(str(n) for n in self.steps)
            raise OptionError(f"steps: {steps} is not possible with {self.name}; use {allowed}")
        return steps

    def check_fidelity(self, fidelity: float | None) -> float:
        """`fidelity`, or the default for None.

        Raises:
            OptionError: outside of [0, 1], or the model has no such knob.
        """
        if fidelity is None:
            return self.default_fidelity
        if self.fidelity_drives is None:
            raise OptionError(
                f"fidelity: model {self.name} has no fidelity knob; leave --fidelity out"
            )
        if not 0 <= fidelity <= 1:
            raise OptionError(f"fidelity: {fidelity} is outside of 0 to 1; stay in between")
        return fidelity


COMPACT = ModelInfo(
    name="compact",
    description="embedded 1/2/4-step pixel-space AddSR student for photos",
    licence="Apache-2.0",
    scale=4,
    steps=(1, 2, 4),
    default_steps=1,
    fidelity_drives="the gate of the decoder's low-resolution skip",
    default_fidelity=0.63,
    default_color="wavelet",
    kind="compact",
    size_mb=48.1,
    multiple=8,
    halo=16,
    blend=16,
    tile_bytes_per_pixel=5200,
    best_tile=288,
)

MODELS: dict[str, ModelInfo] = {COMPACT.name: COMPACT}
"""Models known by name; their weights come with the package."""

_BY_KIND = {COMPACT.kind: COMPACT}
_PUBLISHED_WIDTHS = (192, 128, 64)
_COLORS = ("wavelet", "adain", "none")
_FROM_FILE = ("steps", "default_steps", "fidelity_drives", "default_fidelity", "default_color")


def info_for_file(name: str, metadata: dict[str, Any], size_mb: float) -> ModelInfo:
    """The facts about a weights file: those of its kind, changed by its own `info` entry.

    `metadata` is the second value of `addsr.models.files.load_weights`; `info` is a mapping (or
    its JSON) that may set steps, default_steps, fidelity_drives, default_fidelity, default_color.

    Raises:
        ModelError: a kind that cannot upscale, or an `info` entry that names what is not allowed.
    """
    kind = str(metadata.get("kind", "?"))
    if kind not in _BY_KIND:
        raise ModelError(
            f"{name}: holds weights of kind {kind!r}, which does not upscale; "
            f"give a file of kind {', '.join(_BY_KIND)}"
        )
    licence = str(metadata.get("licence", "not stated"))
    published = _BY_KIND[kind]
    base = replace(
        published,
        name=name,
        licence=licence,
        size_mb=size_mb,
        description=f"{kind} weights from a file",
        tile_bytes_per_pixel=round(published.tile_bytes_per_pixel * _widening(metadata)),
    )
    return replace(base, **_own_facts(name, metadata.get("info", {}), published))


def _own_facts(name: str, entry: Any, published: ModelInfo) -> dict[str, Any]:
    """What the `info` entry of a file changes, checked."""
    try:
        own = json.loads(entry) if isinstance(entry, str) else entry
    except ValueError as error:
        raise ModelError(f"{name}: its info entry is no JSON ({error})") from error
    if not isinstance(own, dict):
        raise ModelError(f"{name}: info = {own!r} is not allowed; it must be a table of fields")
    own = cast("dict[str, Any]", own)
    facts = {field: own.get(field, getattr(published, field)) for field in _FROM_FILE}
    steps, fidelity = facts["steps"], facts["default_fidelity"]
    is_list = isinstance(steps, (list, tuple)) and bool(steps)
    rules = {
        "steps": (
            is_list and all(_is_whole(n) and n in published.steps for n in steps),
            f"a list of some of {published.steps}",
        ),
        "default_steps": (
            is_list and _is_whole(facts["default_steps"]) and facts["default_steps"] in steps,
            f"one of the steps {steps}",
        ),
        "fidelity_drives": (
            isinstance(facts["fidelity_drives"], (str, NoneType)),
            "a text, or null where there is no such knob",
        ),
        "default_fidelity": (
            (_is_whole(fidelity) or isinstance(fidelity, float)) and 0 <= fidelity <= 1,
            "a number from 0 to 1",
        ),
        "default_color": (facts["default_color"] in _COLORS, f"one of {', '.join(_COLORS)}"),
    }
    for field, (is_allowed, allowed) in rules.items():
        if not is_allowed:
            raise ModelError(
                f"{name}: info.{field} = {facts[field]!r} is not allowed; it must be {allowed}"
            )
    return {**facts, "steps": tuple(steps)}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _widening(metadata: dict[str, Any]) -> float:
    """How much wider this decoder, where the memory goes, is than the published one; from 1."""
    config = metadata.get("config")
    widths = config.get("decoder_widths") if isinstance(config, dict) else None
    if not isinstance(widths, (list, tuple)) or len(widths) != len(_PUBLISHED_WIDTHS):
        return 1.0
    if not all(_is_whole(width) and width < 1 << 20 for width in widths):
        return 1.0  # no network can be built of these; `nets.build` tells
    return max(1.0, *(w / p for w, p in zip(widths, _PUBLISHED_WIDTHS, strict=True)))
