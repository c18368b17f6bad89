"""How strongly the low-resolution picture steers a StableSR U-Net, timestep by timestep.

Figure 3 of arXiv 2305.07015: the cosine similarity of the U-Net's features before and after each
modulation layer, over the timesteps. The lower it is, the more the layer changes. The paper finds
the strongest change at a signal-to-noise ratio of about 5e-2 (timestep 770).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from addsr.diffusion.ddpm import (
    TRAINED_STEPS,
    Schedule,
    ddpm_step,
    even_timesteps,
    fresh_noises,
)
from addsr.errors import InputError, ModelError, OptionError
from addsr.nets.stablesr.sft import module_name
from addsr.pipelines import StableSRPipeline
from addsr.pipelines.canvas import make_canvas
from addsr.plan import check_scale, target_size

Way = Literal["noised", "sampled"]
"""noised: a clean latent with noise for each timestep; sampled: what sampling itself passes by."""
Figures = dict[str, float]


@dataclass(frozen=True)
class Wish:
    """What to look at."""

    timesteps: tuple[int, ...] = tuple(even_timesteps(25))
    """Each once, 0..999; in `sampled` they are the sampler's own."""
    way: Way = "noised"
    seeds: tuple[int, ...] = (0,)
    upscale: float = 4.0
    encoder_timestep: int | None = None
    """What the encoder is told in place of the timestep: the control for its knowing the time."""

    def __post_init__(self) -> None:
        if self.way not in ("noised", "sampled"):
            raise OptionError(f"way: {self.way!r} is unknown; use noised or sampled")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise OptionError(
                f"seeds: {list(self.seeds)} must be different numbers, one at least; give each once"
            )
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise OptionError(f"seeds: {list(self.seeds)} must be numbers from 0 to 2**63 - 1")
        told = self.encoder_timestep
        if told is not None and not 0 <= told < TRAINED_STEPS:
            raise OptionError(
                f"encoder_timestep: {told} is not 0 to {TRAINED_STEPS - 1}; give one of these"
            )
        Schedule.of(self.timesteps)  # it names what is wrong with them
        check_scale(self.upscale)


def inspect_guidance(
    pipe: StableSRPipeline,
    pictures: Sequence[Tensor],
    wish: Wish | None = None,
    *,
    references: Sequence[Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Figures of every modulation layer and grid at every timestep, as plain values.

    Each is a mean over pictures, seeds, channels and positions:

    * `cosine`: of a layer's input h and output, over the positions of each channel, as in Figure 3;
    * `cosine_normalised`: of GN(h) and the output. The published layer begins with a group
      normalisation, which moves the first figure by itself; this one sees the modulation alone;
    * `gamma`, `beta`: root mean square of scale and shift;
    * `condition_cosine`: of the encoder's features and those at the largest timestep: 1 everywhere
      would be an encoder that does not look at the time;
    * `condition_sharpness`: mean absolute step between neighbours in the encoder's features, over
      their deviation.

    Of a picture that is larger than a tile when enlarged, the tile in its middle is taken.

    Args:
        pictures: inputs, each `(1, 3, h, w)` in [0, 1].
        references: the true pictures `(1, 3, h * upscale, w * upscale)` for `way` "noised"; without
            them noise is added to the enlarged inputs themselves (a reconstruction).
        progress: called with (done, total) in runs of the U-Net.

    Raises:
        InputError: no pictures, or references that do not fit them.
        OptionError: references together with `way` "sampled".
        ModelError: the networks gave numbers that are none.
    """
    wish = wish or Wish()
    if not pictures:
        raise InputError("pictures: none are given; give one at least")
    if references is not None and wish.way == "sampled":
        raise OptionError("references: sampling looks at none; leave them out, or use noised")
    if references is not None and len(references) != len(pictures):
        raise InputError(f"references: {len(references)} for {len(pictures)} pictures")
    schedule = Schedule.of(wish.timesteps)
    runs: list[list[_Moment]] = []
    total = len(pictures) * len(wish.seeds) * len(schedule)
    with torch.no_grad(), _listening(pipe) as heard:
        for k, picture in enumerate(pictures):
            z_lr = _latent(pipe, picture, picture, wish)
            z_0 = z_lr if references is None else _latent(pipe, references[k], picture, wish)
            for seed in wish.seeds:
                moments: list[_Moment] = []
                for moment in _walk(pipe, z_lr, z_0, schedule, wish, seed, heard):
                    moments.append(moment)
                    if progress is not None:
                        progress(len(runs) * len(schedule) + len(moments), total)
                runs.append(moments)
    return _report(pipe, schedule, wish, runs)


@dataclass(frozen=True)
class _Moment:
    """Figures of one run of the U-Net."""

    layers: dict[str, Figures]
    conditions: list[Figures]


def _walk(
    pipe: StableSRPipeline,
    z_lr: Tensor,
    z_0: Tensor,
    schedule: Schedule,
    wish: Wish,
    seed: int,
    heard: dict[str, Figures],
) -> Generator[_Moment]:
    """From the largest timestep down."""
    context = pipe.prompt_embeds.to(pipe.device, pipe.dtype)
    noises = fresh_noises(z_lr, torch.Generator().manual_seed(seed))
    last = len(schedule) - 1
    noise = next(noises)
    z = schedule.add_noise(z_lr, noise, last)
    first: tuple[Tensor, ...] = ()
    for index in reversed(range(len(schedule))):
        if wish.way == "noised":  # the same noise throughout: what changes is the timestep
            z = schedule.add_noise(z_0, noise, index)
        timestep = schedule.timesteps[index]
        told = timestep if wish.encoder_timestep is None else wish.encoder_timestep
        features = pipe.encoder(z_lr.to(pipe.dtype), torch.tensor([told], device=pipe.device))
        first = first or features
        heard.clear()
        with pipe.guided.guide.using(features):
            unet = cast("Any", pipe.unet)
            t = torch.tensor([timestep], device=pipe.device)
            output = unet(z.to(pipe.dtype), t, encoder_hidden_states=context).sample.float()
        if not bool(output.isfinite().all()):
            raise ModelError(
                f"unet: in {pipe.dtype} it gave NaN or infinity at timestep {timestep}; use "
                "another dtype"
            )
        yield _Moment(dict(heard), [_condition(a, b) for a, b in zip(features, first, strict=True)])
        if wish.way == "sampled":
            z = ddpm_step(schedule, z, output, next(noises), index, pipe.config.prediction)


def _latent(pipe: StableSRPipeline, rgb: Tensor, picture: Tensor, wish: Wish) -> Tensor:
    """The scaled latent `(1, 4, h, w)` of the middle of `rgb`, enlarged as `picture` would be."""
    size = int(picture.shape[-2]), int(picture.shape[-1])
    target = target_size(size, wish.upscale)
    if rgb is not picture and tuple(rgb.shape[-2:]) != target:
        raise InputError(
            f"references: {rgb.shape[-1]}x{rgb.shape[-2]} is not the size of the result, "
            f"{target[1]}x{target[0]}; give the true picture at that size"
        )
    vae = cast("Any", pipe.vae)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unet = cast("Any", pipe.unet)
    multiple = math.lcm(
        pipe.encoder.config.multiple, 2 ** (len(unet.config.block_out_channels) - 1)
    )
    tile = pipe.config.tile
    x = make_canvas(size, wish.upscale, tile, factor, multiple).fill(rgb)
    for dim in (-2, -1):
        side = min(x.shape[dim], tile)
        x = x.narrow(dim, (x.shape[dim] - side) // 2, side)
    moments = vae.encode(x.to(pipe.device, pipe.dtype)).latent_dist
    z: Tensor = moments.mode().float() * float(vae.config.scaling_factor)
    if not bool(z.isfinite().all()):
        raise ModelError(f"vae: in {pipe.dtype} it gave NaN or infinity; use another dtype")
    return z


@contextmanager
def _listening(pipe: StableSRPipeline) -> Generator[dict[str, Figures]]:
    """Figures of each layer's latest run, by its residual block, while the context lasts."""
    heard: dict[str, Figures] = {}
    handles: list[RemovableHandle] = []

    def listen(place: str) -> Callable[[Any, tuple[Tensor, Tensor], Tensor], None]:
        def hook(layer: Any, given: tuple[Tensor, Tensor], output: Tensor) -> None:
            heard[place] = _modulation(layer, given[0], given[1], output)

        return hook

    try:
        for place in pipe.sft.config.places:
            layer = pipe.sft[module_name(place)]
            handles.append(layer.register_forward_hook(listen(place)))
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _modulation(layer: Any, h: Tensor, features: Tensor, output: Tensor) -> Figures:
    """Figures of one layer; gamma and beta are computed once more, for it keeps neither."""
    shared = F.relu(layer.shared(features))
    return {
        "cosine": _cosine(h, output),
        "cosine_normalised": _cosine(layer.norm(h), output),
        "gamma": _rms(layer.gamma(shared)),
        "beta": _rms(layer.beta(shared)),
    }


def _condition(features: Tensor, first: Tensor) -> Figures:
    """Figures of the encoder's features of one grid."""
    x = features.float()
    deviation = (x - x.mean(dim=(-2, -1), keepdim=True)).square().mean().sqrt()
    steps = [x.diff(dim=dim).abs().mean() for dim in (-2, -1) if x.shape[dim] > 1]
    mean = torch.stack(steps).mean() if steps else torch.zeros(())
    return {
        "condition_cosine": _cosine(features, first),
        "condition_sharpness": float(mean / deviation.clamp(min=1e-12)),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    """Over the positions of each channel, then the mean of the channels."""
    flat = a.float().flatten(2), b.float().flatten(2)  # (B, C, H*W)
    return float(F.cosine_similarity(*flat, dim=-1, eps=1e-6).mean())


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _report(
    pipe: StableSRPipeline, schedule: Schedule, wish: Wish, runs: list[list[_Moment]]
) -> dict[str, Any]:
    places = pipe.sft.config.places
    grids = [
        [place for place, (_, of) in places.items() if of == level]
        for level in range(len(pipe.encoder.config.widths))
    ]
    snr = (schedule.alpha_bar / (1 - schedule.alpha_bar)).tolist()
    rows: list[dict[str, Any]] = []
    for step, index in enumerate(reversed(range(len(schedule)))):
        moments = [run[step] for run in runs]
        layers = {place: _mean([m.layers[place] for m in moments]) for place in places}
        rows.append(
            {
                "timestep": schedule.timesteps[index],
                "snr": snr[index],
                "layers": layers,
                "grids": [
                    _mean([layers[place] for place in grid])
                    | _mean([m.conditions[level] for m in moments])
                    for level, grid in enumerate(grids)
                ],
            }
        )
    return {
        "way": wish.way,
        "seeds": list(wish.seeds),
        "upscale": wish.upscale,
        "encoder_timestep": wish.encoder_timestep,
        "runs": len(runs),
        "grids": [
            {"downsampling": 2**level, "layers": grid, "strongest": _strongest(rows, level)}
            for level, grid in enumerate(grids)
        ],
        "timesteps": rows,
    }


def _strongest(rows: Sequence[dict[str, Any]], level: int) -> dict[str, Any]:
    """Where the modulation changes the features of a grid most, by both cosines."""
    found: dict[str, Any] = {}
    for name in ("cosine", "cosine_normalised"):
        values: list[float] = [row["grids"][level][name] for row in rows]
        row = rows[values.index(min(values))]
        found[name] = {"timestep": row["timestep"], "snr": row["snr"], "value": min(values)}
    return found


def _mean(all_figures: Sequence[Figures]) -> Figures:
    return {
        name: math.fsum(figures[name] for figures in all_figures) / len(all_figures)
        for name in all_figures[0]
    }


def parse_timesteps(text: str) -> tuple[int, ...]:
    """Timesteps from a number of them, evenly spread, or from a list with commas.

    >>> parse_timesteps("4"), parse_timesteps("770, 10")
    ((0, 333, 666, 999), (10, 770))

    Raises:
        OptionError: neither.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise OptionError(
            f"timesteps: {text!r} is neither a number of timesteps nor a list such as 0,500,999"
        )
    if len(parts) == 1:
        if not 1 <= int(parts[0]) <= TRAINED_STEPS:
            raise OptionError(
                f"timesteps: {text} of them are not possible; give 1 to {TRAINED_STEPS}, or a list "
                "such as 0,500,999"
            )
        return Schedule.respaced(int(parts[0])).timesteps
    return Schedule.of(int(part) for part in parts).timesteps
