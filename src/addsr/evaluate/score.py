"""Figures of one picture: which can be measured here, and the measuring."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from addsr.errors import AddsrError, InputError, OptionError
from addsr.metrics.catalog import CATALOG, Metric
from addsr.metrics.niqe import load_niqe_params, niqe
from addsr.metrics.piqe import piqe
from addsr.metrics.pixel import gradient, high_frequency_share, lr_psnr, psnr_rgb, psnr_y, ssim_y
from addsr.metrics.spectrum import laplacian_energy, spectrum_error
from addsr.metrics.structure import gmsd, haarpsi, ms_ssim
from addsr.models.files import digest

from .cache import Cache, hash_file, key_of, measuring_version
from .pairs import Pair
from .pictures import read_picture
from .protocol import Protocol


@dataclass(frozen=True)
class Resources:
    """Files that some metrics need, and where networks among them run."""

    niqe_params: Path | None = None
    brisque_model: Path | None = None
    metric_weights: Path | None = None
    device: str = "cpu"


@dataclass
class Shot:
    """One result with what it is compared with; each `(1, 3, H, W)` in [0, 1]."""

    sr: Tensor
    hr: Tensor | None
    lr: Tensor | None
    shared: dict[str, Any] = field(default_factory=dict[str, Any])
    """What several metrics of one picture use."""

    @property
    def reference(self) -> Tensor:
        assert self.hr is not None
        return self.hr

    @property
    def input(self) -> Tensor:
        assert self.lr is not None
        return self.lr


Measure = Callable[[Shot], Tensor]


@dataclass(frozen=True)
class Scored:
    """Figures of one picture, NaN where there is none, and why."""

    values: dict[str, float]
    gaps: dict[str, str]
    failed: set[str] = field(default_factory=set[str])
    """Those of another package that failed, which may go well next time."""


class Scorer:
    """The metrics that can be measured here, made ready; `missing` says how to get the others.

    Usable from several threads.

    Raises:
        InputError, ModelError: a file that was given for a metric cannot be used.
    """

    def __init__(self, metrics: Sequence[Metric], protocol: Protocol, resources: Resources) -> None:
        self.border, self.luma = protocol.border, protocol.luma
        self.resources = resources
        self.missing: dict[str, str] = {}
        self.measures: dict[str, Measure] = {}
        self.versions: dict[str, str] = {}
        self.sets: dict[str, Any] = {}
        """Set metric -> what it needs: phi', or the adapter's function; see `sets`."""
        self._foreign = threading.Lock()  # other packages' code, which sets global generators
        for metric in metrics:
            self._prepare(metric)

    def image_metrics(self, has_hr: bool, has_lr: bool) -> list[str]:
        """Names of those that a data set with these folders gets, in the catalog's order."""
        there = {"hr": has_hr, "lr": has_lr}
        return [
            name for name in CATALOG
            if name in self.measures and all(there[need] for need in CATALOG[name].needs)
        ]  # fmt: skip

    def set_metrics(self, has_hr: bool) -> list[str]:
        """Names of the figures of whole data sets, in the catalog's order."""
        return [name for name in CATALOG if name in self.sets and has_hr]

    def score(self, shot: Shot, names: Sequence[str]) -> Scored:
        """The figures called so of one picture."""
        values: dict[str, float] = {}
        gaps: dict[str, str] = {}
        failed: set[str] = set()
        for name in names:
            try:
                values[name] = float(self.measures[name](shot))
            except InputError as error:
                values[name], gaps[name] = math.nan, str(error)
            except Exception as error:  # of another package; its figure alone is lost
                if CATALOG[name].verified:
                    raise
                values[name], gaps[name] = math.nan, str(foreign_error(name, error))
                failed.add(name)
        return Scored(values, gaps, failed)

    def score_file(
        self, path: Path, pair: Pair, cache: Cache, names: Sequence[str]
    ) -> tuple[Scored, str, str]:
        """The figures of a stored result, from the cache where it has them; hashes of both files.

        The second and third value are the sha256 of the result and of the reference (or "").

        Raises:
            UnreadableError: the input or the reference cannot be used; AddsrError: the result.
        """
        try:
            hashes = {"sr": hash_file(path)}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check it") from error
        for role, file in (("hr", pair.hr), ("lr", pair.lr)):
            try:
                hashes[role] = "" if file is None else hash_file(file)
            except OSError as error:
                raise UnreadableError(f"{file}: cannot be read ({error.strerror}); check it") from (
                    error
                )
        wanted = {name: (self._key(name, hashes, pair), self.versions[name]) for name in names}
        known = cache.scores(wanted)
        scored = Scored(
            {name: value for name, (value, _) in known.items()},
            {name: note for name, (_, note) in known.items() if note},
        )
        absent = [name for name in names if name not in known]
        if absent:
            fresh = self.score(self._shot(path, pair, absent), absent)
            cache.store_scores(
                wanted,
                {
                    name: (value, fresh.gaps.get(name, ""))
                    for name, value in fresh.values.items()
                    if name not in fresh.failed
                },
            )
            scored.values.update(fresh.values)
            scored.gaps.update(fresh.gaps)
        return scored, hashes["sr"], hashes["hr"]

    def _key(self, name: str, hashes: dict[str, str], pair: Pair) -> str:
        needed = [hashes[role] for role in ("sr", *CATALOG[name].needs)]
        return key_of("score", *needed, pair.size, pair.scale)

    def _shot(self, path: Path, pair: Pair, names: Sequence[str]) -> Shot:
        needs = {need for name in names for need in CATALOG[name].needs}
        try:
            hr = read_picture(pair.hr, pair) if "hr" in needs and pair.hr else None
            lr = read_picture(pair.lr, pair, is_input=True) if "lr" in needs and pair.lr else None
        except AddsrError as error:
            raise UnreadableError(str(error)) from error
        return Shot(read_picture(path, pair), hr, lr)

    # what each metric needs

    def _prepare(self, metric: Metric) -> None:
        name = metric.name
        resource = ""
        if name in _PLAIN:
            self.measures[name] = self._plain(name)
        elif name.startswith("niqe"):
            resource = self._prepare_niqe(name)
        elif name == "brisque":
            resource = self._prepare_brisque()
        elif name in ("lpips-alex", "lpips-vgg", "dists"):
            resource = self._prepare_network(name)
        elif name in ("musiq", "maniqa", "clipiqa", "fid"):
            resource = self._prepare_adapter(name)
        elif name in ("fd-phi", "kid-phi"):
            resource = self._prepare_phi(name)
        elif name == "swd":
            self.sets[name] = None
        else:
            raise OptionError(f"metrics: {name!r} is in the catalog but cannot be measured")
        self.versions[name] = key_of(measuring_version(), name, self.border, self.luma, resource)[
            :16
        ]

    def _plain(self, name: str) -> Measure:
        measure = _PLAIN[name]
        return lambda shot: measure(shot, self.border, self.luma == "yiq")

    def _prepare_niqe(self, name: str) -> str:
        if name == "niqe-addsr":
            try:
                params = load_niqe_params(None)
            except InputError as error:
                self.missing[name] = (
                    f"{name}: this package's own model cannot be read ({error}); reinstall with "
                    "`pip install --force-reinstall addsr`"
                )
                return ""
            resource = str(hash_tensors(params.mean, params.covariance))
        elif self.resources.niqe_params is None:
            self.missing[name] = (
                f"{name}: the authors' model is missing; download niqe_pris_params.npz from "
                "BasicSR (basicsr/metrics) and give it as --niqe-params"
            )
            return ""
        else:
            params = load_niqe_params(self.resources.niqe_params)
            resource = str(hash_tensors(params.mean, params.covariance))
        luma: Literal["bt601", "yiq"] = "yiq" if name == "niqe-yiq" else "bt601"
        self.measures[name] = lambda shot: niqe(shot.sr, params, border=0, luma=luma)
        return resource

    def _prepare_brisque(self) -> str:
        path = self.resources.brisque_model
        if path is None:
            self.missing["brisque"] = (
                "brisque: its model is missing; give the published file as --brisque-model"
            )
            return ""
        from addsr.metrics.brisque import brisque
        from addsr.metrics.brisque_model import load_brisque

        model = load_brisque(path)
        self.measures["brisque"] = lambda shot: brisque(shot.sr, model)
        return hash_file(path)

    def _prepare_network(self, name: str) -> str:
        from addsr.models.metric_weights import find_metric_weights, missing_metric_weights

        absent = missing_metric_weights(name, self.resources.metric_weights)
        if absent is not None:
            self.missing[name] = absent
            return ""
        files = find_metric_weights(name, self.resources.metric_weights)
        net: nn.Module
        if name == "dists":
            from addsr.metrics.dists import load_dists

            net = load_dists(*files)
        else:
            from addsr.metrics.lpips import load_lpips

            net = load_lpips(*files, net="alex" if name == "lpips-alex" else "vgg")
        net = net.to(self.resources.device)
        device = self.resources.device
        self.measures[name] = lambda shot: net(shot.sr.to(device), shot.reference.to(device))
        return " ".join(hash_file(file) for file in files)

    def _prepare_adapter(self, name: str) -> str:
        from addsr.metrics.adapters import ADAPTERS

        adapter = ADAPTERS[name]
        absent = adapter.missing()
        if absent is not None:
            self.missing[name] = absent
            return ""
        try:
            function = adapter.load(self.resources.device)
        except AddsrError as error:
            self.missing[name] = str(error)
            return ""
        if adapter.is_of_set:
            self.sets[name] = function
        else:

            def measure(shot: Shot) -> Tensor:
                with self._foreign:
                    return cast(Tensor, function(shot.sr))

            self.measures[name] = measure
        return adapter.source() or ""

    def _prepare_phi(self, name: str) -> str:
        from addsr.models.phi import has_phi, load_phi

        if "phi" not in self.__dict__:
            folder = self.resources.metric_weights
            given = None if folder is None else folder / "phi.safetensors"
            if given is not None and given.is_file():
                self.phi: Any = load_phi(given).to(self.resources.device)
            else:
                self.phi = load_phi().to(self.resources.device) if has_phi() else None
        if self.phi is None:
            self.missing[name] = (
                f"{name}: the weights of phi' are missing from this installation; reinstall with "
                "`pip install --force-reinstall addsr`, or put your own (recipes/features.toml) as "
                "phi.safetensors into the folder that is given as --metric-weights"
            )
            return ""
        self.sets[name] = self.phi
        self.phi_version = digest(self.phi.state_dict())
        return self.phi_version


class UnreadableError(InputError):
    """The input or the reference of a pair cannot be used, whatever the method."""


def foreign_error(name: str, error: Exception) -> InputError:
    """What another package raised, as one of our errors."""
    reason = (str(error).splitlines() or [""])[0]
    return InputError(
        f"{name}: its package failed ({type(error).__name__}: {reason}); leave {name} out, or see "
        "what that package needs"
    )


def hash_tensors(*tensors: Tensor) -> str:
    """A key of the values of tensors."""
    return digest({str(number): tensor for number, tensor in enumerate(tensors)})[:16]


def as_full_range(image: Tensor) -> Tensor:
    """A gray picture whose luma of BT.601 is the luma of `image` over the full range, 0..255.

    So that functions that measure on Y in 16..235 measure in the other convention too; values lie
    a little outside of [0, 1].
    """
    red, green, blue = image.double().unbind(1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    return ((255 * gray - 16) / 219)[:, None].expand(-1, 3, -1, -1)


def _compared(
    function: Callable[[Tensor, Tensor, int], Tensor],
) -> Callable[[Shot, int, bool], Tensor]:
    """A luma metric of result and reference in the protocol's convention."""

    def measure(shot: Shot, border: int, is_full_range: bool) -> Tensor:
        sr, hr = shot.sr, shot.reference
        if is_full_range:
            sr, hr = as_full_range(sr), as_full_range(hr)
        return function(sr, hr, border)

    return measure


def _ratio(figure: Tensor, reference: Tensor) -> Tensor:
    """NaN where a reference is flat: one infinite ratio would be the mean of all."""
    return torch.where(reference > 0, figure / reference, torch.nan)


def _laplacian(part: str) -> Callable[[Shot, int, bool], Tensor]:
    def measure(shot: Shot, border: int, _: bool) -> Tensor:
        if "laplacian" not in shot.shared:
            shot.shared["laplacian"] = laplacian_energy(shot.sr, shot.reference, border)
        return cast(Tensor, shot.shared["laplacian"][part])

    return measure


_PLAIN: dict[str, Callable[[Shot, int, bool], Tensor]] = {
    "psnr-y": _compared(psnr_y),
    "ssim-y": _compared(ssim_y),
    "psnr-rgb": lambda shot, border, _: psnr_rgb(shot.sr, shot.reference, border),
    "ms-ssim": _compared(ms_ssim),
    "gmsd": lambda shot, border, _: gmsd(shot.sr, shot.reference, border),
    "haarpsi": lambda shot, border, _: haarpsi(shot.sr, shot.reference, border),
    "lr-psnr": lambda shot, *_: lr_psnr(shot.sr, shot.input),
    "piqe": lambda shot, *_: piqe(shot.sr),
    "spectrum": lambda shot, border, _: spectrum_error(shot.sr, shot.reference, border),
    "laplacian-flat": _laplacian("flat"),
    "laplacian-edge": _laplacian("edge"),
    "laplacian-texture": _laplacian("texture"),
    "gradient": lambda shot, *_: _ratio(gradient(shot.sr), gradient(shot.reference)),
    "gradient-levels": lambda shot, *_: gradient(shot.sr),
    "hf": lambda shot, *_: high_frequency_share(shot.sr),
}
"""Metrics that need no file: of a shot, the border, and whether luma has the full range."""
