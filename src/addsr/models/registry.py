"""Facts about each model, stated once; what a model does not have it refuses in one sentence."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, cast

from addsr.errors import ModelError, OptionError


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of the program needs to know about any model besides its weights."""

    name: str
    description: str
    licence: str
    steps: Sequence[int]
    """Numbers of sampling steps it allows."""
    default_steps: int
    fidelity_drives: str | None
    """What the `fidelity` number changes; None: the model has no such knob."""
    default_fidelity: float
    default_color: str
    kind: str
    """Which network `addsr.nets.build` makes for it, or which pipeline it is."""
    size_mb: float
    """Of the weights."""
    takes_prompt: bool = field(default=False, kw_only=True)
    """Whether words can say what a picture shows."""
    takes_negative_prompt: bool = field(default=False, kw_only=True)
    """Whether it is led away from other words."""

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence, by its own name, forbids commercial use."""
        return re.search(r"non-?commercial|\bNC\b", self.licence, re.IGNORECASE) is not None

    def check_steps(self, steps: int | None) -> int:
        """`steps`, or the default for None.

        Raises:
            OptionError: a number this model was not trained for.
        """
        if steps is None:
            return self.default_steps
        if steps not in self.steps:
            few = self.steps if len(self.steps) <= 8 else (f"{self.steps[0]} to {self.steps[-1]}",)
            allowed = ", ".join(str(n) for n in few)
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
            if self.kind in _WITH_WRAPPING and fidelity == 0:
                return 0.0  # the plain decoder, which is all there is
            raise OptionError(
                f"fidelity: model {self.name} has no {self._knob}; leave --fidelity out"
            )
        if not 0 <= fidelity <= 1:
            raise OptionError(f"fidelity: {fidelity} is outside of 0 to 1; stay in between")
        return fidelity

    def check_prompts(self, prompt: str, negative_prompt: str | None) -> None:
        """
        Raises:
            OptionError: the model hears no such words.
        """
        for name, words in (("prompt", prompt), ("negative_prompt", negative_prompt or "")):
            odd = (c for c in words if unicodedata.category(c) in ("Cc", "Cs"))
            strange = [c for c in odd if c not in "\n\t"]
            if strange:
                raise OptionError(
                    f"{name}: holds U+{ord(strange[0]):04X}, which no text has; leave it out"
                )
        if prompt and not self.takes_prompt:
            raise OptionError(f"prompt: model {self.name} hears no words; leave --prompt out")
        if negative_prompt is not None and not self.takes_negative_prompt:
            why = "hears no words"
            if self.takes_prompt:
                why = "runs without guidance, so nothing leads it away from words"
            raise OptionError(
                f"negative_prompt: model {self.name} {why}; leave --negative-prompt out"
            )

    def check_decoder(self, refine_decoder: str) -> None:
        """
        Raises:
            OptionError: the name is unknown, or the model looks at no predictions of its own.
        """
        if refine_decoder not in ("full", "tiny"):
            raise OptionError(f"refine_decoder: {refine_decoder!r} is unknown; use full or tiny")
        if refine_decoder != "full" and self.kind != "addsr":
            raise OptionError(
                f"refine_decoder: model {self.name} looks at no predictions of its own; leave "
                "--refine-decoder out"
            )

    @property
    def _knob(self) -> str:
        if self.kind == "addsr":
            return "fidelity knob with one step, where no prediction is looked at"
        if self.kind not in _WITH_WRAPPING:
            return "fidelity knob"
        return "feature wrapping (CFW), for it was imported without vqgan_cfw_*.ckpt"


@dataclass(frozen=True)
class TiledInfo(ModelInfo):
    """A model that works on tiles of pixels, each on its own."""

    scale: int
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


COMPACT = TiledInfo(
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

MODELS: dict[str, TiledInfo] = {COMPACT.name: COMPACT}
"""Models known by name; their weights come with the package."""

PIPELINE_KINDS = {
    "stablesr": "StableSR (arXiv 2305.07015): Stable Diffusion 2.1 led by a small picture",
    "stablesr-turbo": "StableSR over SD-Turbo: 1 or 4 steps",
    "seesr": "SeeSR (arXiv 2311.16518): Stable Diffusion 2 led by a small picture, tags and words",
    "addsr": "AddSR (arXiv 2404.01717): SeeSR distilled to 1 to 4 steps",
}
"""What an imported pipeline can be."""
_WITH_WRAPPING = ("stablesr", "stablesr-turbo")
_TURBO_STEPS = (1, 4)
_ADDSR_STEPS = (1, 2, 3, 4)
_KIND_OF_CLASS = {"SeeSRPipeline": "seesr", "AddSRPipeline": "addsr"}

_BY_KIND = {COMPACT.kind: COMPACT}
_PUBLISHED_WIDTHS = (192, 128, 64)
_TRAINED_STEPS = 1000
_COLORS = ("wavelet", "adain", "none")
_FROM_FILE = ("steps", "default_steps", "fidelity_drives", "default_fidelity", "default_color")


def info_for_file(name: str, metadata: dict[str, Any], size_mb: float) -> TiledInfo:
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


def info_for_pipeline(
    name: str, index: Mapping[str, Any], kind: str | None, licence: str, size_mb: float
) -> ModelInfo:
    """The facts about a pipeline's folder.

    StableSR and SeeSR take any number of steps, and all take any scale in one pass, for they work
    on the picture enlarged by bicubic interpolation. StableSR over SD-Turbo takes 4 or 1, at the
    timesteps SD-Turbo was distilled to (999, 749, 499, 249): more steps blur, as users of it found.
    AddSR takes the first 1 to 4 of the same.

    Args:
        index: `model_index.json`, where the pipeline states its own facts.
        kind: as stored at the import; None: judged by the index.

    Raises:
        ModelError: an unknown kind, or facts that cannot be.
    """
    kind = kind or _kind_of(index)
    if kind not in PIPELINE_KINDS:
        raise ModelError(f"{name}: is a model of kind {kind!r}, unknown to this addsr; update it")
    is_turbo = kind == "stablesr-turbo"
    has_cfw = "cfw" in index
    steps, fidelity = index.get("steps", 200), index.get("fidelity", 0.5)
    if not _is_whole(steps) or not 1 <= steps <= _TRAINED_STEPS:
        raise ModelError(f"{name}: steps = {steps!r} in its index is no number from 1 to 1000")
    if not (_is_whole(fidelity) or isinstance(fidelity, float)) or not 0 <= fidelity <= 1:
        raise ModelError(f"{name}: fidelity = {fidelity!r} in its index is no number from 0 to 1")
    if kind in _KIND_OF_CLASS.values():
        return _info_with_words(name, index, kind, licence, size_mb, steps)
    turbo_default = steps if steps in _TURBO_STEPS else max(_TURBO_STEPS)
    return ModelInfo(
        name=name,
        description=PIPELINE_KINDS[kind],
        licence=licence,
        steps=_TURBO_STEPS if is_turbo else range(1, _TRAINED_STEPS + 1),
        default_steps=turbo_default if is_turbo else steps,
        fidelity_drives="the feature wrapping (CFW) in the decoder" if has_cfw else None,
        default_fidelity=float(fidelity) if has_cfw else 0.0,
        default_color="adain",
        kind=kind,
        size_mb=size_mb,
    )


def _kind_of(index: Mapping[str, Any]) -> str:
    """By the index alone, which SeeSR's and AddSR's class names tell."""
    usual = "stablesr-turbo" if index.get("spacing") == "trailing" else "stablesr"
    return _KIND_OF_CLASS.get(str(index.get("_class_name")), usual)


def _info_with_words(
    name: str, index: Mapping[str, Any], kind: str, licence: str, size_mb: float, steps: int
) -> ModelInfo:
    is_few = kind == "addsr"
    guidance = index.get("guidance")
    if guidance is not None and (
        isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or guidance < 1
    ):
        raise ModelError(f"{name}: guidance = {guidance!r} in its index is no number from 1")
    return ModelInfo(
        name=name,
        description=PIPELINE_KINDS[kind],
        licence=licence,
        steps=_ADDSR_STEPS if is_few else range(1, _TRAINED_STEPS + 1),
        default_steps=min(steps, max(_ADDSR_STEPS)) if is_few else steps,
        fidelity_drives="the input's share in what the later steps look at" if is_few else None,
        default_fidelity=0.5 if is_few else 0.0,
        default_color="adain",
        kind=kind,
        size_mb=size_mb,
        takes_prompt="text_encoder" in index,
        takes_negative_prompt="text_encoder" in index and not is_few and guidance != 1,
    )


def with_steps(info: ModelInfo, steps: int, name: str) -> ModelInfo:
    """`info` of a model that is run in this number of steps and no other."""
    has_knob = steps > 1
    return replace(
        info,
        name=name,
        steps=(steps,),
        default_steps=steps,
        fidelity_drives=info.fidelity_drives if has_knob else None,
        default_fidelity=info.default_fidelity if has_knob else 0.0,
    )


def _own_facts(name: str, entry: Any, published: TiledInfo) -> dict[str, Any]:
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
    for one, (is_allowed, allowed) in rules.items():
        if not is_allowed:
            raise ModelError(
                f"{name}: info.{one} = {facts[one]!r} is not allowed; it must be {allowed}"
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
