"""FID, MUSIQ, MANIQA and CLIPIQA as other packages compute them, where the user has those.

None of them is part of addsr or of its tests: the networks and weights are the package's, which
fetches them on first use, and no figure was verified by us (`verified` is False). Without a
package there is no figure, only `missing()`, which says what to install.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import DependencyError, InputError

from .pixel import check_picture

PictureScore = Callable[[Tensor], Tensor]
"""`(B, 3, H, W)` in [0, 1] to figures `(B,)` in float64."""
SetScore = Callable[[Iterable[Tensor], Iterable[Tensor]], float]
"""Results and references, each `(B, 3, H, W)` in [0, 1] at a time, to one figure."""


@dataclass(frozen=True)
class Route:
    """One package that can compute a metric."""

    package: str
    """Imported when it is asked for and not before."""
    needs: tuple[str, ...]
    """Modules that have to be importable besides it."""
    install: str
    make: Callable[[Any, str], Any]
    """The imported package and a device to the scoring function."""


@dataclass(frozen=True)
class Adapter:
    """A metric of another package: `missing()` says why there is none, `load()` makes it."""

    name: str
    title: str
    higher_is_better: bool
    range: str
    is_of_set: bool
    """A figure of two sets of pictures, not of one picture."""
    routes: tuple[Route, ...] = field(repr=False)
    """Packages in the order of preference."""
    verified: bool = False

    def missing(self) -> str | None:
        """Why the metric cannot be computed here and what to install; None if it can."""
        reasons: list[str] = []
        for route in self.routes:
            reason = _why_not(route)
            if reason is None:
                return None
            reasons.append(f"{reason} (`{route.install}`)")
        remedy = "install it" if len(reasons) == 1 else "install one of these"
        return f"{self.name}: {' and '.join(reasons)}; {remedy}"

    def source(self) -> str | None:
        """The package that `load` would use, with its version; None without one."""
        for route in self.routes:
            if _why_not(route) is None:
                version = getattr(import_module(route.package), "__version__", "?")
                return f"{route.package} {version}"
        return None

    def load(self, device: str | torch.device = "cpu") -> Any:
        """The scoring function: a `SetScore` for a metric of sets, else a `PictureScore`.

        Raises:
            DependencyError: no package has it, or the package fails, say for want of its weights.
        """
        missing = self.missing()
        if missing is not None:
            raise DependencyError(missing)
        route = next(route for route in self.routes if _why_not(route) is None)
        try:
            return route.make(import_module(route.package), str(device))
        except Exception as error:  # whatever a foreign package raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DependencyError(
                f"{self.name}: {route.package} cannot make it ({reason}); it fetches its weights "
                "on first use, so run it once with a network, or leave this metric out"
            ) from error


def _why_not(route: Route) -> str | None:
    for module in (route.package, *route.needs):
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            absent = error.name or module
            used = "" if absent == module else f", which {module} needs,"
            return f"package {absent}{used} is not installed"
        except Exception as error:  # a torchvision that does not match torch raises RuntimeError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return f"package {module} cannot be imported ({reason})"
    return None


def _pyiqa_pictures(metric: str) -> Route:
    """IQA-PyTorch's no-reference metric of that name; takes pictures in [0, 1] as ours do."""

    def make(pyiqa: Any, device: str) -> PictureScore:
        model = pyiqa.create_metric(metric, device=device)
        return _one_by_one(lambda picture: model(picture.to(device)))

    return Route("pyiqa", (), "pip install pyiqa", make)


def _torchmetrics_clipiqa(_torchmetrics: Any, device: str) -> PictureScore:
    multimodal: Any = import_module("torchmetrics.multimodal")
    model = multimodal.CLIPImageQualityAssessment(model_name_or_path="clip_iqa").to(device)

    def score(picture: Tensor) -> Tensor:
        model.reset()  # it collects the figures of all calls
        model.update(picture.to(device))
        return model.compute()

    return _one_by_one(score)


def _torchmetrics_fid(_torchmetrics: Any, device: str) -> SetScore:
    module: Any = import_module("torchmetrics.image.fid")

    def score(results: Iterable[Tensor], references: Iterable[Tensor]) -> float:
        model = module.FrechetInceptionDistance(feature=2048, normalize=True).to(device)
        for pictures, is_real in ((references, True), (results, False)):
            for picture in pictures:
                check_picture("image", picture)
                model.update(picture.clamp(0, 1).to(device), real=is_real)
        return float(model.compute())

    module.FrechetInceptionDistance(feature=2048, normalize=True)  # fails now if it cannot be made
    return score


def _pyiqa_fid(pyiqa: Any, device: str) -> SetScore:
    model = pyiqa.create_metric("fid", device=device)

    def score(results: Iterable[Tensor], references: Iterable[Tensor]) -> float:
        with TemporaryDirectory(prefix="addsr-fid-") as folder:  # it reads folders only
            places = [Path(folder) / name for name in ("results", "references")]
            for place, pictures in zip(places, (results, references), strict=True):
                place.mkdir()
                _write(pictures, place)
            return float(model(str(places[0]), str(places[1])))

    return score


def _write(pictures: Iterable[Tensor], folder: Path) -> None:
    number = 0
    for batch in pictures:
        check_picture("image", batch)
        levels = (batch.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        for picture in levels.permute(0, 2, 3, 1):  # (H, W, 3)
            Image.fromarray(picture.numpy()).save(folder / f"{number:06d}.png", compress_level=1)
            number += 1
    if number < 2:
        raise InputError(f"pictures: {number} in a set; the Fréchet distance needs two or more")


def _one_by_one(score: Callable[[Tensor], Any]) -> PictureScore:
    """`score` of one picture at a time: packages differ in what they do with a batch.

    MANIQA looks at crops drawn with the global generators: they are set, so that a picture's
    figure is the same in every run, and put back.
    """

    @torch.no_grad()
    def scores(image: Tensor) -> Tensor:
        check_picture("image", image)
        figures: list[float] = []
        for picture in image.split(1):
            with _fixed_chance():
                figures.append(float(score(picture.clamp(0, 1).float())))
        return torch.tensor(figures, dtype=torch.float64)

    return scores


@contextmanager
def _fixed_chance() -> Generator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.random.default_generator.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


musiq = Adapter(
    name="musiq",
    title="MUSIQ (KonIQ-10k)",
    higher_is_better=True,
    range="0..100",
    is_of_set=False,
    routes=(_pyiqa_pictures("musiq"),),
)
"""Ke et al., "MUSIQ: Multi-scale Image Quality Transformer" (2021)."""

# What the authors of SeeSR and OSEDiff say they use; the package's own default is KonIQ-10k.
maniqa = Adapter(
    name="maniqa",
    title="MANIQA (PIPAL)",
    higher_is_better=True,
    range="0..1",
    is_of_set=False,
    routes=(_pyiqa_pictures("maniqa-pipal"),),
)
"""Yang et al., "MANIQA: Multi-dimension Attention Network for No-Reference IQA" (2022)."""

clipiqa = Adapter(
    name="clipiqa",
    title="CLIP-IQA",
    higher_is_better=True,
    range="0..1",
    is_of_set=False,
    routes=(
        _pyiqa_pictures("clipiqa"),
        Route(
            "torchmetrics",
            ("piq", "transformers"),
            "pip install 'torchmetrics[multimodal]' piq",
            _torchmetrics_clipiqa,
        ),
    ),
)
"""Wang et al., "Exploring CLIP for Assessing the Look and Feel of Images" (2023)."""

fid = Adapter(
    name="fid",
    title="FID (Inception v3)",
    higher_is_better=False,
    range="0..inf",
    is_of_set=True,
    routes=(
        Route("pyiqa", (), "pip install pyiqa", _pyiqa_fid),
        Route(
            "torchmetrics",
            ("torch_fidelity",),
            "pip install torchmetrics torch-fidelity",
            _torchmetrics_fid,
        ),
    ),
)
"""Heusel et al. (2017). The two packages shrink pictures differently; `source()` names the one."""

ADAPTERS: dict[str, Adapter] = {a.name: a for a in (musiq, maniqa, clipiqa, fid)}
"""By name, as tables print them."""
