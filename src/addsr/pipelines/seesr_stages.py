"""SeeSR's and AddSR's networks at work on one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from addsr.diffusion.addsr import (
    Cue,
    FewStep,
    few_step_levels,
    refinement,
    sample_addsr_latent,
    sample_seesr_latent,
)
from addsr.diffusion.ddpm import start_latent
from addsr.engines.device import free_memory, send
from addsr.image.encoding import Encoding
from addsr.image.kinds import Picture
from addsr.nets.seesr import ConditionEncoder, ControlledUnet, encode_in_strips
from addsr.nets.tiny_decoder import TinyDecoder, decode_in_strips

from .options import Options
from .stages import SHARE, LatentStages, StepEnded
from .tiny import PART
from .walk import NoiseSource, draw

_STAYING_PIXELS = 2048**2
_ASKED = ("cuda", "xpu")
"""Devices that say how much memory is free."""
_STAYING = 12 * 8
"""Bytes a pixel of pictures that stay on the device: colour in float32, some of them at a time."""


@dataclass(frozen=True)
class Seen:
    """A picture before it is restored, with what is known of it."""

    picture: Picture
    encoding: Encoding
    rgb: Tensor
    tokens: Tensor
    context: Tensor
    """The embedding of its prompt."""
    seed: torch.Generator | None


@dataclass(frozen=True)
class Refinement:
    """How AddSR looks at its own predictions."""

    weight: float
    """0 to 1; at 0 it does not."""
    embed: Callable[[Tensor], Tensor] | None = None
    """The tagger's tokens of a picture in [0, 1]; None: those of the input are kept."""
    is_tiny: bool = False
    """Whether the tiny decoder shows them; the last one is the VAE's in any case."""


class SeeSRStages(LatentStages):
    """The networks, where they are and what they do."""

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module,
        vae: nn.Module,
        tiny: TinyDecoder | None = None,
    ) -> None:
        nets = {"unet": unet, "controlnet": controlnet}
        super().__init__(nets if tiny is None else {**nets, PART: tiny}, vae)
        self.net = ControlledUnet(unet, controlnet)
        self.tiny = tiny
        self._keeps_large = True

    def sample_few(
        self,
        z_lr: Tensor,
        first: Cue,
        options: Options,
        control_scale: float,
        refined: Refinement,
        generator: NoiseSource,
        ended: StepEnded,
    ) -> Tensor:
        """AddSR's restored latent, float32.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        steps = few_step_levels(options.steps)
        predict = self._predictor(options, control_scale)

        def working(z: Tensor, t: Tensor, cue: Cue) -> Tensor:
            # step by step: with offload the VAE has the device to itself in between
            with self._working("unet", "controlnet"):
                return predict(z, t, cue)

        # decided before: memory that has been taken meanwhile must not part the two
        stays = first.picture.device.type == self.device.type and not self.is_offloading

        def decode(z_0: Tensor) -> Tensor:
            if refined.is_tiny:
                return self.decode_tiny(z_0, options, stays=stays)
            return self.decode(z_0, (), options, stays=stays)

        def told(step: FewStep) -> Tensor:
            tensors = {"latents": step.z_0, "image_latents": z_lr, "model_output": step.eps}
            return ended(step.index, len(steps), step.timestep, tensors)

        start = self._start(z_lr, options, generator)
        refine = refinement(decode, first, embed=refined.embed, weight=refined.weight)
        return sample_addsr_latent(
            working,
            start,
            first,
            _noises(z_lr, generator),
            refine=refine if refined.weight > 0 else None,
            timesteps=steps,
            on_step=told,
        )

    def sample_many(
        self,
        z_lr: Tensor,
        cue: Cue,
        options: Options,
        control_scale: float,
        generator: NoiseSource,
        ended: StepEnded,
    ) -> Tensor:
        """SeeSR's restored latent, float32.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        predict = self._predictor(options, control_scale)
        done = 0

        def told(timestep: int, output: Tensor, z: Tensor) -> Tensor:
            nonlocal done
            done += 1
            tensors = {"latents": z, "image_latents": z_lr, "model_output": output}
            return ended(done - 1, options.steps, timestep, tensors)

        start = self._start(z_lr, options, generator)
        with self._working("unet", "controlnet"):
            return sample_seesr_latent(
                lambda z, t: predict(z, t, cue),
                start,
                _noises(z_lr, generator),
                steps=options.steps,
                on_step=told,
            )

    def decode_tiny(self, z: Tensor, options: Options, *, stays: bool = False) -> Tensor:
        """About what `decode` gives, by the tiny decoder.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        tiny = self.tiny
        assert tiny is not None, "options are checked before"
        latent = z.to(self.device, self.dtype)
        size = (latent.shape[-2] * self.factor, latent.shape[-1] * self.factor)
        run = self._compiled("tiny", tiny.forward, of=[tiny])
        with self._working(PART):
            x = self._in_strips(
                size, options, lambda: run(latent), lambda n: decode_in_strips(tiny, latent, n)
            )
        x = x.to(self.device if stays else "cpu").float()
        self._check(x, "tiny decoder")
        return x

    def has_room(self, size: Sequence[int], options: Options, count: int = 1) -> bool:
        """Whether `count` pictures of `size` (H, W) may stay on the device between the networks.

        What the VAE takes whole has left that much room; for others it takes free memory, which is
        not asked for once it has run out.
        """
        if self.is_offloading:
            return False
        pixels = size[-2] * size[-1]
        if pixels <= min(options.strip_pixels or _STAYING_PIXELS, _STAYING_PIXELS):
            return True
        if self.device.type not in _ASKED:
            return False
        if not self._keeps_large or self._strip_limit is not None:
            return False
        return count * pixels * _STAYING <= SHARE * free_memory(self.device)

    def give_way(self) -> bool:
        """Has large pictures wait in main memory from now on; whether that is anything new."""
        is_new = self._keeps_large and self.device.type in _ASKED
        self._keeps_large = self._keeps_large and not is_new
        return is_new

    def _start(self, z_lr: Tensor, options: Options, generator: NoiseSource) -> Tensor:
        noise = next(_noises(z_lr, generator))
        return start_latent(z_lr, noise, from_noise=options.from_noise)

    def _predictor(
        self, options: Options, control_scale: float
    ) -> Callable[[Tensor, Tensor, Cue], Tensor]:
        """The noise in the whole latent; the picture's map is made once for all steps and tiles."""
        dtype, device = self.dtype, self.device
        context = send(options.context, device).to(dtype)
        negative = None if options.negative is None else send(options.negative, device).to(dtype)
        kept: tuple[Cue, Tensor] | None = None
        run = self._compiled("net", self.net.forward, of=[self.net], has_one_shape=True)

        def predict(z: Tensor, t: Tensor, cue: Cue) -> Tensor:
            nonlocal kept
            if kept is None or kept[0] is not cue:
                kept = (cue, self._encode_condition(cue.picture, options))
            tokens = send(cue.tokens, device).to(dtype)

            def model(z_t: Tensor, t: Tensor, seen: Tensor) -> Tensor:
                return run(
                    z_t.to(dtype), t, context, tokens, seen, negative, options.guidance,
                    control_scale,
                )  # fmt: skip

            output = self._predict(model, z, t, kept[1], options.spec)
            # here and not at the end: a picture may take minutes
            self._check(output, "latents: sampling")
            return output

        return predict

    def _encode_condition(self, picture: Tensor, options: Options) -> Tensor:
        """The ControlNet's map of a canvas in [0, 1]."""
        # predictions come in the VAE's layout: another one would be compiled for
        x = picture.to(self.device, self.dtype).contiguous()
        encoder = self.net.controlnet.controlnet_cond_embedding
        assert isinstance(encoder, ConditionEncoder)

        def striped(pixels: int) -> Tensor:
            return encode_in_strips(encoder, x, pixels)

        whole = self._compiled("condition", self.net.encode, of=[self.net.controlnet])
        return self._in_strips(x.shape, options, lambda: whole(x), striped)


def _noises(like: Tensor, generator: NoiseSource) -> Iterator[Tensor]:
    """Standard normal latents, drawn on the CPU whatever the device."""
    while True:
        yield send(draw(tuple(like.shape), generator), like.device)
