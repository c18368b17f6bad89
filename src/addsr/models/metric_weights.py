"""Where the published weights of LPIPS and DISTS lie on this machine, and where to get them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import (
    hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
    try_to_load_from_cache,
)

from addsr.errors import ModelError, OptionError


@dataclass(frozen=True)
class Published:
    """One file that others publish, and the places that hold it."""

    what: str
    names: tuple[str, ...]
    """Names it goes by, the usual one first."""
    url: str
    hub: tuple[str, str] | None
    """Repository and file on the Hugging Face hub."""
    packages: tuple[tuple[str, str], ...] = ()
    """Installed packages that carry it: name and path inside."""


_HUB = "chaofengc/IQA-PyTorch-Weights"
_HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
_TORCHMETRICS = "functional/image"

ALEXNET = Published(
    "torchvision's AlexNet",
    ("alexnet-owt-7be5be79.pth",),
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    None,
)
VGG16 = Published(
    "torchvision's VGG16",
    ("vgg16-397923af.pth", "vgg16.tv_in1k.safetensors"),
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    ("timm/vgg16.tv_in1k", "model.safetensors"),
)
LPIPS_ALEX = Published(
    "the heads of LPIPS v0.1 for AlexNet",
    ("LPIPS_v0.1_alex-df73285e.pth", "alex.pth"),
    f"{_HEADS}/alex.pth",
    (_HUB, "LPIPS_v0.1_alex-df73285e.pth"),
    (
        ("lpips", "weights/v0.1/alex.pth"),
        ("torchmetrics", f"{_TORCHMETRICS}/lpips_models/alex.pth"),
    ),
)
LPIPS_VGG = Published(
    "the heads of LPIPS v0.1 for VGG16",
    ("LPIPS_v0.1_vgg-a78928a0.pth", "vgg.pth"),
    f"{_HEADS}/vgg.pth",
    (_HUB, "LPIPS_v0.1_vgg-a78928a0.pth"),
    (
        ("lpips", "weights/v0.1/vgg.pth"),
        ("torchmetrics", f"{_TORCHMETRICS}/lpips_models/vgg.pth"),
    ),
)
DISTS = Published(
    "alpha and beta of DISTS",
    ("DISTS_weights-f5e65c96.pth", "weights.pt"),
    "https://github.com/dingkeyan93/DISTS/raw/master/DISTS_pytorch/weights.pt",
    (_HUB, "DISTS_weights-f5e65c96.pth"),
    (("torchmetrics", f"{_TORCHMETRICS}/dists_models/weights.pt"),),
)

METRIC_FILES: dict[str, tuple[Published, ...]] = {
    "lpips-alex": (ALEXNET, LPIPS_ALEX),
    "lpips-vgg": (VGG16, LPIPS_VGG),
    "dists": (VGG16, DISTS),
}
"""Metric -> the files it needs: the network first, then what the metric's authors trained."""


def find_metric_weights(
    metric: str, folder: str | Path | None = None, *, fetch: bool = False
) -> tuple[Path, ...]:
    """Paths of the files that `metric` (lpips-alex, lpips-vgg, dists) needs, network first.

    Looked for under their published names in `folder`, in the caches of torch.hub (where
    torchvision and IQA-PyTorch put them) and of the Hugging Face hub, and in installed packages
    that carry them. Nothing is downloaded, unless `fetch` allows it for those on the hub.

    Raises:
        OptionError: another metric.
        ModelError: a file is nowhere; the message says which, and where to get it.
    """
    missing = missing_metric_weights(metric, folder)
    if missing is not None and not fetch:
        raise ModelError(missing)
    return tuple(_find(file, folder) or _fetch(metric, file, folder) for file in _files(metric))


def missing_metric_weights(metric: str, folder: str | Path | None = None) -> str | None:
    """Which files `metric` lacks and where to get them, in one sentence; None if none is missing.

    Raises:
        OptionError: another metric.
    """
    absent = [file for file in _files(metric) if _find(file, folder) is None]
    if not absent:
        return None
    return f"{metric}: " + "; ".join(_how_to_get(file, folder) for file in absent)


def _files(metric: str) -> tuple[Published, ...]:
    if metric not in METRIC_FILES:
        raise OptionError(
            f"metric: {metric!r} needs no weights known here; use one of {', '.join(METRIC_FILES)}"
        )
    return METRIC_FILES[metric]


def _how_to_get(file: Published, folder: str | Path | None) -> str:
    place = f"{str(folder)!r}" if folder is not None else "a folder and give it as --metric-weights"
    return f"{file.what} is missing; download {file.url} and put it as {file.names[0]} into {place}"


def _find(file: Published, folder: str | Path | None) -> Path | None:
    return next((path for path in _places(file, folder) if path.is_file()), None)


def _places(file: Published, folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield from (Path(folder) / name for name in file.names)
    hashed = [name for name in file.names if "-" in name]  # others say too little outside of folder
    for cache in ("checkpoints", "pyiqa"):
        yield from (_torch_hub() / cache / name for name in hashed)
    if file.hub is not None:
        cached = try_to_load_from_cache(*file.hub)
        if isinstance(cached, str):
            yield Path(cached)
    for package, inside in file.packages:
        yield from (root / inside for root in _package_folders(package))


def _torch_hub() -> Path:
    """torch.hub's folder, by its rules; asking torch.hub itself would import torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub"


def _package_folders(package: str) -> list[Path]:
    """Where an installed package lies; found without importing it."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module without a spec
        return []
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def _fetch(metric: str, file: Published, folder: str | Path | None) -> Path:
    """The file from the hub, in its cache.

    Raises:
        ModelError: it is not on the hub, or cannot be reached.
    """
    if file.hub is None:
        raise ModelError(f"{metric}: {_how_to_get(file, folder)}")
    try:
        return Path(hf_hub_download(*file.hub))
    except Exception as error:  # offline, no such file, no route: the hub has a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{metric}: {'/'.join(file.hub)} cannot be fetched ({reason}); or by hand: "
            f"{_how_to_get(file, folder)}"
        ) from error
