"""StableSR as a pipeline in diffusers' manner: a picture in, the restored larger picture out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from addsr.diffusion.aggregate import TileSpec, aggregate
from addsr.diffusion.ddpm import Prediction
from addsr.errors import DependencyError, InputError, ModelError, OptionError
from addsr.image.alpha import enlarge_alpha, fill_transparent
from addsr.image.color import ColorFix, match_color
from addsr.image.kinds import Picture, PilSink, accept
from addsr.image.resize import resize
from addsr.nets.stablesr import (
    FeatureWrapping,
    GuidedUnet,
    SftLayers,
    TimeAwareEncoder,
    WrappedVae,
)
from addsr.nets.stablesr.cfw import Taps
from addsr.nets.stablesr.strips import StripVae
from addsr.plan import check_scale

from .canvas import Canvas, make_canvas
from .walk import check_scheduler, draw, make_walk

OutputType = Literal["pil", "np", "pt", "latent"]
StepEnd = Callable[[Any, int, float, dict[str, Any]], "dict[str, Any] | None"]
"""`callback(pipeline, step, timestep, tensors)` may give `{"latents": ...}` to go on with."""
Seeds = torch.Generator | Sequence[torch.Generator] | None

CALLBACK_TENSORS = ("latents", "image_latents", "model_output")

_T = TypeVar("_T", bound="StableSRPipeline")


@dataclass(frozen=True)
class PipelineConfig:
    """Facts about the weights."""

    prediction: Prediction = "eps"
    """What the U-Net says; v for the model of 768 px."""
    tile: int = 512
    """Side of the pictures it was trained with."""
    steps: int = 200
    fidelity: float = 0.5

    def __post_init__(self) -> None:
        if self.prediction not in ("eps", "v"):
            raise OptionError(f"prediction: {self.prediction!r} is unknown; use eps or v")
        for name in ("tile", "steps"):
            _whole(name, getattr(self, name), 1)
        _share("fidelity", self.fidelity)


@dataclass(frozen=True)
class StableSROutput:
    """What a call gives."""

    images: Any
    """PIL images in a list; `(N, H, W, 3)` or `(N, 3, H, W)` in [0, 1], or latents `(N, 4, h, w)`.

    A list of such for pictures of different sizes.
    """


@dataclass(frozen=True)
class _Wish:
    """The options of one call, checked."""

    steps: int
    fidelity: float
    upscale: float
    spec: TileSpec
    tile: int
    strip_pixels: int | None
    color: ColorFix
    from_noise: bool
    is_sampled: bool
    context: Tensor
    negative: Tensor | None
    guidance: float
    output: OutputType


class StableSRPipeline:
    """StableSR (arXiv 2305.07015): a frozen Stable Diffusion that follows a small picture.

    Needs no text encoder: the embedding of the empty prompt is one of its parts. Latents are
    float32 between steps; the networks work in their own dtype.
    """

    def __init__(
        self,
        unet: nn.Module,
        encoder: TimeAwareEncoder,
        sft: SftLayers,
        vae: nn.Module,
        prompt_embeds: Tensor,
        cfw: FeatureWrapping | None = None,
        scheduler: Any = "ddpm",
        config: PipelineConfig | None = None,
    ) -> None:
        """Puts the parts together; the pipeline holds them from now on.

        Args:
            prompt_embeds: of the empty prompt, `(1, tokens, width)`.
            cfw: without it only fidelity 0 is possible.
            scheduler: "ddpm", "ddim" (eta 0), or a scheduler of diffusers.

        Raises:
            ModelError: parts that do not fit each other.
            OptionError: a scheduler that does not fit.
        """
        self.config = config or PipelineConfig()
        width = int(_config(unet)["cross_attention_dim"])
        if prompt_embeds.ndim != 3 or len(prompt_embeds) != 1 or prompt_embeds.shape[2] != width:
            raise ModelError(
                f"prompt_embeds: {tuple(prompt_embeds.shape)} does not fit this U-Net; give the "
                f"empty prompt's embedding (1, tokens, {width})"
            )
        channels = int(_config(vae)["latent_channels"])
        if not channels == int(_config(unet)["in_channels"]) == encoder.config.latent_channels:
            raise ModelError(f"vae: its latents have {channels} channels, the U-Net's do not")
        self.vae, self.cfw = vae, cfw
        self.prompt_embeds = prompt_embeds.detach()
        self._wrapped = WrappedVae(vae, cfw) if cfw is not None else None
        self.guided = GuidedUnet(unet, encoder, sft)
        self.scheduler = check_scheduler(scheduler, self.config.prediction)
        self._scaling = float(_config(vae)["scaling_factor"])
        self._factor = 2 ** (len(_config(vae)["block_out_channels"]) - 1)
        self._multiple = math.lcm(
            encoder.config.multiple, 2 ** (len(_config(unet)["block_out_channels"]) - 1)
        )
        self._device = next(vae.parameters()).device
        self._is_offloading = False
        for net in self._nets().values():
            net.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls: type[_T],
        path_or_id: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        scheduler: Any = None,
    ) -> _T:
        """The pipeline in a folder written by `save_pretrained`, or in such a repository.

        Args:
            torch_dtype: of the networks; that of the files if None.
            scheduler: in place of the one that was saved.

        Raises:
            ModelError: the folder or one of its files is missing, damaged or of another kind.
            DependencyError: diffusers is not installed.
        """
        from .folder import find_folder, load_parts

        folder = find_folder(path_or_id, revision, local_files_only)
        parts = load_parts(folder, torch_dtype, variant, scheduler)
        return cls(**parts)

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, safe_serialization: bool = True
    ) -> None:
        """Writes all parts to `folder`, as safetensors; the U-Net and VAE as diffusers has them.

        Raises:
            OutputError: the folder cannot be written.
            OptionError: `safe_serialization` is not wanted.
        """
        from .folder import save_parts

        if not safe_serialization:
            raise OptionError(
                "safe_serialization: False would write pickles, which addsr neither writes nor "
                "reads; leave it at True"
            )
        save_parts(self, Path(folder), variant)

    @property
    def unet(self) -> nn.Module:
        return self.guided.unet

    @property
    def encoder(self) -> TimeAwareEncoder:
        return self.guided.encoder

    @property
    def sft(self) -> SftLayers:
        return self.guided.layers

    @property
    def components(self) -> dict[str, Any]:
        """The arguments that make this pipeline."""
        return {
            **self._nets(),
            "cfw": self.cfw,
            "prompt_embeds": self.prompt_embeds,
            "scheduler": self.scheduler,
            "config": self.config,
        }

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.guided.unet.parameters()).dtype

    def set_scheduler(self, scheduler: Any) -> None:
        """Samples with `scheduler` from now on; "ddpm", "ddim", or one of diffusers.

        Raises:
            OptionError: a scheduler that does not fit.
        """
        self.scheduler = check_scheduler(scheduler, self.config.prediction)

    def to(self: _T, *where: str | torch.device | torch.dtype) -> _T:
        """Moves all networks to a device, a dtype, or both; ends CPU offload if it moves them."""
        for one in where:
            for net in self._nets().values():
                net.to(one)
            if not isinstance(one, torch.dtype):
                self._device, self._is_offloading = torch.device(one), False
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keeps networks in main memory, and on `device` only those that work.

        Raises:
            DependencyError: no device is given and this machine has none but the CPU.
        """
        if device is None:
            accelerator = torch.accelerator.current_accelerator()
            if accelerator is None or not torch.accelerator.is_available():
                raise DependencyError(
                    "device: this machine has no accelerator to offload from; leave out "
                    "enable_model_cpu_offload"
                )
            device = accelerator
        self.to("cpu")
        self._device, self._is_offloading = torch.device(device), True

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        *,
        generator: Seeds = None,
        fidelity: float | None = None,
        upscale: float = 4.0,
        tile: int | None = None,
        tile_overlap: int | None = None,
        tile_batch: int = 4,
        vae_tile: int | None = 1024,
        color_fix: ColorFix = "adain",
        start: Literal["image", "noise"] = "image",
        sample_posterior: bool = False,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        progress: Callable[[int, int], None] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> StableSROutput | tuple[Any]:
        """The restored picture, or pictures, `upscale` times larger.

        Pictures go one after the other, so that each may have its own size, and the tiles of one
        picture go together. Where `generator` is one for all, they draw from it in turn.

        Args:
            image: a path, PIL image, array `(H, W, C)`, tensor `(B, C, H, W)`, or a list of them.
            num_inference_steps: the model's own number if None.
            generator: one, or one per picture.
            fidelity: 0 (the plain decoder: invents more) to 1 (stays with the input).
            upscale: 1 to 8.
            tile: side of the sampler's tiles in pixels of the result; the model's own if None.
            tile_overlap: half a tile if None.
            tile_batch: tiles that go through the network together; it does not change the result.
            vae_tile: above this many pixels squared the VAE works in strips of that area, which
                does not change the result either; None: never.
            color_fix: "adain", "wavelet" or "none", on the whole picture.
            start: "image": from the enlarged input, noised; "noise": from noise alone, as in the
                paper's own protocol, which lets colours drift.
            sample_posterior: draw the input's latent, as in training, and not take its mean.
            callback_on_step_end: called for each step of each picture.
            progress: called with (done, total) in steps over all pictures.
            output_type: "pil" keeps grey and alpha of the input; "np" and "pt" are RGB in [0, 1].

        Raises:
            InputError: a picture that cannot be used.
            OptionError: a value outside what it allows.
            ModelError: the networks gave numbers that are none.
        """
        wish = self._check(
            num_inference_steps, fidelity, upscale, tile, tile_overlap, tile_batch, vae_tile,
            color_fix, start, sample_posterior, prompt_embeds, negative_prompt_embeds,
            guidance_scale, output_type,
        )  # fmt: skip
        strange = [k for k in callback_on_step_end_tensor_inputs if k not in CALLBACK_TENSORS]
        if strange:
            raise OptionError(
                f"callback_on_step_end_tensor_inputs: {strange} are unknown; "
                f"use some of {', '.join(CALLBACK_TENSORS)}"
            )
        pictures = _accept_all(image)
        seeds = _seeds(generator, len(pictures))
        results: list[Any] = []

        def ended(k: int, steps: int, t: float, tensors: dict[str, Tensor]) -> Tensor:
            # `steps` is the scheduler's word: some make more than they were asked for
            latents = tensors["latents"]
            if callback_on_step_end is not None:
                chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                latents = _replaced(latents, callback_on_step_end(self, k, t, chosen))
            if progress is not None:
                progress(len(results) * steps + k + 1, steps * len(pictures))
            return latents

        for (picture, profile), seed in zip(pictures, seeds, strict=True):
            results.append(self._restore(picture, profile, wish, seed, ended))
        images = _join(results, wish.output)
        return StableSROutput(images) if return_dict else (images,)

    def _restore(
        self,
        picture: Picture,
        profile: bytes | None,
        wish: _Wish,
        generator: torch.Generator | None,
        ended: Callable[[int, int, float, dict[str, Tensor]], Tensor],
    ) -> Any:
        """One picture's result."""
        canvas = make_canvas(picture.size, wish.upscale, wish.tile, self._factor, self._multiple)
        rgb = picture.rgb
        if picture.alpha is not None:
            rgb = fill_transparent(rgb, picture.alpha)
        given = canvas.fill(rgb)  # (1, 3, H, W) in [-1, 1], on the CPU
        has_taps = wish.fidelity > 0 and wish.output != "latent"
        with self._working("vae"):
            z_lr, taps = self._encode(given, wish, generator, has_taps)
        z = self._sample(z_lr, wish, generator, ended)
        if not bool(z.isfinite().all()):
            raise ModelError(
                f"latents: sampling in {self.dtype} gave NaN or infinity; use "
                "pipe.to(torch.bfloat16) or pipe.to(torch.float32)"
            )
        if wish.output == "latent":
            return z.cpu()
        with self._working("vae", "cfw"):
            restored = self._decode(z, taps, wish, canvas)
        return _finish(canvas.empty(restored), rgb, picture, profile, canvas, wish)

    def _encode(
        self, given: Tensor, wish: _Wish, generator: torch.Generator | None, has_taps: bool
    ) -> tuple[Tensor, Taps]:
        """The scaled latent of the input, float32, and the features for the decoder."""
        x = given.to(self._device, self.dtype)
        if _is_large(given.shape, wish):
            moments, taps = self._strips(wish).encode(x, has_taps=has_taps)
        elif self._wrapped is not None:
            moments, taps = self._wrapped.encode(x)
        else:
            vae: Any = self.vae
            moments, taps = vae.encode(x).latent_dist.parameters, ()
        mean, log_variance = moments.float().chunk(2, dim=1)
        if wish.is_sampled:
            noise = draw(tuple(mean.shape), generator).to(mean.device)
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        kept = taps if has_taps else ()
        if self._is_offloading:
            kept = tuple(tap.cpu() for tap in kept)
        return mean * self._scaling, kept

    def _sample(
        self,
        z_lr: Tensor,
        wish: _Wish,
        generator: torch.Generator | None,
        ended: Callable[[int, int, float, dict[str, Tensor]], Tensor],
    ) -> Tensor:
        """The restored latent, float32."""
        dtype, device = self.dtype, self._device
        context = wish.context.to(device, dtype)
        negative = None if wish.negative is None else wish.negative.to(device, dtype)

        def model(z_t: Tensor, t: Tensor, lr: Tensor) -> Tensor:
            return self.guided(z_t.to(dtype), t, lr.to(dtype), context, negative, wish.guidance)

        walk = make_walk(self.scheduler, wish.steps, self.config.prediction, generator)
        predict = aggregate(model, z_lr, wish.spec)
        noise = draw(tuple(z_lr.shape), generator).to(device)
        z = walk.start(z_lr, noise, from_noise=wish.from_noise).float()
        with self._working("unet", "encoder", "sft"):
            for k, timestep in enumerate(walk.timesteps):
                t = torch.tensor([timestep], device=device)
                output = predict(walk.model_input(z, k), t)
                z = walk.step(k, z, output).float()
                tensors = {"latents": z, "image_latents": z_lr, "model_output": output}
                z = ended(k, len(walk.timesteps), timestep, tensors)
        return z

    def _decode(self, z: Tensor, taps: Taps, wish: _Wish, canvas: Canvas) -> Tensor:
        """The restored canvas, float32 on the CPU, in about [-1, 1]."""
        latent = (z / self._scaling).to(self._device, self.dtype)
        if _is_large(canvas.padded, wish):
            x = self._strips(wish).decode(latent, taps, wish.fidelity)
        elif self._wrapped is not None:
            taps = tuple(tap.to(self._device) for tap in taps)
            x = self._wrapped.decode(latent, taps, wish.fidelity)
        else:
            vae: Any = self.vae
            x = vae.decode(latent).sample
        x = x.cpu().float()
        if not bool(x.isfinite().all()):
            raise ModelError(
                f"vae: decoding in {self.dtype} gave NaN or infinity; use "
                "pipe.to(torch.bfloat16) or pipe.to(torch.float32)"
            )
        return x

    def _strips(self, wish: _Wish) -> StripVae:
        assert wish.strip_pixels is not None
        return StripVae(self.vae, self.cfw, wish.strip_pixels)

    def _nets(self) -> dict[str, nn.Module]:
        nets = {"unet": self.unet, "encoder": self.encoder, "sft": self.sft, "vae": self.vae}
        return nets if self.cfw is None else {**nets, "cfw": self.cfw}

    @contextmanager
    def _working(self, *names: str) -> Generator[None]:
        """Has these networks on the device, and with offload no longer than this context."""
        nets = [net for name, net in self._nets().items() if name in names]
        try:
            if self._is_offloading:
                for net in nets:
                    net.to(self._device)
            yield
        finally:
            if self._is_offloading:
                for net in nets:
                    net.to("cpu")

    def _check(
        self,
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
    ) -> _Wish:
        steps = self.config.steps if steps is None else steps
        _whole("num_inference_steps", steps, 1)
        if fidelity is None:
            fidelity = self.config.fidelity if self.cfw is not None else 0.0
        _share("fidelity", fidelity)
        if fidelity and self.cfw is None:
            raise OptionError(
                f"fidelity: {fidelity:g} needs the feature wrapping (cfw), which this pipeline "
                "lacks; use 0, or load the model with its cfw"
            )
        grid = self._factor * self._multiple
        tile = self.config.tile if tile is None else tile
        _whole("tile", tile, 1)
        if tile % grid:
            below = max(tile // grid, 1) * grid
            raise OptionError(
                f"tile: {tile} px is no multiple of {grid}; give {below} or {below + grid}"
            )
        overlap = tile // 2 if overlap is None else overlap
        _whole("tile_overlap", overlap, 0)
        if overlap >= tile or overlap % self._factor:
            raise OptionError(
                f"tile_overlap: {overlap} px must be below tile ({tile}) and a multiple of "
                f"{self._factor}"
            )
        _whole("tile_batch", batch, 1)
        if vae_tile is not None:
            _whole("vae_tile", vae_tile, 1)
        _one_of("color_fix", color, ("adain", "wavelet", "none"))
        _one_of("start", start, ("image", "noise"))
        _one_of("output_type", output, ("pil", "np", "pt", "latent"))
        context = self.prompt_embeds if prompt is None else prompt
        for name, embeds in (("prompt_embeds", context), ("negative_prompt_embeds", negative)):
            if embeds is not None and embeds.shape != self.prompt_embeds.shape:
                raise OptionError(
                    f"{name}: shape {tuple(embeds.shape)} does not fit; give "
                    f"{tuple(self.prompt_embeds.shape)}"
                )
        if guidance != 1.0 and negative is None:
            raise OptionError(
                f"guidance_scale: {guidance:g} has no effect alone; give negative_prompt_embeds "
                "too, or leave it at 1"
            )
        spec = TileSpec(tile // self._factor, overlap // self._factor, batch)
        return _Wish(
            steps, fidelity, check_scale(upscale), spec, tile,
            None if vae_tile is None else vae_tile**2, color, start == "noise", is_sampled,
            context, negative, guidance, output,
        )  # fmt: skip


def _finish(
    restored: Tensor,
    rgb: Tensor,
    picture: Picture,
    profile: bytes | None,
    canvas: Canvas,
    wish: _Wish,
) -> Any:
    """The result of one picture from its restored pixels in [-1, 1]."""
    height, width = canvas.target
    if wish.color != "none":
        enlarged = resize(rgb, canvas.target).clamp(0, 1) * 2 - 1
        restored = match_color(restored, enlarged, wish.color)
    restored = ((restored + 1) / 2).clamp(0, 1)
    if wish.output == "pt":
        return restored
    if wish.output == "np":
        return restored.permute(0, 2, 3, 1).numpy()
    if picture.alpha is not None:
        alpha = enlarge_alpha(picture.alpha, canvas.target, 0, height)
        restored = torch.cat([restored, alpha], dim=1)
    sink = PilSink(picture.layout, height, width, profile)
    sink.write(restored)
    return sink.result()


def _accept_all(image: Any) -> list[tuple[Picture, bytes | None]]:
    """Every picture of what was handed in, with its colour profile."""
    given = list(image) if isinstance(image, (list, tuple)) else [image]
    if not given:
        raise InputError("image: an empty list; give at least one picture")
    found: list[tuple[Picture, bytes | None]] = []
    for one in given:
        source = accept(one)
        profile: Any = None
        if source.kind == "path":
            profile = source.original
        elif source.kind == "pil":
            profile = source.original.info.get("icc_profile")
        found += [(picture, profile) for picture in source.pictures]
    return found


def _seeds(generator: Seeds, count: int) -> list[torch.Generator | None]:
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if len(generator) != count:
        raise OptionError(
            f"generator: {len(generator)} given for {count} pictures; give one, or one for each"
        )
    return list(generator)


def _replaced(latents: Tensor, answer: dict[str, Any] | None) -> Tensor:
    """The latents a callback wants to go on with."""
    new: Tensor = (answer or {}).get("latents", latents)
    if new.shape != latents.shape:
        raise OptionError(
            f"callback_on_step_end: gave latents {tuple(new.shape)} for {tuple(latents.shape)}; "
            "keep the shape"
        )
    return new.to(latents)


def _join(results: list[Any], output: OutputType) -> Any:
    """The results as one array or tensor where their sizes allow it."""
    if output == "pil" or len({tuple(one.shape) for one in results}) > 1:
        return results
    return np.concatenate(results) if output == "np" else torch.cat(results)


def _is_large(shape: Sequence[int], wish: _Wish) -> bool:
    return wish.strip_pixels is not None and shape[-2] * shape[-1] > wish.strip_pixels


def _config(net: Any) -> Any:
    """The configuration of a network of diffusers."""
    return net.config


def _whole(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise OptionError(f"{name}: {value!r} is not possible; give a whole number from {least}")


def _share(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise OptionError(f"{name}: {value!r} is outside of 0 to 1; give a number in between")


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{name}: {value!r} is unknown; use one of {', '.join(known)}")
