"""The networks of a pipeline at work on one picture: encode, sample, decode.

Memory that runs out costs speed and nothing else: the sampler puts fewer tiles together and the
VAE works in narrower strips, neither of which changes the result, and both stay so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from addsr.diffusion.aggregate import TileModel, TileSpec, aggregate
from addsr.engines.device import free_memory, send
from addsr.engines.memory import is_out_of_memory, release_memory
from addsr.errors import DependencyError, MemoryLimitError, OptionError
from addsr.nets.group_norm import use_channelwise
from addsr.nets.stablesr import (
    FeatureWrapping,
    GuidedUnet,
    SftLayers,
    TimeAwareEncoder,
    WrappedVae,
)
from addsr.nets.stablesr.cfw import Taps
from addsr.nets.stablesr.strips import WAITING, StripVae

from .compiled import Compiled, CompileMode
from .finite import FiniteChecks
from .options import Options
from .walk import NoiseSource, Walk, draw

log = logging.getLogger(__name__)

StepEnded = Callable[[int, int, float, dict[str, Tensor]], Tensor]
"""`ended(step, steps, timestep, tensors)` gives the latent to go on with."""
_LEAST_ROWS = 8
"""Rows of a strip below which narrower ones would no longer help: two come along as margin."""

_STRIP = 9.0
"""Numbers of a strip at work per picture pixel of it, in widths of the VAE, with slack."""
SHARE = 0.8
"""Of the free memory, what maps and pictures may wait in."""

_T = TypeVar("_T")


class LatentStages:
    """What every latent model needs: its networks, where they are, the VAE and tiles at work."""

    def __init__(
        self, nets: Mapping[str, nn.Module], vae: nn.Module, cfw: FeatureWrapping | None = None
    ) -> None:
        """`nets` are all but VAE and feature wrapping, by name; one is "unet"."""
        self.vae, self.cfw = vae, cfw
        self._wrapped = WrappedVae(vae, cfw) if cfw is not None else None
        self._nets = dict(nets)
        config: Any = vae.config
        self._scaling = float(config["scaling_factor"])
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.device = next(vae.parameters()).device
        self.is_offloading = False
        self._batch_limit: int | None = None  # after memory ran out once, for all that follows
        self._strip_limit: int | None = None
        self._compiled = Compiled()
        self._checks = FiniteChecks()
        for net in self.nets().values():
            net.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self._nets["unet"].parameters()).dtype

    def nets(self) -> dict[str, nn.Module]:
        """All networks by name."""
        nets = {**self._nets, "vae": self.vae}
        return nets if self.cfw is None else {**nets, "cfw": self.cfw}

    def to(self, where: str | torch.device | torch.dtype | torch.memory_format) -> None:
        """Moves all networks to a device, which ends offload, to a dtype or a memory format."""
        is_format = isinstance(where, torch.memory_format)
        options: Any = {"memory_format": where} if is_format else {}
        for net in self.nets().values():
            net.to(**options) if is_format else net.to(where)
        if not isinstance(where, (torch.dtype, torch.memory_format)):
            self.device, self.is_offloading = torch.device(where), False

    def offload(self, device: str | torch.device | None) -> None:
        """Keeps networks in main memory, and on `device` only those that work.

        Raises:
            DependencyError: no device is given and this machine has none but the CPU.
            OptionError: CUDA graphs are recorded, which `compile` was asked for.
        """
        if device is None:
            accelerator = torch.accelerator.current_accelerator()
            if accelerator is None or not torch.accelerator.is_available():
                raise DependencyError(
                    "device: this machine has no accelerator to offload from; leave out "
                    "enable_model_cpu_offload"
                )
            device = accelerator
        if self._compiled.has_graphs:
            raise OptionError(
                f"compile: {self._compiled.mode!r} records CUDA graphs, for which networks stay on "
                "the device; compile with mode 'default', or leave out enable_model_cpu_offload"
            )
        self.to("cpu")
        self.device, self.is_offloading = torch.device(device), True

    def compile(self, mode: CompileMode | None) -> None:
        """Has networks compiled at their next run; None: no more.

        Raises:
            OptionError: a mode that is unknown, or CUDA graphs together with CPU offload.
        """
        compiled = Compiled(mode)
        if compiled.has_graphs and self.is_offloading:
            raise OptionError(
                f"mode: {mode!r} records CUDA graphs, for which networks stay on the device; use "
                "'default', or leave out enable_model_cpu_offload"
            )
        if mode is not None:  # the other networks' maps are too small for it to pay
            for net in self._vae_nets():
                use_channelwise(net)
        self._compiled = compiled

    @property
    def compile_mode(self) -> CompileMode | None:
        return self._compiled.mode

    def encode(
        self,
        given: Tensor,
        options: Options,
        generator: NoiseSource,
        has_taps: bool,
    ) -> tuple[Tensor, Taps]:
        """The scaled latent of the canvas `given`, float32, and the features for the decoder.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        self._checks.forget()  # of a run that was broken off
        x = send(given, self.device).to(self.dtype)

        def whole() -> tuple[Tensor, Taps]:
            if self._wrapped is not None:
                return self._compiled("encode", self._wrapped.encode, of=self._vae_nets())(x)
            return self._compiled("encode", self._moments, of=self._vae_nets())(x), ()

        def striped(pixels: int) -> tuple[Tensor, Taps]:
            return self._strip_vae(pixels, given.shape).encode(x, has_taps=has_taps)

        with self._working("vae"):
            moments, taps = self._in_strips(given.shape, options, whole, striped)
        mean, log_variance = moments.float().chunk(2, dim=1)
        if options.is_sampled:
            noise = send(draw(tuple(mean.shape), generator), mean.device)
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        self._check(mean, "vae: encoding")
        kept = taps if has_taps else ()
        if self.is_offloading:
            kept = tuple(tap.cpu() for tap in kept)
        return mean * self._scaling, kept

    def decode(self, z: Tensor, taps: Taps, options: Options, *, stays: bool = False) -> Tensor:
        """The restored canvas, float32, in about [-1, 1]: on the CPU, or where it was made.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        latent = (z / self._scaling).to(self.device, self.dtype)
        size = (latent.shape[-2] * self.factor, latent.shape[-1] * self.factor)

        def whole() -> Tensor:
            if self._wrapped is not None:
                near = tuple(tap.to(self.device) for tap in taps)
                decode = self._compiled("decode", self._wrapped.decode, of=self._vae_nets())
                return decode(latent, near, options.fidelity)
            return self._compiled("decode", self._picture, of=self._vae_nets())(latent)

        def striped(pixels: int) -> Tensor:
            return self._strip_vae(pixels, size).decode(latent, taps, options.fidelity)

        with self._working("vae", "cfw"):
            x = self._in_strips(size, options, whole, striped)
        x = x.to(self.device if stays else "cpu").float()
        self._check(x, "vae: decoding")
        return x

    def _strip_vae(self, pixels: int, shape: Sequence[int]) -> StripVae:
        """The VAE in strips for a picture `(..., H, W)`, whose maps wait where there is room."""
        store: torch.device | None = None
        # not once memory has run out
        if self.device.type in ("cuda", "xpu") and self._strip_limit is None:
            config: Any = self.vae.config
            width = int(config["block_out_channels"][0]) * self.dtype.itemsize
            waiting = WAITING * shape[-2] * shape[-1] + _STRIP * min(pixels, shape[-2] * shape[-1])
            if waiting * width <= SHARE * free_memory(self.device):
                store = self.device
        return StripVae(self.vae, self.cfw, pixels, store)

    def _vae_nets(self) -> list[nn.Module]:
        return [self.vae] if self.cfw is None else [self.vae, self.cfw]

    def _moments(self, x: Tensor) -> Tensor:
        """Mean and logarithm of the variance of the latent."""
        vae: Any = self.vae
        return vae.quant_conv(vae.encoder(x))

    def _picture(self, latent: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decoder(vae.post_quant_conv(latent))

    def _predict(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        z: Tensor,
        t: Tensor,
        z_lr: Tensor,
        spec: TileSpec,
    ) -> Tensor:
        """The network output for the whole latent, with as many tiles at once as memory allows."""
        while True:
            batch = min(spec.batch, self._batch_limit or spec.batch)
            steady = model if self.compile_mode is None else _in_two_shapes(model, len(z), batch)
            try:
                return aggregate(steady, z_lr, replace(spec, batch=batch))(z, t)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = type(error).__name__
            # outside of the handler: its traceback would keep the failed tiles alive
            release_memory(self.device)
            if batch == 1:
                raise MemoryLimitError(
                    f"tile: {spec.tile * self.factor} px does not fit into the memory of "
                    f"{self.device} ({cause}), one at a time; give a smaller tile, use the CPU, or "
                    "free memory"
                )
            self._batch_limit = batch // 2
            log.warning(
                "%d tiles do not fit into the memory of %s; going on with %d at a time",
                batch, self.device, batch // 2,
            )  # fmt: skip

    def _in_strips(
        self,
        shape: Sequence[int],
        options: Options,
        whole: Callable[[], _T],
        striped: Callable[[int], _T],
    ) -> _T:
        """What `whole` or, for a large picture or a small memory, `striped` gives."""
        height, width = shape[-2:]
        limits = [n for n in (options.strip_pixels, self._strip_limit) if n is not None]
        pixels = min(limits, default=height * width)
        while True:
            try:
                return whole() if pixels >= height * width else striped(pixels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = type(error).__name__
            release_memory(self.device)
            rows = min(pixels, height * width) // 2 // width
            if rows < _LEAST_ROWS:
                raise MemoryLimitError(
                    f"vae: {width}x{height} does not fit into the memory of {self.device} "
                    f"({cause}), in strips of {2 * rows} rows neither; enlarge less, use the CPU, "
                    "or free memory"
                )
            pixels = self._strip_limit = rows * width
            log.warning(
                "the VAE does not fit into the memory of %s; going on in strips of %d rows",
                self.device, rows,
            )  # fmt: skip

    def _check(self, x: Tensor, doing: str) -> None:
        self._checks.ask(x, f"{doing} in {self.dtype}")

    def settle(self) -> None:
        """Waits for the networks' numbers to be found finite: before a result is handed out.

        Raises:
            NotFiniteError
        """
        self._checks.settle()

    @contextmanager
    def _working(self, *names: str) -> Generator[None]:
        """Has these networks on the device, and with offload no longer than this context."""
        nets = [net for name, net in self.nets().items() if name in names]
        try:
            if self.is_offloading:
                for net in nets:
                    net.to(self.device)
            yield
        finally:
            if self.is_offloading:
                for net in nets:
                    net.to("cpu")


def _in_two_shapes(model: TileModel, count: int, batch: int) -> TileModel:
    """`model` for whole batches of `batch` times `count` latents and for `count` at a time.

    What is left over goes one after the other, for each number of tiles would be compiled anew.
    """

    def run(tiles: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        if len(tiles) in (count, count * batch):
            return model(tiles, t, seen)
        parts = zip(tiles.split(count), t.split(count), seen.split(count), strict=True)
        return torch.cat([model(*part) for part in parts])

    return run


class Stages(LatentStages):
    """StableSR's networks."""

    def __init__(
        self,
        unet: nn.Module,
        encoder: TimeAwareEncoder,
        sft: SftLayers,
        vae: nn.Module,
        cfw: FeatureWrapping | None,
    ) -> None:
        super().__init__({"unet": unet, "encoder": encoder, "sft": sft}, vae, cfw)
        self.guided = GuidedUnet(unet, encoder, sft)

    def sample(
        self,
        z_lr: Tensor,
        walk: Walk,
        options: Options,
        generator: torch.Generator | None,
        ended: StepEnded,
    ) -> Tensor:
        """The restored latent, float32.

        Raises:
            NotFiniteError, MemoryLimitError
        """
        dtype, device = self.dtype, self.device
        context = send(options.context, device).to(dtype)
        negative = None if options.negative is None else send(options.negative, device).to(dtype)

        run = self._compiled("net", self.guided.forward, of=[self.guided], has_one_shape=True)

        def model(z_t: Tensor, t: Tensor, lr: Tensor) -> Tensor:
            return run(z_t.to(dtype), t, lr.to(dtype), context, negative, options.guidance)

        noise = send(draw(tuple(z_lr.shape), generator), device)
        z = walk.start(z_lr, noise, from_noise=options.from_noise).float()
        with self._working("unet", "encoder", "sft"):
            for k, timestep in enumerate(walk.timesteps):
                t = torch.full((1,), timestep, device=device)  # no copy to wait for
                output = self._predict(model, walk.model_input(z, k), t, z_lr, options.spec)
                # here and not at the end: a picture may take minutes
                self._check(output, "latents: sampling")
                z = walk.step(k, z, output).float()
                tensors = {"latents": z, "image_latents": z_lr, "model_output": output}
                z = ended(k, len(walk.timesteps), timestep, tensors)
        self._check(z, "latents: sampling")
        return z
