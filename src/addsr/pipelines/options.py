"""The options of one call of the pipeline, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from addsr.diffusion.aggregate import TileSpec
from addsr.errors import OptionError
from addsr.image.color import ColorFix
from addsr.plan import check_scale

from .config import PipelineConfig, check_one_of, check_share, check_whole

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Options:
    """The options of one call, checked."""

    steps: int
    fidelity: float
    upscale: float
    spec: TileSpec
    tile: int
    """Side of the sampler's tiles, in pixels of the result."""
    strip_pixels: int | None
    """Pixels beyond which the VAE works in strips of about that many; None: never."""
    color: ColorFix
    from_noise: bool
    is_sampled: bool
    context: Tensor
    negative: Tensor | None
    guidance: float
    output: OutputType


@dataclass(frozen=True)
class Parts:
    """What the checks need to know of a pipeline."""

    config: PipelineConfig
    prompt_embeds: Tensor
    has_cfw: bool
    factor: int
    """Picture pixels per latent pixel."""
    multiple: int
    """Sides of a tile are multiples of this many latent pixels."""

    def check_tile(self, tile: int | None) -> int:
        """`tile`, or the model's own for None.

        Raises:
            OptionError: it does not fit the networks' grid.
        """
        grid = self.factor * self.multiple
        tile = self.config.tile if tile is None else tile
        check_whole("tile", tile, 1)
        if tile % grid:
            below = max(tile // grid, 1) * grid
            raise OptionError(
                f"tile: {tile} px is no multiple of {grid}; give {below} or {below + grid}"
            )
        return tile

    def check_overlap(self, overlap: int | None, tile: int) -> int:
        """`overlap`, or half a tile for None."""
        overlap = tile // 2 if overlap is None else overlap
        check_whole("tile_overlap", overlap, 0)
        if overlap >= tile or overlap % self.factor:
            raise OptionError(
                f"tile_overlap: {overlap} px must be below tile ({tile}) and a multiple of "
                f"{self.factor}"
            )
        return overlap

    def check_fidelity(self, fidelity: float | None) -> float:
        """`fidelity`, or the model's own for None."""
        if fidelity is None:
            fidelity = self.config.fidelity if self.has_cfw else 0.0
        check_share("fidelity", fidelity)
        if fidelity and not self.has_cfw:
            raise OptionError(
                f"fidelity: {fidelity:g} needs the feature wrapping (cfw), which this pipeline "
                "lacks; use 0, or load the model with its cfw"
            )
        return fidelity


def check_options(
    parts: Parts,
    *,
    steps: int | None,
    fidelity: float | None,
    upscale: float,
    tile: int | None,
    overlap: int | None,
    batch: int,
    vae_tile: int | None,
    color: ColorFix,
    start: str,
    is_sampled: bool,
    prompt: Tensor | None,
    negative: Tensor | None,
    guidance: float,
    output: OutputType,
) -> Options:
    """The options of a call as the stages take them.

    Raises:
        OptionError: a value outside what it allows.
    """
    steps = parts.config.steps if steps is None else steps
    check_whole("num_inference_steps", steps, 1)
    fidelity = parts.check_fidelity(fidelity)
    tile = parts.check_tile(tile)
    overlap = parts.check_overlap(overlap, tile)
    check_whole("tile_batch", batch, 1)
    if vae_tile is not None:
        check_whole("vae_tile", vae_tile, 1)
    check_one_of("color_fix", color, ("adain", "wavelet", "none"))
    check_one_of("start", start, ("image", "noise"))
    check_one_of("output_type", output, ("pil", "np", "pt", "latent"))
    wanted = parts.prompt_embeds.shape
    context = parts.prompt_embeds if prompt is None else prompt
    for name, embeds in (("prompt_embeds", context), ("negative_prompt_embeds", negative)):
        if embeds is not None and embeds.shape != wanted:
            raise OptionError(
                f"{name}: shape {tuple(embeds.shape)} does not fit; give {tuple(wanted)}"
            )
    if guidance != 1.0 and negative is None:
        raise OptionError(
            f"guidance_scale: {guidance:g} has no effect alone; give negative_prompt_embeds "
            "too, or leave it at 1"
        )
    spec = TileSpec(tile // parts.factor, overlap // parts.factor, batch)
    return Options(
        steps, fidelity, check_scale(upscale), spec, tile,
        None if vae_tile is None else vae_tile**2, color, start == "noise", is_sampled,
        context, negative, guidance, output,
    )  # fmt: skip
