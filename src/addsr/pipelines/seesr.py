"""SeeSR as a pipeline in diffusers' manner: a picture in, the restored one out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from addsr.diffusion.addsr import (
    SEESR_GUIDANCE,
    SEESR_STEPS,
    Cue,
)
from addsr.engines.device import send
from addsr.engines.memory import is_out_of_memory, release_memory
from addsr.errors import MemoryLimitError, ModelError, OptionError
from addsr.image.alpha import fill_transparent
from addsr.image.color import ColorFix
from addsr.image.encoding import Encoding
from addsr.image.kinds import Picture
from addsr.models.pipeline_files import TEXT_ENCODER
from addsr.nets.seesr import ControlledUnet
from addsr.nets.seesr.image_attention import IMAGE_WIDTH, WIDTH
from addsr.nets.tiny_decoder import TinyDecoder

from .canvas import make_canvas
from .compiled import CompileMode
from .config import PipelineConfig, check_one_of, check_whole
from .latent import LatentPipeline, Progress, StepEnd
from .options import Options, OutputType, Parts, check_options
from .prompts import (
    ADDED_PROMPT,
    IMAGE_TOKENS,
    NEGATIVE_PROMPT,
    Tagger,
    TextEncoder,
    join_words,
)
from .results import PipelineOutput, Seeds, accept_all, finish, in_batches, join, share_out
from .seesr_stages import Refinement, Seen, SeeSRStages
from .stages import StepEnded
from .tiny import PART
from .walk import NoiseSource

log = logging.getLogger(__name__)

RefineDecoder = Literal["full", "tiny"]

_T = TypeVar("_T", bound="SeeSRPipeline")


class SeeSRPipeline(LatentPipeline[SeeSRStages]):
    """SeeSR (arXiv 2311.16518): Stable Diffusion that follows a picture, its tags and its tokens.

    Tagger and text encoder are optional. Without a tagger the networks see a picture of no tags;
    without a text encoder, the empty prompt or embeddings that are handed in.
    """

    steps = SEESR_STEPS
    guidance = SEESR_GUIDANCE

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module,
        vae: nn.Module,
        prompt_embeds: Tensor,
        tagger: Tagger | None = None,
        text_encoder: TextEncoder | None = None,
        config: PipelineConfig | None = None,
        tiny_decoder: TinyDecoder | None = None,
    ) -> None:
        """Puts the parts together; the pipeline holds them from now on.

        Args:
            prompt_embeds: of the empty prompt, `(1, tokens, width)`.
            tiny_decoder: for AddSR's `refine_decoder="tiny"`.

        Raises:
            ModelError: parts that do not fit each other.
        """
        shape, other, vae_shape = _config(unet), _config(controlnet), _config(vae)
        for name in ("cross_attention_dim", "in_channels", "block_out_channels"):
            if shape[name] != other[name]:
                raise ModelError(
                    f"controlnet: its {name} {other[name]} is not the U-Net's {shape[name]}; they "
                    "do not belong together"
                )
        if int(vae_shape["latent_channels"]) != int(shape["in_channels"]):
            raise ModelError(
                f"vae: its latents have {vae_shape['latent_channels']} channels, the U-Net's "
                f"{shape['in_channels']}"
            )
        super().__init__(
            SeeSRStages(unet, controlnet, vae, tiny_decoder),
            prompt_embeds,
            int(shape["cross_attention_dim"]),
            config or PipelineConfig(steps=self.steps, fidelity=0.0),
        )
        encoder: Any = controlnet.controlnet_cond_embedding
        if encoder.factor != self._stages.factor:
            raise ModelError(
                f"controlnet: has {encoder.factor} pixels to a latent one, the VAE "
                f"{self._stages.factor}"
            )
        if tiny_decoder is not None and tiny_decoder.factor != self._stages.factor:
            raise ModelError(
                f"tiny_decoder: has {tiny_decoder.factor} pixels to a latent one, the VAE "
                f"{self._stages.factor}"
            )
        self.tagger, self.text_encoder = tagger, text_encoder
        self._multiple = 2 ** (len(shape["block_out_channels"]) - 1)
        self._image_width = int(shape.get(WIDTH) or IMAGE_WIDTH)
        self._has_warned = False

    @classmethod
    def from_pretrained(
        cls: type[_T],
        path_or_id: str | Path,
        *,
        tagger: Tagger | None = None,
        text_encoder: TextEncoder | None = None,
        tiny_decoder: TinyDecoder | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> _T:
        """The pipeline in a folder written by `save_pretrained`, or in such a repository.

        Args:
            text_encoder: in place of the folder's own, if it has one.
            tiny_decoder: likewise.

        Raises:
            ModelError: the folder or one of its files is missing, damaged or of another kind.
            DependencyError: diffusers is not installed.
        """
        from .folder import find_folder
        from .origin import read_origin
        from .seesr_folder import load_parts

        folder = find_folder(path_or_id, revision, local_files_only, variant)
        parts = load_parts(folder, torch_dtype, variant, cls.__name__)
        for name, given in ((PART, tiny_decoder), (TEXT_ENCODER, text_encoder)):
            if given is not None:
                parts[name] = given
        pipe = cls(**parts, tagger=tagger)
        pipe.origin = read_origin(folder)
        return pipe

    @classmethod
    def from_published(
        cls: type[_T],
        folder: str | Path,
        base: str | Path,
        *,
        tagger: Tagger | None = None,
        tiny_decoder: TinyDecoder | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> _T:
        """The pipeline of a published model, `unet` and `controlnet`, over a Stable Diffusion 2.

        Args:
            folder: holds `unet` and `controlnet` as SeeSR and AddSR are published.
            base: folder or repository with `vae`, `text_encoder` and `tokenizer`.

        Raises:
            ModelError: a file is missing, damaged or of another layout.
            DependencyError: diffusers or transformers is not installed.
        """
        from .folder import find_folder
        from .seesr_folder import assemble

        home = find_folder(base, None, local_files_only, parts=("vae",))
        parts = assemble(Path(folder), home, base, torch_dtype, variant, local_files_only)
        return cls(**parts, tagger=tagger, tiny_decoder=tiny_decoder)

    def save_pretrained(self, folder: str | Path, *, variant: str | None = None) -> None:
        """Writes the networks and the empty prompt to `folder`, as safetensors.

        U-Net and ControlNet are in the published layout, a `PromptEncoder` in Stable Diffusion's.
        The tagger has a folder of its own.

        Raises:
            OutputError: the folder cannot be written.
        """
        from .origin import keeping_origin
        from .seesr_folder import save_parts

        with keeping_origin(self, Path(folder), variant):
            save_parts(self, Path(folder), variant)

    @property
    def net(self) -> ControlledUnet:
        """U-Net and ControlNet as one network."""
        return self._stages.net

    @property
    def tiny_decoder(self) -> TinyDecoder | None:
        return self._stages.tiny

    @property
    def components(self) -> dict[str, Any]:
        """The arguments that make this pipeline."""
        return {
            **self.networks,
            "prompt_embeds": self.prompt_embeds,
            "tagger": self.tagger,
            "text_encoder": self.text_encoder,
            "config": self.config,
        }

    def compile(self, mode: CompileMode | None = "default") -> None:
        super().compile(mode)
        for part in (self.tagger, self.text_encoder):
            compile_part = getattr(part, "compile", None)  # one of the user's may have none
            if compile_part is not None:
                compile_part(mode)

    @property
    def parts(self) -> Parts:
        """What options are checked against."""
        return Parts(self.config, self.prompt_embeds, False, self._stages.factor, self._multiple)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        *,
        generator: Seeds = None,
        upscale: float = 4.0,
        prompt: str = "",
        added_prompt: str = ADDED_PROMPT,
        negative_prompt: str = NEGATIVE_PROMPT,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        image_tokens: Tensor | None = None,
        guidance_scale: float | None = None,
        control_scale: float = 1.0,
        psr_weight: float | None = None,
        refresh_tokens: bool = True,
        refine_decoder: RefineDecoder = "full",
        released_quirks: bool = False,
        tile: int | None = None,
        tile_overlap: int | None = None,
        tile_batch: int = 4,
        picture_batch: int = 1,
        vae_tile: int | None = 1024,
        color_fix: ColorFix = "adain",
        start: Literal["image", "noise"] = "image",
        sample_posterior: bool = False,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        progress: Progress | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> PipelineOutput | tuple[Any]:
        """The restored picture, or pictures, `upscale` times larger.

        Each picture has a prompt of its own tags.

        Args:
            image: a path, PIL image, array `(H, W, C)`, tensor `(B, C, H, W)`, or a list of them.
            num_inference_steps: AddSR's 1 to 4, and 4 if None; SeeSR's 50 if None.
            generator: one, or one per picture; all noise is drawn from it.
            prompt: words besides the tags; needs a text encoder, as tags do.
            added_prompt: words of quality at the end.
            prompt_embeds: in place of all words, `(1, tokens, width)`.
            image_tokens: in place of the tagger's, `(1, tokens, width)`.
            guidance_scale: SeeSR's 5.5 if None and there is a negative prompt to be led away from;
                AddSR was distilled without guidance and takes none.
            control_scale: factor of all that the ControlNet adds.
            psr_weight: AddSR's share of the prediction in what the next step looks at; 0.5 if None.
            refresh_tokens: whether the tagger looks at that too.
            refine_decoder: what shows AddSR its predictions between steps: "full" is the VAE,
                "tiny" the tiny decoder, quicker and coarser. The last decoding is the VAE's.
            released_quirks: AddSR as its released program runs: a `psr_weight` of 0.4, and a
                prompt that is too long loses its words of quality and not its last tags.
            tile: side of the sampler's tiles in pixels of the result; the model's own if None.
            tile_overlap: half a tile if None; the 32 px of the released program leave seams.
            tile_batch: tiles that go through the networks together; it does not change the result.
            picture_batch: pictures of one size, one behind the other, that go through everything
                together: less time for each and more memory. With a generator for each picture it
                does not change results either.
            vae_tile: above this many pixels squared the VAE works in strips, which does not
                change the result either. None: not before memory runs out; after `compile` that
                can be quicker.
            color_fix: "adain", "wavelet" or "none", on the whole picture.
            start: "image": from the enlarged input, noised; "noise": from noise alone.
            sample_posterior: draw the input's latent, as published, and not take its mean.
            callback_on_step_end: called for each step of each picture.
            progress: called with (done, total) in steps over all pictures.
            output_type: "pil" keeps grey and alpha of the input; "np" and "pt" are RGB in [0, 1].

        Raises:
            InputError: a picture that cannot be used.
            OptionError: a value outside what it allows.
            ModelError: the networks gave numbers that are none.
            MemoryLimitError: one tile or the narrowest strip does not fit.
        """
        negative = negative_prompt_embeds
        guidance = guidance_scale
        if guidance is None:
            guidance = self.guidance if self.config.guidance is None else self.config.guidance
        if guidance != 1.0 and negative is None and self.text_encoder is not None:
            negative = self.text_encoder(negative_prompt)
        if guidance_scale is None and negative is None:
            guidance = 1.0  # nothing to be led away from
        options = check_options(
            self.parts,
            steps=num_inference_steps,
            fidelity=0.0,
            upscale=upscale,
            tile=tile,
            overlap=tile_overlap,
            batch=tile_batch,
            vae_tile=vae_tile,
            color=color_fix,
            start=start,
            is_sampled=sample_posterior,
            prompt=prompt_embeds,
            negative=negative,
            guidance=guidance,
            output=output_type,
        )
        check_one_of("refine_decoder", refine_decoder, ("full", "tiny"))
        check_whole("picture_batch", picture_batch, 1)
        weight = self._check(options, psr_weight, released_quirks)
        self._check_decoder(refine_decoder)
        self._check_tokens(image_tokens)
        if not math.isfinite(control_scale) or control_scale < 0:
            raise OptionError(f"control_scale: {control_scale!r} is not possible; give 0 or more")
        if prompt and self.text_encoder is None:
            raise OptionError(
                "prompt: this pipeline has no text encoder; give one, or prompt_embeds"
            )
        pictures = accept_all(image)
        seeds = share_out(generator, len(pictures))
        results: list[Any] = []
        seen: list[list[str]] = []

        ended = self._listener(
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            progress,
            results,
            len(pictures),
        )
        embed = self.tagger.embed if self.tagger and refresh_tokens else None
        refined = Refinement(
            weight, embed if image_tokens is None else None, refine_decoder == "tiny"
        )

        def see(picture: Picture, encoding: Encoding, seed: torch.Generator | None) -> Seen:
            rgb = picture.rgb
            if picture.alpha is not None:
                rgb = fill_transparent(rgb, picture.alpha)
            tokens, tags = self._look(rgb, image_tokens)
            seen.append(tags)
            context = options.context
            if prompt_embeds is None and self.text_encoder is not None:
                context = self._embed(
                    join_words(
                        self.text_encoder, tags, prompt, added_prompt, is_cut=released_quirks
                    )
                )
            return Seen(picture, encoding, rgb, tokens, context, seed)

        for group in in_batches([picture.size for picture, _ in pictures], picture_batch):
            some = [see(*pictures[k], seeds[k]) for k in group]
            results += self._restore(some, options, control_scale, refined, ended)
        images = join(results, options.output)
        told = None if self.tagger is None else seen
        return PipelineOutput(images, told) if return_dict else (images,)

    def _check(self, options: Options, psr_weight: float | None, released_quirks: bool) -> float:
        """The weight of self-refinement, after what the two models allow each.

        Raises:
            OptionError: a value outside what it allows.
        """
        if psr_weight is not None or released_quirks:
            raise OptionError(
                "psr_weight: SeeSR does not refine itself; use AddSR, or leave it out"
            )
        return 0.0

    def _check_decoder(self, refine_decoder: RefineDecoder) -> None:
        """
        Raises:
            OptionError: there is nothing that the tiny decoder could show, or no such decoder.
        """
        if refine_decoder != "full":
            raise OptionError(
                "refine_decoder: SeeSR decodes nothing between steps; use AddSR, or leave it out"
            )

    def _embed(self, words: str) -> Tensor:
        """The prompt of one picture."""
        assert self.text_encoder is not None
        context = self.text_encoder(words)
        if context.shape != self.prompt_embeds.shape:
            raise ModelError(
                f"text_encoder: gave {tuple(context.shape)} for a prompt and not "
                f"{tuple(self.prompt_embeds.shape)}; use the one that the U-Net was trained with"
            )
        return context

    def _check_tokens(self, image_tokens: Tensor | None) -> None:
        if image_tokens is None:
            return
        shape = tuple(image_tokens.shape)
        if len(shape) != 3 or shape[0] != 1 or shape[2] != self._image_width:
            raise OptionError(
                f"image_tokens: shape {shape} does not fit; give (1, tokens, {self._image_width})"
            )

    def _look(self, rgb: Tensor, image_tokens: Tensor | None) -> tuple[Tensor, list[str]]:
        """Tokens and tags of the low-resolution picture."""
        if self.tagger is None:
            if image_tokens is None and not self._has_warned:
                self._has_warned = True
                log.warning(
                    "no prompt extractor: the networks see no tags and empty image tokens; import "
                    "RAM and DAPE with `addsr models import ram_swin_large_14m.pth DAPE.pth`"
                )
            none = torch.zeros(1, IMAGE_TOKENS, self._image_width)
            return none if image_tokens is None else image_tokens, []
        seen = self.tagger(rgb)
        tokens = seen.embeds if image_tokens is None else image_tokens
        return tokens, [tag.name for tag in seen.tags[0]]

    def _restore(
        self,
        some: Sequence[Seen],
        options: Options,
        control_scale: float,
        refined: Refinement,
        ended: StepEnded,
    ) -> list[Any]:
        """The results of pictures of one size; those that do not fit together go one by one."""
        before = [None if one.seed is None else one.seed.get_state() for one in some]
        try:
            return self._restore_at_once(some, options, control_scale, refined, ended)
        except MemoryLimitError as error:
            if len(some) == 1:
                raise
            log.warning("%d pictures do not fit together, one by one: %s", len(some), error)
            groups = [[one] for one in some]
        except (RuntimeError, MemoryError) as error:
            # between the networks, which see to their own memory
            if not is_out_of_memory(error):
                raise
            if self._stages.give_way():
                log.warning(
                    "pictures do not fit on %s beside the networks; once more, with pictures in "
                    "main memory", self.device,
                )  # fmt: skip
                groups = [list(some)]
            elif len(some) > 1:
                log.warning("%d pictures do not fit together, one by one", len(some))
                groups = [[one] for one in some]
            else:
                height, width = some[0].picture.size
                raise MemoryLimitError(
                    f"image: {width}x{height} made {options.upscale:g} times larger does not fit "
                    f"into the memory of {self.device} ({type(error).__name__}); enlarge less, use "
                    "the CPU, or free memory"
                ) from None
        # outside of the handler: its traceback would keep the failed batch alive
        release_memory(self.device)
        for one, state in zip(some, before, strict=True):
            if one.seed is not None and state is not None:
                one.seed.set_state(state)
        return [
            result
            for group in groups
            for result in self._restore(group, options, control_scale, refined, ended)
        ]

    def _restore_at_once(
        self,
        some: Sequence[Seen],
        options: Options,
        control_scale: float,
        refined: Refinement,
        ended: StepEnded,
    ) -> list[Any]:
        stages = self._stages
        canvas = make_canvas(
            some[0].picture.size, options.upscale, options.tile, stages.factor, self._multiple,
            self.config.tile,
        )  # fmt: skip
        stays = stages.has_room(canvas.padded, options, len(some))
        near = [send(one.rgb, self.device) if stays else one.rgb for one in some]
        filled = torch.cat([canvas.fill(rgb) for rgb in near])  # (B, 3, H, W) in [-1, 1]
        cue = Cue((filled + 1) / 2, torch.cat([one.tokens for one in some]))
        own = replace(options, context=torch.cat([one.context for one in some]))
        seeds = [one.seed for one in some]
        z_lr, _ = stages.encode(filled, own, seeds, False)
        z = self._run(z_lr, cue, own, control_scale, refined, seeds, ended)
        if options.output == "latent":
            latents = list(z.cpu().split(1))
            stages.settle()
            return latents
        restored = canvas.empty(stages.decode(z, (), own, stays=stays)).split(1)
        results = [
            finish(part, rgb, one.picture, one.encoding, canvas, own)
            for part, rgb, one in zip(restored, near, some, strict=True)
        ]
        stages.settle()
        return results

    def _run(
        self,
        z_lr: Tensor,
        cue: Cue,
        options: Options,
        control_scale: float,
        refined: Refinement,
        generator: NoiseSource,
        ended: StepEnded,
    ) -> Tensor:
        return self._stages.sample_many(z_lr, cue, options, control_scale, generator, ended)


def _config(net: Any) -> Any:
    return net.config
