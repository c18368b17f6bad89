"""Facts about a pipeline's weights, and the checks of numbers that options share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from addsr.diffusion.ddpm import Prediction
from addsr.errors import OptionError

Spacing = Literal["linspace", "trailing"]
"""Which timesteps few steps visit; diffusers' words for it (`addsr.pipelines.walk`)."""


@dataclass(frozen=True)
class PipelineConfig:
    """Facts about the weights."""

    prediction: Prediction = "eps"
    """What the U-Net says; v for the model of 768 px."""
    tile: int = 512
    """Side of the pictures it was trained with."""
    steps: int = 200
    fidelity: float = 0.5
    spacing: Spacing = "linspace"
    """Of our own schedulers; "trailing" for a U-Net that was distilled to those timesteps."""
    guidance: float | None = None
    """SeeSR's scale of classifier-free guidance; None: the published one."""

    def __post_init__(self) -> None:
        if self.prediction not in ("eps", "v"):
            raise OptionError(f"prediction: {self.prediction!r} is unknown; use eps or v")
        if self.spacing not in ("linspace", "trailing"):
            raise OptionError(f"spacing: {self.spacing!r} is unknown; use linspace or trailing")
        for name in ("tile", "steps"):
            check_whole(name, getattr(self, name), 1)
        check_share("fidelity", self.fidelity)
        guidance: Any = self.guidance
        if guidance is not None and not (isinstance(guidance, (int, float)) and guidance >= 1):
            raise OptionError(f"guidance: {guidance!r} is not possible; give a number from 1")


def check_whole(name: str, value: Any, least: int) -> None:
    """OptionError unless `value` is a whole number from `least`."""
    if type(value) is not int or value < least:
        raise OptionError(f"{name}: {value!r} is not possible; give a whole number from {least}")


def check_share(name: str, value: Any) -> None:
    """OptionError unless `value` is a number from 0 to 1."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise OptionError(f"{name}: {value!r} is outside of 0 to 1; give a number in between")


def check_one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """OptionError unless `value` is among `known`."""
    if value not in known:
        raise OptionError(f"{name}: {value!r} is unknown; use one of {', '.join(known)}")
