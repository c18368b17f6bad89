"""Recipes: TOML files parsed into frozen dataclasses that check every field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from addsr.data.spec import MIXTURES, PRESETS
from addsr.errors import ConfigError

from .addsr_config import AddSRConfig
from .checks import require as _require
from .latent_config import CfwTaskConfig, StableSRConfig
from .seesr_config import DapeConfig, SeeSRTaskConfig

T = TypeVar("T")

STABLESR = "stablesr"
"""The published degradation of StableSR; `mild` is the same but for two departures."""
REALESRGAN = "realesrgan"
"""That of Real-ESRGAN, SeeSR and AddSR; `strong` is the same but for two departures."""

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that record CUDA graphs."""


@dataclass(frozen=True)
class RunConfig:
    """How long, where to and how often."""

    output: str = "runs/addsr"
    steps: int = 100_000
    """Optimiser steps of the whole run."""
    minutes: float = 0.0
    """Wall-clock limit of this process; 0 means none. The learning-rate schedule follows whichever
    of steps and minutes is further on."""
    batch: int = 64
    """Samples that go through the networks together, in each process."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one optimiser step."""
    seed: int = 0
    precision: str = "bf16"
    """bf16 keeps bf16 working weights beside float32 masters; fp32 trains in float32."""
    compile: bool = True
    compile_mode: str = "default"
    """Mode of torch.compile: default, reduce-overhead (CUDA graphs) or max-autotune."""
    compile_only: tuple[str, ...] = ()
    """Functions of the task that are compiled, by name; empty: all. Short runs of a part each, side
    by side, fill torch's cache in a fraction of the time."""
    compile_graphs: tuple[str, ...] = ()
    """Of these, the ones that a mode with CUDA graphs records; empty: all."""
    compile_cache: str = ""
    """File of compiled code: read before the start if it is there, written after the second step.
    Process N of several adds `.N`. It is code that runs: give only what own runs have written."""
    cudnn_benchmark: bool = True
    """Whether cuDNN tries its convolutions at the start: faster steps, minutes before the first."""
    ema: float = 0.999
    log_every: int = 50
    checkpoint_every: int = 2000
    checkpoints_limit: int = 2
    validate_every: int = 2000
    validate_limit: int = 0
    """Validation pictures used; 0 means all."""
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "run.steps", self.steps, "a number from 1")
        _require(self.minutes >= 0, "run.minutes", self.minutes, "0 (no limit) or more")
        _require(self.batch >= 1, "run.batch", self.batch, "a number from 1")
        _require(self.accumulate >= 1, "run.accumulate", self.accumulate, "a number from 1")
        _require(
            self.precision in ("bf16", "fp32"), "run.precision", self.precision, "bf16 or fp32"
        )
        modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
        _require(
            self.compile_mode in modes, "run.compile_mode", self.compile_mode, " or ".join(modes)
        )
        _require(
            not self.compile_graphs or self.compile_mode in GRAPH_MODES,
            "run.compile_graphs",
            self.compile_graphs,
            f"none, or run.compile_mode = {' or '.join(map(repr, GRAPH_MODES))}",
        )
        _require(0 <= self.ema < 1, "run.ema", self.ema, "a number in [0, 1)")
        for name in ("log_every", "checkpoint_every", "checkpoints_limit", "validate_every"):
            _require(
                getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "a number from 1"
            )


@dataclass(frozen=True)
class DataConfig:
    """Training pictures and what is done to them."""

    train: tuple[str, ...] = ()
    """Folders, tar shards or glob patterns."""
    held: int = 0
    """How many of these are kept in the device's memory at a time; 0: all of them."""
    held_pairs: int = 50_000
    """Pairs that each process takes from what is held before the next ones are read."""
    val: str = ""
    """Folder with `hr/` and `lr/`; empty means no validation."""
    crop_px: int = 256
    pool: int = 4096
    reuse: float = 2.0
    """How often a degraded pair is used on average, each time flipped and turned anew."""
    mixture: str = "mixture"
    sharpen: float = 0.0
    """Unsharp masking of the pictures before anything is cut from them or degraded; 0.5 is
    Real-ESRGAN's and StableSR's amount."""
    rescaled: float = 0.3
    """Share of crops that are cut larger and shrunk."""
    textured: float = 0.5
    """Share of crops that are the more textured of two tries."""
    turned: bool = True
    """Whether crops are turned and mirrored in all eight ways, or mirrored left to right only."""

    def __post_init__(self) -> None:
        _require(len(self.train) > 0, "data.train", self.train, "at least one folder or tar shard")
        ok = self.crop_px >= 64 and self.crop_px % 64 == 0
        _require(ok, "data.crop_px", self.crop_px, "a multiple of 64 from 64")
        _require(self.pool >= 2, "data.pool", self.pool, "a number from 2")
        _require(self.reuse >= 1, "data.reuse", self.reuse, "a number from 1")
        _require(self.held >= 0, "data.held", self.held, "0 (all) or more")
        _require(self.held_pairs >= 1, "data.held_pairs", self.held_pairs, "a number from 1")
        _require(self.sharpen >= 0, "data.sharpen", self.sharpen, "0 or more")
        for name in ("rescaled", "textured"):
            _require(0 <= getattr(self, name) <= 1, f"data.{name}", getattr(self, name), "0 to 1")
        known = (*PRESETS, *MIXTURES, STABLESR, REALESRGAN)
        _require(self.mixture in known, "data.mixture", self.mixture, f"one of {', '.join(known)}")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, constant, cosine to `final` of the peak."""

    learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a network's gradient; inf: never clipped."""
    warmup_steps: int = 300
    decay_from: float = 0.5
    """Share of the run after which the cosine begins."""
    final: float = 0.05
    offload: bool = False
    """Masters, moments and averages stay in main memory and AdamW runs on the CPU: the same
    updates, 20 bytes less per trained number on the device (16 without average), a slower step."""

    def __post_init__(self) -> None:
        ok = 0 < self.learning_rate <= 1
        _require(ok, "optim.learning_rate", self.learning_rate, "a number in (0, 1]")
        _require(0 <= self.decay_from <= 1, "optim.decay_from", self.decay_from, "0 to 1")
        _require(0 <= self.final <= 1, "optim.final", self.final, "0 to 1")
        ok = all(0 <= b < 1 for b in self.betas)
        _require(ok, "optim.betas", self.betas, "two numbers in [0, 1)")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _require(self.clip > 0, "optim.clip", self.clip, "a number above 0")
        _require(self.warmup_steps >= 1, "optim.warmup_steps", self.warmup_steps, "1 or more")


@dataclass(frozen=True)
class TeacherConfig:
    """The LR-conditioned diffusion teacher (and its HR-regulated role)."""

    one_step_share: float = 0.34
    """Share of each batch at t = 1 with L1 and Haar losses; the rest is spread over all t."""
    diffusion_weight: float = 0.5
    haar_weight: float = 1.0
    haar_weight_diffusion: float = 0.2
    t_mean: float = 0.6
    t_std: float = 1.2
    """Logit-normal distribution of t."""
    weak_share: float = 0.1
    """Samples whose LR is blurred to a quarter of its resolution, for guidance."""
    clean_share: float = 0.1
    """Samples whose LR is the clean area-downscaled HR: the HR-regulated teacher's role."""
    gate_share: float = 0.2
    """Samples with a random fidelity gate; the others have 1."""
    lr_free: bool = False
    """Every low-resolution picture is mid grey, and the gate 0: trains a prior that sees none."""
    prior: str = ""
    """Weights file of such a prior. It stays frozen: only what the low-resolution picture enters by
    is trained (StableSR, arXiv 2305.07015)."""

    def __post_init__(self) -> None:
        _require(not (self.lr_free and self.prior), "task.prior", self.prior, "none with lr_free")
        for name in ("one_step_share", "weak_share", "clean_share", "gate_share"):
            _require(0 <= getattr(self, name) <= 1, f"task.{name}", getattr(self, name), "0 to 1")
        _require(self.t_std > 0, "task.t_std", self.t_std, "a number above 0")


@dataclass(frozen=True)
class StudentConfig:
    """Adversarial diffusion distillation with self-refinement on the student's own predictions."""

    teacher: str = ""
    """Weights file of the frozen teacher."""
    shares: tuple[float, float, float, float] = (0.55, 0.2, 0.15, 0.1)
    """Shares of a batch at the levels 1, .75, .5 and .25."""
    regulation: str = "hr"
    """What the teacher sees when it answers: `hr`, the clean picture area-averaged to the input's
    size (AddSR's HR-regulated teacher), or `lr`, the input itself as in plain distillation."""
    psr_weight: float = 0.5
    """Share of the last prediction in the condition of the next step; 0: no self-refinement, the
    condition is the enlarged input at every step."""
    ta_base: float = 0.5
    ta_growth: float = 2.1
    """Timestep-adaptive weight ta_base * ta_growth**(step index)."""
    ta_adaptive: bool = True
    """False: every step has the mean of these weights over `shares`, so that distillation as a
    whole weighs the same and only its distribution over the steps is another."""
    sharpen: float = 0.0
    """Unsharp masking of the target of the L1 and Haar terms; 0.5 is Real-ESRGAN's amount."""
    l1_weight: float = 0.5
    low_weight: float = 1.0
    haar_weight: float = 0.25
    distill_weight: float = 1.0
    perceptual_weight: float = 0.5
    perceptual_t: tuple[float, float] = (0.03, 0.35)
    """Range of the noise levels at which the teacher's features are compared and judged."""
    adversarial_cap: float = 0.03
    """Largest factor on the adversarial gradient."""
    adversarial_share: float = 0.5
    """Largest norm of the adversarial gradient over that of the reconstruction's: as the
    discriminator learns, its gradient grows, and a fixed factor would let it take over."""
    feature_matching: float = 0.05
    adversarial_warmup: int = 300
    discriminator_rate: float = 2e-4
    discriminator_width: int = 64
    discriminator_scales: int = 3
    discriminator_crop: int = 0
    """Side of the random window of each crop that the discriminator sees; 0 means all of it."""
    head_share: float = 0.33
    """Share of the heads on the frozen teacher's features in the adversarial loss; 0: no heads."""
    r1_weight: float = 1.0
    r1_sigma: float = 0.02
    fidelity: float = 0.5
    """The fidelity gate of most samples, and of validation."""
    gate_share: float = 0.5
    """Samples whose gate is uniform in [0, 1] instead; the adversarial gradient counts 2 (1 - gate)
    times, which is what gives the knob its meaning."""

    def __post_init__(self) -> None:
        _require(abs(sum(self.shares) - 1) < 1e-6, "task.shares", self.shares, "four shares, sum 1")
        falling = all(a >= b for a, b in zip(self.shares, self.shares[1:], strict=False))
        _require(falling, "task.shares", self.shares, "falling shares: each step feeds the next")
        _require(0 <= self.fidelity <= 1, "task.fidelity", self.fidelity, "0 to 1")
        _require(0 <= self.gate_share <= 1, "task.gate_share", self.gate_share, "0 to 1")
        _require(0 <= self.psr_weight <= 1, "task.psr_weight", self.psr_weight, "0 to 1")
        ok = self.regulation in ("hr", "lr")
        _require(ok, "task.regulation", self.regulation, "hr or lr")
        for name in ("ta_base", "ta_growth"):
            _require(getattr(self, name) > 0, f"task.{name}", getattr(self, name), "above 0")
        ok = 0 < self.perceptual_t[0] <= self.perceptual_t[1] < 1
        _require(ok, "task.perceptual_t", self.perceptual_t, "two numbers that rise, in (0, 1)")
        _require(self.sharpen >= 0, "task.sharpen", self.sharpen, "0 or more")
        _require(0 <= self.head_share < 1, "task.head_share", self.head_share, "0 to below 1")
        for name in ("discriminator_width", "discriminator_scales"):
            _require(getattr(self, name) >= 1, f"task.{name}", getattr(self, name), "1 or more")
        ok = self.adversarial_share > 0
        _require(ok, "task.adversarial_share", self.adversarial_share, "a number above 0")
        ok = self.discriminator_crop >= 0
        _require(ok, "task.discriminator_crop", self.discriminator_crop, "0 or more")
        _require(
            self.adversarial_cap >= 0, "task.adversarial_cap", self.adversarial_cap, "0 or more"
        )


@dataclass(frozen=True)
class FeaturesConfig:
    """phi', the evaluation-only feature net."""

    degradation_weight: float = 10.0
    contrast_weight: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "task.temperature", self.temperature, "a number above 0")


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
}

TASKS: dict[str, type] = {
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "features": FeaturesConfig,
    "stablesr": StableSRConfig,
    "cfw": CfwTaskConfig,
    "addsr": AddSRConfig,
    "seesr": SeeSRTaskConfig,
    "dape": DapeConfig,
}

_SPLIT_BATCHES = ("teacher", "student", "features")
"""Tasks that give parts of a batch different roles, which takes two samples."""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe file: tables [run], [data], [optim], [net] and [task]."""

    task_name: str
    run: RunConfig
    data: DataConfig
    optim: OptimConfig
    task: Any
    net: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ok = self.run.batch >= 2 or self.task_name not in _SPLIT_BATCHES
        _require(ok, "run.batch", self.run.batch, f"a number from 2 for {self.task_name}")


def load_recipe(
    task: str, path: Path, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Recipe:
    """The recipe in the TOML file `path` for `task`, with `{table: {field: value}}` laid over it.

    Raises:
        ConfigError: unreadable file, unknown table or field, wrong type or value; the message
            names the field, the value and what is allowed.
    """
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is unknown; give one of {', '.join(TASKS)}")
    try:
        tables = _toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe; see recipes/ for examples") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable TOML file ({error})") from error
    for table, values in (overrides or {}).items():
        tables[table] = {**tables.get(table, {}), **values}
    known = {"run": RunConfig, "data": DataConfig, "optim": OptimConfig, "task": TASKS[task]}
    unknown = set(tables) - set(known) - {"net"}
    if unknown:
        names = ", ".join(f"[{n}]" for n in sorted(unknown))
        raise ConfigError(
            f"{path}: unknown table {names}; known are run, data, optim, task and net"
        )
    parts = {name: _parse(cls, tables.get(name, {}), name) for name, cls in known.items()}
    return Recipe(task_name=task, net=dict(tables.get("net", {})), **parts)  # type: ignore[arg-type]


def parse_override(text: str) -> tuple[str, str, Any]:
    """`(table, field, value)` of `TABLE.FIELD=VALUE`, the value in TOML (a bare word is a string).

    Raises:
        ConfigError: the text has another form.
    """
    key, equals, value = text.partition("=")
    table, dot, name = key.strip().partition(".")
    if not (equals and dot and table and name):
        raise ConfigError(f"--set {text!r}: give TABLE.FIELD=VALUE, such as run.batch=32")
    try:
        return table, name, _toml(f"v = {value}")["v"]
    except ValueError:
        return table, name, value


def parse_overrides(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`{table: {field: value}}` of texts like `run.batch=32`; of two for one field the last counts.

    Raises:
        ConfigError: a text has another form.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        table, name, value = parse_override(text)
        overrides.setdefault(table, {})[name] = value
    return overrides


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef]
    return tomllib.loads(text)


def _parse(cls: type[T], values: Mapping[str, Any], table: str) -> T:
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cast("Any", cls))}
    unknown = set(values) - fields
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(f"{table}.{name} is unknown; [{table}] has {', '.join(sorted(fields))}")
    parsed = {k: _coerce(v, hints[k], f"{table}.{k}") for k, v in values.items()}
    return cls(**parsed)


def _coerce(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        inner, *rest = typing.get_args(hint)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            if rest == [...] or len(items) == len(rest) + 1:
                return tuple(_coerce(v, inner, name) for v in items)
        if isinstance(value, str) and rest == [...]:
            return (value,)
        count = "" if rest == [...] else f" of {len(rest) + 1}"
        raise ConfigError(f"{name} = {value!r} has the wrong type; give a list{count}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is not Any and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        wanted = _TYPE_NAMES.get(hint, hint.__name__)
        raise ConfigError(f"{name} = {value!r} has the wrong type; give {wanted}")
    return value
