"""Networks of the compact model.

One tensor contract for all of them: pictures are float `(B, 3, H, W)` in [0, 1] at every public
border; the noisy picture `x_t` alone is in [-1, 1] units plus noise. No network here knows a path,
a PIL picture or a training loss.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from addsr.errors import ModelError

from .compact import CompactConfig, CompactNet
from .discriminator import Discriminator, DiscriminatorConfig
from .features import FeatureNet, FeatureNetConfig

__all__ = [
    "CompactConfig",
    "CompactNet",
    "Discriminator",
    "DiscriminatorConfig",
    "FeatureNet",
    "FeatureNetConfig",
    "build",
    "tuples",
]

_KINDS: dict[str, tuple[type, type[nn.Module]]] = {
    "compact": (CompactConfig, CompactNet),
    "discriminator": (DiscriminatorConfig, Discriminator),
    "features": (FeatureNetConfig, FeatureNet),
}


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with lists, as TOML and JSON give them, turned into the tuples of a config."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def build(kind: str, config: object) -> nn.Module:
    """A freshly initialised network of `kind`, from the plain dictionary stored beside its weights.

    Raises:
        ModelError: an unknown kind, or a configuration this version does not understand.
    """
    if kind not in _KINDS:
        raise ModelError(f"kind: {kind!r} is unknown; this version knows {', '.join(_KINDS)}")
    config_type, net_type = _KINDS[kind]
    if not isinstance(config, dict):  # it comes from a file
        raise ModelError(f"config of kind {kind!r} is {config!r}; it must be a table of fields")
    try:
        return net_type(config_type(**tuples(cast("dict[str, Any]", config))))
    # what torch and Python say of widths that are no widths, too few or too many
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"config of kind {kind!r} is not understood ({reason}); "
            "update addsr or fetch the file again"
        ) from error
