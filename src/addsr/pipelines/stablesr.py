"""StableSR as a pipeline in diffusers' manner: a picture in, the restored larger picture out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from addsr.errors import ModelError, OptionError
from addsr.image.alpha import fill_transparent
from addsr.image.color import ColorFix
from addsr.image.encoding import Encoding
from addsr.image.kinds import Picture
from addsr.nets.stablesr import FeatureWrapping, GuidedUnet, SftLayers, TimeAwareEncoder

from .canvas import make_canvas
from .config import PipelineConfig
from .latent import LatentPipeline, Progress, StepEnd
from .options import Options, OutputType, Parts, check_options
from .results import PipelineOutput, Seeds, accept_all, finish, join, share_out
from .stages import Stages, StepEnded
from .walk import check_scheduler, make_walk

__all__ = ["PipelineConfig", "PipelineOutput", "StableSRPipeline"]

_T = TypeVar("_T", bound="StableSRPipeline")


class StableSRPipeline(LatentPipeline[Stages]):
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
            OptionError: a scheduler or a tile that does not fit.
        """
        nets: dict[str, Any] = {"unet": unet, "vae": vae}
        shape, vae_shape = nets["unet"].config, nets["vae"].config
        channels = int(vae_shape["latent_channels"])
        if not channels == int(shape["in_channels"]) == encoder.config.latent_channels:
            raise ModelError(f"vae: its latents have {channels} channels, the U-Net's do not")
        super().__init__(
            Stages(unet, encoder, sft, vae, cfw),
            prompt_embeds,
            int(shape["cross_attention_dim"]),
            config or PipelineConfig(),
        )
        self.scheduler = check_scheduler(scheduler, self.config.prediction)
        self._multiple = math.lcm(
            encoder.config.multiple, 2 ** (len(shape["block_out_channels"]) - 1)
        )
        self.parts.check_tile(None)

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
            OptionError: `scheduler` does not fit.
            DependencyError: diffusers is not installed.
        """
        from .folder import find_folder, load_parts
        from .origin import read_origin

        folder = find_folder(path_or_id, revision, local_files_only, variant)
        parts = load_parts(folder, torch_dtype, variant, scheduler)
        if scheduler is not None:
            check_scheduler(scheduler, parts["config"].prediction)
        try:
            pipe = cls(**parts)
        except (OptionError, TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder}: its parts do not fit each other ({error}); fetch the model again"
            ) from error
        pipe.origin = read_origin(folder)
        return pipe

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, safe_serialization: bool = True
    ) -> None:
        """Writes all parts to `folder`, as safetensors; the U-Net and VAE as diffusers has them.

        The licence and sources of an imported model that it was loaded from go with them.

        Raises:
            OutputError: the folder cannot be written.
            OptionError: `safe_serialization` is not wanted.
        """
        from .folder import save_parts
        from .origin import keeping_origin

        if not safe_serialization:
            raise OptionError(
                "safe_serialization: False would write pickles, which addsr neither writes nor "
                "reads; leave it at True"
            )
        with keeping_origin(self, Path(folder), variant):
            save_parts(self, Path(folder), variant)

    @property
    def guided(self) -> GuidedUnet:
        """U-Net, encoder and modulation layers as one network."""
        return self._stages.guided

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
    def vae(self) -> nn.Module:
        return self._stages.vae

    @property
    def cfw(self) -> FeatureWrapping | None:
        return self._stages.cfw

    @property
    def parts(self) -> Parts:
        """What options are checked against."""
        has_cfw = self.cfw is not None
        return Parts(self.config, self.prompt_embeds, has_cfw, self._stages.factor, self._multiple)

    @property
    def components(self) -> dict[str, Any]:
        """The arguments that make this pipeline."""
        return {
            **self.networks,
            "cfw": self.cfw,
            "prompt_embeds": self.prompt_embeds,
            "scheduler": self.scheduler,
            "config": self.config,
        }

    def set_scheduler(self, scheduler: Any) -> None:
        """Samples with `scheduler` from now on; "ddpm", "ddim", or one of diffusers.

        Raises:
            OptionError: a scheduler that does not fit.
        """
        self.scheduler = check_scheduler(scheduler, self.config.prediction)

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
        progress: Progress | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
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
            tile_batch: tiles that go through the network together, fewer once memory runs out; it
                does not change the result.
            vae_tile: above this many pixels squared the VAE works in strips of that area, which
                does not change the result either. None: not before memory runs out; after
                `compile` that can be quicker.
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
            MemoryLimitError: one tile or the narrowest strip does not fit.
        """
        options = check_options(
            self.parts,
            steps=num_inference_steps,
            fidelity=fidelity,
            upscale=upscale,
            tile=tile,
            overlap=tile_overlap,
            batch=tile_batch,
            vae_tile=vae_tile,
            color=color_fix,
            start=start,
            is_sampled=sample_posterior,
            prompt=prompt_embeds,
            negative=negative_prompt_embeds,
            guidance=guidance_scale,
            output=output_type,
        )
        pictures = accept_all(image)
        seeds = share_out(generator, len(pictures))
        results: list[Any] = []
        ended = self._listener(
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            progress,
            results,
            len(pictures),
        )
        for (picture, encoding), seed in zip(pictures, seeds, strict=True):
            results.append(self._restore(picture, encoding, options, seed, ended))
        images = join(results, options.output)
        return PipelineOutput(images) if return_dict else (images,)

    def _restore(
        self,
        picture: Picture,
        encoding: Encoding,
        options: Options,
        generator: torch.Generator | None,
        ended: StepEnded,
    ) -> Any:
        """One picture's result."""
        stages = self._stages
        canvas = make_canvas(
            picture.size, options.upscale, options.tile, stages.factor, self._multiple,
            self.config.tile,
        )  # fmt: skip
        rgb = picture.rgb
        if picture.alpha is not None:
            rgb = fill_transparent(rgb, picture.alpha)
        walk = make_walk(
            self.scheduler, options.steps, self.config.prediction, generator, self.config.spacing
        )
        has_taps = options.fidelity > 0 and options.output != "latent"
        # the canvas is (1, 3, H, W) in [-1, 1], on the CPU
        z_lr, taps = stages.encode(canvas.fill(rgb), options, generator, has_taps)
        z = stages.sample(z_lr, walk, options, generator, ended)
        if options.output == "latent":
            stages.settle()
            return z.cpu()
        restored = canvas.empty(stages.decode(z, taps, options))
        stages.settle()
        return finish(restored, rgb, picture, encoding, canvas, options)
