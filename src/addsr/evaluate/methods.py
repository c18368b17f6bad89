"""What is compared: models that are run, folders of finished results, figures made elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.engines.device import choose_device
from addsr.errors import OptionError
from addsr.models.published_folders import EVERY
from addsr.models.registry import MODELS

from .cache import hash_file, making_version
from .foreign import DIFFUSERS, MODEL_SUFFIXES, DiffusersUpscaler, ForeignModel
from .ours import ModelOptions, OurModel, Ours, find_ours
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
    own = find_ours(what)
    if own is not None:
        return _ours(own, title, scale, options)
    path = Path(what)
    if "{dataset}" in what or os.path.isdir(path):
        for trained in (path / "weights" / "net-ema.safetensors", path / "net-ema.safetensors"):
            if trained.is_file():
                raise OptionError(f"METHOD: {what} is a folder of training; give {trained}")
        name = title or path.resolve().name
        return [Method(make_id(name), name, "folder", folder=what)]
    if os.path.isfile(path) and path.suffix.lower() in MODEL_SUFFIXES:
        name = title or path.stem
        tile = None if options.tile == "auto" else options.tile
        foreign = ForeignModel(path, scale, tile, str(choose_device(options.device)), options.dtype)
        foreign.check()
        return [_foreign(make_id(name), name, foreign, hash_file(path), None)]
    known = ", ".join([*MODELS, *EVERY])
    if os.path.isfile(path):
        raise OptionError(
            f"METHOD: {what} is no model file ({', '.join(sorted(MODEL_SUFFIXES))}) and no folder; "
            "figures made elsewhere go with --scores NAME=FILE.json"
        )
    raise OptionError(
        f"METHOD: {what!r} is neither a model ({known}), bicubic, {DIFFUSERS}:ldm or :x4, nor a "
        "folder or file that exists"
    )


def _ours(own: Ours, title: str | None, scale: int, options: ModelOptions) -> list[Method]:
    """A method for each number of steps."""
    name = title or own.name
    methods: list[Method] = []
    for asked in dict.fromkeys(options.steps or (None,)):
        maker = OurModel.make(own, scale, asked, options)
        words = "1 step" if maker.steps == 1 else f"{maker.steps} steps"
        methods.append(
            Method(
                f"{make_id(name)}-{maker.steps}", f"{name}, {words}", "model", maker,
                steps=maker.steps, sha256=own.sha256, licence=own.info.licence,
                details=maker.details(),
            )
        )  # fmt: skip
    return methods


def _foreign(name: str, title: str, maker: Any, sha256: str | None, steps: int | None) -> Method:
    return Method(name, title, "model", maker, steps=steps, sha256=sha256, details=maker.details())
