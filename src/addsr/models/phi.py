"""Weights of phi', the net whose features evaluation compares sets of pictures in."""

from __future__ import annotations

from importlib.resources import as_file
from pathlib import Path
from typing import cast

from addsr.errors import ModelError
from addsr.nets import FeatureNet, build

from .files import load_weights
from .hub import embedded

KIND = "features"


def has_phi() -> bool:
    """Whether this installation holds the weights of phi'."""
    return bool(embedded("phi").is_file())


def load_phi(path: str | Path | None = None) -> FeatureNet:
    """phi' from a file of kind "features", or from the package for None; fp32, CPU, frozen.

    Figures made with different weights are not comparable: `addsr.models.files.digest` of the
    net's state dict tells them apart.

    Raises:
        ModelError: no weights, damaged ones, or those of another network.
    """
    if path is not None:
        return _load(Path(path))
    resource = embedded("phi")
    if not resource.is_file():
        raise ModelError(
            "phi: addsr/models/embedded/phi.safetensors, the weights of phi', is missing from this "
            "installation; reinstall with `pip install --force-reinstall addsr`, or give the path "
            "of a weights file that the training task 'features' (recipes/features.toml) made"
        )
    with as_file(resource) as found:
        return _load(found)


def _load(path: Path) -> FeatureNet:
    state, metadata = load_weights(path)
    kind = metadata.get("kind")
    if kind != KIND:
        raise ModelError(
            f"{path}: holds weights of kind {kind!r}, which give no features; "
            f"give a file of kind {KIND!r}"
        )
    try:
        net = cast(FeatureNet, build(KIND, metadata.get("config", {})))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{path}: the weights do not fit the network named ({first})") from error
    return net.float().requires_grad_(False).eval()
