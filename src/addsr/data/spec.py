"""Every range of the degradation pipeline as frozen dataclasses, and the presets.

The pipeline is the second-order one of Real-ESRGAN (arXiv 2107.10833, section 3); the ranges of
`strong` are that paper's, those of `mild` StableSR's (arXiv 2305.07015), which halves most of them.
Two deliberate departures, because both teach a network to smooth: the second round runs for half
of the pictures (ResShift, arXiv 2307.12348), and the final sinc filter for half instead of 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from addsr.errors import ConfigError

Range = tuple[float, float]

KINDS = (
    "gaussian isotropic",
    "gaussian anisotropic",
    "generalised isotropic",
    "generalised anisotropic",
    "plateau isotropic",
    "plateau anisotropic",
)
"""Blur kernels in the order of `BlurSpec.kinds`."""


def _wrong(spec: Any, name: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"{type(spec).__name__}.{name} = {getattr(spec, name)!r} is not allowed; give {allowed}"
    )


def _share(spec: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(spec, name) <= 1:
            raise _wrong(spec, name, "a number from 0 to 1")


def _shares(spec: Any, name: str, count: int) -> None:
    value = getattr(spec, name)
    if len(value) != count or min(value) < 0 or abs(sum(value) - 1) > 1e-6:
        raise _wrong(spec, name, f"{count} shares from 0 that sum to 1")


def _range(spec: Any, name: str, lowest: float, highest: float) -> None:
    value = getattr(spec, name)
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise _wrong(spec, name, f"(low, high) with {lowest:g} <= low <= high <= {highest:g}")


@dataclass(frozen=True)
class BlurSpec:
    """A random blur kernel per picture; lengths in pixels of the picture it is applied to."""

    probability: float = 1.0
    sinc: float = 0.1
    """Share of circular low-pass kernels (ringing) among the kernels."""
    kinds: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Shares of `KINDS` among the others."""
    sigma: Range = (0.2, 3.0)
    beta_generalised: Range = (0.5, 4.0)
    """Exponent: half of the draws lie below 1 (long tails), half above (flat top)."""
    beta_plateau: Range = (1.0, 2.0)
    sizes: tuple[int, int] = (7, 21)

    def __post_init__(self) -> None:
        _share(self, "probability", "sinc")
        _shares(self, "kinds", len(KINDS))
        _range(self, "sigma", 0.05, 10.0)
        _range(self, "beta_generalised", 0.1, 10.0)
        _range(self, "beta_plateau", 0.1, 10.0)
        _range(self, "sizes", 3, 21)
        if self.sizes[0] % 2 == 0 or self.sizes[1] % 2 == 0:
            raise _wrong(self, "sizes", "two odd numbers")


@dataclass(frozen=True)
class ResizeSpec:
    """A random resize: up, down or keep, by a factor, with a random filter."""

    shares: tuple[float, ...] = (0.2, 0.7, 0.1)
    """Of up, down and keep."""
    factor: Range = (0.15, 1.5)
    """Smallest factor down, largest factor up."""
    antialias: float = 0.5
    """Share of bilinear and bicubic resizes with a filter as wide as the factor asks."""
    lanczos: float = 0.0
    """Share of resizes by Lanczos; area, bilinear and bicubic get a third of the others each."""

    def __post_init__(self) -> None:
        _shares(self, "shares", 3)
        _range(self, "factor", 0.05, 4.0)
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise _wrong(self, "factor", "a range with 1 in it")
        _share(self, "antialias", "lanczos")


@dataclass(frozen=True)
class NoiseSpec:
    """Gaussian or Poisson noise per picture, in grey or in colour."""

    probability: float = 1.0
    gaussian: float = 0.5
    """Share of Gaussian noise; the others get Poisson noise."""
    sigma: Range = (1.0, 30.0)
    """Of Gaussian noise, in levels of 255."""
    poisson: Range = (0.05, 3.0)
    """Factor on Poisson noise; 1 is the noise of as many photons as the picture has levels."""
    gray: float = 0.4
    """Share of pictures whose channels get the same noise."""

    def __post_init__(self) -> None:
        _share(self, "probability", "gaussian", "gray")
        _range(self, "sigma", 0.0, 255.0)
        _range(self, "poisson", 0.0, 10.0)


@dataclass(frozen=True)
class MosaicSpec:
    """Noise of a camera: on the sensor, before the colours of its Bayer mosaic are interpolated.

    Comes after the first resize, so that the last one averages most of it away, as where a photo
    is made small; pictures that get it get no `noise1`.
    """

    probability: float = 0.0
    sigma: Range = (0.5, 4.0)
    """Standard deviation of a green pixel of middle grey, in levels of 255 of the picture."""
    read: Range = (0.0, 0.03)
    """Share of that variance that does not depend on the light; the rest grows with it."""
    red: Range = (1.9, 2.4)
    """Gain of the red pixels over the green ones (white balance), as in arXiv 1811.11127."""
    blue: Range = (1.5, 1.9)
    """Gain of the blue pixels."""
    errors: Range = (0.0, 0.5)
    """Share of the interpolation's errors that stay: the lens blurs what a mosaic sees, and cameras
    interpolate with more care than is taken here."""

    def __post_init__(self) -> None:
        _share(self, "probability")
        _range(self, "sigma", 0.0, 64.0)
        _range(self, "read", 0.0, 1.0)
        _range(self, "red", 0.25, 8.0)
        _range(self, "blue", 0.25, 8.0)
        _range(self, "errors", 0.0, 1.0)


@dataclass(frozen=True)
class JpegSpec:
    """JPEG compression with 4:2:0 chroma at a random quality per picture."""

    probability: float = 1.0
    quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        _share(self, "probability")
        _range(self, "quality", 1.0, 100.0)


@dataclass(frozen=True)
class WebpSpec:
    """WebP compression as the last step, by the real encoder on the host.

    Pictures that get it get no `jpeg2`; those above the format's 16,383 pixels stay as they are.
    """

    probability: float = 0.0
    quality: Range = (75.0, 100.0)
    """Drawn in whole numbers."""

    def __post_init__(self) -> None:
        _share(self, "probability")
        _range(self, "quality", 0.0, 100.0)


@dataclass(frozen=True)
class DegradationSpec:
    """The whole pipeline: blur, resize, noise, JPEG, again with `second_order`, then down to LR."""

    blur1: BlurSpec = BlurSpec()
    resize1: ResizeSpec = ResizeSpec()
    mosaic: MosaicSpec = MosaicSpec()
    noise1: NoiseSpec = NoiseSpec()
    jpeg1: JpegSpec = JpegSpec()
    second_order: float = 0.5
    """Share of pictures that go through blur2, resize2 and noise2."""
    blur2: BlurSpec = BlurSpec(probability=0.8, sigma=(0.2, 1.5))
    resize2: ResizeSpec = ResizeSpec(shares=(0.3, 0.4, 0.3), factor=(0.3, 1.2))
    """Relative to the size of the LR picture."""
    noise2: NoiseSpec = NoiseSpec(sigma=(1.0, 25.0), poisson=(0.05, 2.5))
    final_sinc: float = 0.5
    """Share of pictures with a sinc filter at LR size."""
    final_antialias: float = 0.5
    """Share of bilinear and bicubic final resizes with a filter as wide as the factor asks."""
    final_lanczos: float = 0.0
    """Share of final resizes by Lanczos; the other three get a third of the rest each."""
    jpeg2: JpegSpec = JpegSpec()
    webp: WebpSpec = WebpSpec()

    def __post_init__(self) -> None:
        _share(self, "second_order", "final_sinc", "final_antialias", "final_lanczos")
        for field in fields(self):
            default, value = field.default, getattr(self, field.name)
            if not isinstance(default, float) and not isinstance(value, type(default)):
                raise _wrong(self, field.name, f"a {type(default).__name__}")


PRESETS: dict[str, DegradationSpec] = {
    "mild": DegradationSpec(
        blur1=BlurSpec(sigma=(0.2, 1.5), beta_generalised=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
        resize1=ResizeSpec(factor=(0.3, 1.5)),
        noise1=NoiseSpec(sigma=(1.0, 15.0), poisson=(0.05, 2.0)),
        jpeg1=JpegSpec(quality=(60.0, 95.0)),
        blur2=BlurSpec(
            probability=0.5,
            sigma=(0.2, 1.0),
            beta_generalised=(0.5, 2.0),
            beta_plateau=(1.0, 1.5),
        ),
        resize2=ResizeSpec(shares=(0.3, 0.4, 0.3), factor=(0.6, 1.2)),
        noise2=NoiseSpec(sigma=(1.0, 12.0), poisson=(0.05, 1.0)),
        jpeg2=JpegSpec(quality=(60.0, 100.0)),
    ),
    "strong": DegradationSpec(),
    # what most people hand in: a photo of a good camera made small, perhaps saved
    # as JPEG or WebP once
    "near-clean": DegradationSpec(
        blur1=BlurSpec(probability=0.5, sinc=0.0, sigma=(0.2, 0.8), beta_generalised=(0.5, 2.0)),
        resize1=ResizeSpec(shares=(0.0, 0.5, 0.5), factor=(0.3, 1.0), antialias=1.0, lanczos=0.25),
        mosaic=MosaicSpec(probability=0.35),
        noise1=NoiseSpec(probability=0.4, sigma=(0.3, 3.0), poisson=(0.05, 0.4)),
        jpeg1=JpegSpec(probability=0.3, quality=(85.0, 100.0)),
        second_order=0.0,
        final_sinc=0.0,
        final_antialias=1.0,
        final_lanczos=0.25,
        jpeg2=JpegSpec(probability=0.5, quality=(75.0, 100.0)),
        webp=WebpSpec(probability=0.2, quality=(75.0, 100.0)),
    ),
}

MIXTURES: dict[str, dict[str, float]] = {
    "mixture": {"mild": 0.45, "strong": 0.40, "near-clean": 0.15},
}
"""Named weights of presets."""

Preset = str | DegradationSpec | Mapping[str, float]
"""A preset's or mixture's name, a spec of one's own, or weights `{preset: weight}`."""


def resolve(preset: Preset) -> tuple[tuple[DegradationSpec, ...], tuple[float, ...]]:
    """The specs that `preset` stands for, and their shares, which sum to one.

    Raises:
        ConfigError: an unknown name, no weight above zero, or a negative one.
    """
    if isinstance(preset, DegradationSpec):
        return (preset,), (1.0,)
    if isinstance(preset, str):
        if preset in PRESETS:
            return (PRESETS[preset],), (1.0,)
        if preset not in MIXTURES:
            raise _unknown(preset)
        preset = MIXTURES[preset]
    for name, weight in preset.items():
        if name not in PRESETS:
            raise _unknown(name)
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight of preset {name!r} is {weight!r}; give a number from 0")
    total = sum(preset.values())
    if total <= 0:
        raise ConfigError(f"preset = {dict(preset)!r} has no weight above 0; give at least one")
    used = {name: weight for name, weight in preset.items() if weight > 0}
    return tuple(PRESETS[name] for name in used), tuple(w / total for w in used.values())


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"preset {name!r} is not known; use one of {', '.join([*PRESETS, *MIXTURES])}, "
        "weights of presets or a DegradationSpec"
    )
