"""What is compared: models that are run, folders of finished results, figures made elsewhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addsr.engines.device import choose_device, choose_dtype
from addsr.errors import ModelError, OptionError
from addsr.models.files import FORMAT
from addsr.models.hub import embedded
from addsr.models.registry import MODELS, ModelInfo, info_for_file

from .cache import hash_file, making_version
from .foreign import DIFFUSERS, MODEL_SUFFIXES, DiffusersUpscaler, ForeignModel
from .protocol import Protocol as EvaluationProtocol

Run = Callable[[Tensor], Tensor]
"""Input `(1, 3, h, w)` in [0, 1] to result `(1, 3, scale * h, scale * w)`."""


class Maker(Protocol):
    """Something that makes results; a dataclass, whose text says all that they depend on."""

    @property
    def device(self) -> torch.device: ...

    def open(self) -> Any:
        """A context manager that gives the `Run`."""


@dataclass(frozen=True)
class Method:
    """One row of a table."""

    id: str
    title: str
    kind: Literal["model", "folder", "resize", "scores"]
    maker: Maker | None = None
    folder: str | None = None
    """Of finished results; `{dataset}` stands for the name of the data set."""
    by_dataset: Mapping[str, str] = field(default_factory=dict[str, str])
    """Data set -> folder of results, or place of scores, that a protocol names."""
    scores: str | None = None
    """`FILE.json#path/inside` of figures made elsewhere."""
    steps: int | None = None
    sha256: str | None = None
    licence: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def fingerprint(self) -> str:
        """Everything that a result depends on besides its input."""
        return f"{self.maker!r} {self.sha256} {making_version()}"

    def results_folder(self, dataset: str) -> Path | None:
        """Where the finished results on a data set lie; None if there are none."""
        if dataset in self.by_dataset:
            return Path(self.by_dataset[dataset])
        if self.folder is None:
            return None
        if "{dataset}" in self.folder:
            return Path(self.folder.replace("{dataset}", dataset))
        inside = Path(self.folder) / dataset
        return inside if inside.is_dir() else Path(self.folder)

    def score_place(self, dataset: str) -> str | None:
        """Where the figures on a data set stand; None if there are none."""
        if dataset in self.by_dataset:
            return self.by_dataset[dataset]
        return None if self.scores is None else self.scores.replace("{dataset}", dataset)


@dataclass(frozen=True)
class ModelOptions:
    """How models are run; None: as each does by default."""

    steps: tuple[int, ...] | None = None
    fidelity: float | None = None
    color: str | None = None
    seed: int = 0
    tile: int | Literal["auto"] = "auto"
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Bicubic:
    """torch's bicubic enlargement, a = -0.75, no antialias: the common baseline."""

    scale: int

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @contextmanager
    def open(self) -> Generator[Run]:
        """Gives the function that enlarges."""
        yield lambda lr: F.interpolate(lr, scale_factor=float(self.scale), mode="bicubic")


@dataclass(frozen=True)
class OurModel:
    """A model of this project, run as `addsr upscale` runs it."""

    model: str = field(repr=False)
    scale: int
    steps: int
    fidelity: float
    color: str
    seed: int
    tile: int | Literal["auto"]
    device_name: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @contextmanager
    def open(self) -> Generator[Run]:
        """Gives the upscaler, kept in memory as long as the context lasts."""
        from addsr.upscaler import Upscaler

        info = _facts(self.model)[0]
        with Upscaler(
            self.model,
            scale=self.scale,
            steps=self.steps,
            fidelity=None if info.fidelity_drives is None else self.fidelity,
            color=self.color,
            seed=self.seed,
            device=self.device_name,
            dtype=self.dtype,
            tile=self.tile,
        ) as up:
            yield up


def make_methods(
    words: Sequence[str],
    scores: Sequence[str],
    protocol: EvaluationProtocol,
    options: ModelOptions,
) -> list[Method]:
    """The methods that `words` (METHOD or NAME=METHOD), `scores` (NAME=FILE) and a protocol name.

    Raises:
        OptionError: a word that means nothing, two methods of one name, no methods.
        ModelError: a weights file cannot be used; DependencyError: a package is missing.
    """
    methods: list[Method] = []
    for word in words:
        methods += _methods(word, protocol.scale, options)
    for word in scores:
        name, place = split_name(word)
        if name is None:
            raise OptionError(f"scores: {word!r} has no name; write NAME=FILE.json#path/inside")
        methods.append(Method(make_id(name), name, "scores", scores=place))
    for kind in ("results", "scores"):
        places: dict[str, dict[str, str]] = {}
        for dataset in protocol.datasets:
            for name, place in getattr(dataset, kind).items():
                places.setdefault(name, {})[dataset.name] = place
        methods += [
            Method(make_id(name), name, "folder" if kind == "results" else "scores", by_dataset=by)
            for name, by in places.items()
        ]
    if not methods:
        raise OptionError("METHOD: name what to evaluate: compact, bicubic, a folder of results...")
    ids = [method.id for method in methods]
    for one in ids:
        if ids.count(one) > 1:
            raise OptionError(f"METHOD: two are called {one!r}; name one as NAME=METHOD")
    return methods


def split_name(word: str) -> tuple[str | None, str]:
    """The title before `=`, if there is one, and the rest."""
    match = re.fullmatch(r"([^=/\\#]+)=(.+)", word)
    if match is None or os.path.exists(word):  # Path.exists raises for names that are too long
        return None, word
    return match[1].strip(), match[2]


def make_id(name: str) -> str:
    """`name` with only such letters as fit into file names."""
    plain = re.sub(r"[^\w.+-]+", "-", name)[:60].strip("-.") or "method"
    return f"method-{plain}" if plain in ("hr", "lr") else plain


def _methods(word: str, scale: int, options: ModelOptions) -> list[Method]:
    title, what = split_name(word)
    if what == "bicubic":
        details = {"kernel": "torch bicubic, a = -0.75, no antialias"}
        name = title or "bicubic"
        return [Method(make_id(name), name, "resize", Bicubic(scale), details=details)]
    if what.partition(":")[0] == DIFFUSERS:
        maker = DiffusersUpscaler.parse(what, scale, options.seed, options.device, options.dtype)
        name = title or f"diffusers {maker.pipeline}"
        return [_foreign(make_id(name), name, maker, maker.sha256(), maker.steps)]
    if what in MODELS:
        return _ours(what, title, scale, options)
    path = Path(what)
    if "{dataset}" in what or os.path.isdir(path):
        for trained in (path / "weights" / "net-ema.safetensors", path / "net-ema.safetensors"):
            if trained.is_file():
                raise OptionError(f"METHOD: {what} is a folder of training; give {trained}")
        name = title or path.resolve().name
        return [Method(make_id(name), name, "folder", folder=what)]
    if os.path.isfile(path) and path.suffix.lower() in MODEL_SUFFIXES:
        if _is_ours(path):
            return _ours(what, title, scale, options)
        name = title or path.stem
        tile = None if options.tile == "auto" else options.tile
        foreign = ForeignModel(path, scale, tile, str(choose_device(options.device)), options.dtype)
        foreign.check()
        return [_foreign(make_id(name), name, foreign, hash_file(path), None)]
    known = ", ".join(MODELS)
    if os.path.isfile(path):
        raise OptionError(
            f"METHOD: {what} is no model file ({', '.join(sorted(MODEL_SUFFIXES))}) and no folder; "
            "figures made elsewhere go with --scores NAME=FILE.json"
        )
    raise OptionError(
        f"METHOD: {what!r} is neither a model ({known}), bicubic, {DIFFUSERS}:ldm or :x4, nor a "
        "folder or file that exists"
    )


def _foreign(name: str, title: str, maker: Any, sha256: str | None, steps: int | None) -> Method:
    return Method(name, title, "model", maker, steps=steps, sha256=sha256, details=maker.details())


def _is_ours(path: Path) -> bool:
    if path.suffix.lower() != ".safetensors":
        return False
    return _header(path).get("format") == FORMAT


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return cast("dict[str, str]", file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error


def _facts(model: str) -> tuple[ModelInfo, str]:
    """What the weights say of themselves, and their sha256; they are not loaded for it."""
    if model not in MODELS:
        return _facts_of_file(Path(model), None)
    resource = embedded(model)
    if not resource.is_file():
        from addsr.models.hub import load_model

        load_model(model)  # raises what there is to say
    with as_file(resource) as path:
        return _facts_of_file(path, MODELS[model])


def _facts_of_file(path: Path, known: ModelInfo | None) -> tuple[ModelInfo, str]:
    metadata: dict[str, Any] = dict(_header(path))
    if "config" in metadata:
        try:
            metadata["config"] = json.loads(metadata["config"])
        except ValueError as error:
            raise ModelError(f"{path}: its config is no JSON ({error}); fetch it again") from error
    info = info_for_file(known.name if known else path.name, metadata, path.stat().st_size / 1e6)
    return info, hash_file(path)


def _ours(model: str, title: str | None, scale: int, options: ModelOptions) -> list[Method]:
    info, sha256 = _facts(model)
    licence = MODELS[model].licence if model in MODELS else info.licence
    device = choose_device(options.device)
    dtype = str(choose_dtype(options.dtype, device)).removeprefix("torch.")
    name = title or (model if model in MODELS else Path(model).stem)
    methods: list[Method] = []
    for asked in dict.fromkeys(options.steps or (None,)):
        steps = info.check_steps(asked)
        maker = OurModel(
            model=model,
            scale=scale,
            steps=steps,
            fidelity=info.check_fidelity(options.fidelity),
            color=options.color or info.default_color,
            seed=options.seed,
            tile=options.tile,
            device_name=str(device),
            dtype={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[dtype],
        )
        details = {
            "fidelity": maker.fidelity,
            "color": maker.color,
            "seed": maker.seed,
            "tile": maker.tile,
            "device": maker.device_name,
            "dtype": dtype,
        }
        words = "1 step" if steps == 1 else f"{steps} steps"
        methods.append(
            Method(
                f"{make_id(name)}-{steps}", f"{name}, {words}", "model", maker,
                steps=steps, sha256=sha256, licence=licence, details=details,
            )
        )  # fmt: skip
    return methods
