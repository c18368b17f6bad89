"""StableSR's first stage: encoder and modulation layers on a frozen diffusion model.

The loss is Stable Diffusion's own: mean squared error of the predicted noise (or v) at uniform
timesteps (arXiv 2305.07015, section 3.1), per sample. The input, enlarged to the target's size, is
encoded by the same VAE and never noised. Input pictures are rounded to 8 bits, as files are; the
published training left that out.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from addsr.diffusion.ddpm import TRAINED_STEPS, Prediction, Schedule
from addsr.errors import ConfigError
from addsr.nets.stablesr import (
    EncoderConfig,
    Guide,
    GuidedUnet,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
)
from addsr.nets.stablesr.backbones import rebuild
from addsr.pipelines import StableSRPipeline
from addsr.pipelines.canvas import enlarge as enlarge_picture
from addsr.pipelines.stablesr import PipelineConfig

from .base import load_base
from .checks import refuse_compile, require_large, require_reuse
from .coding import Coder
from .config import Recipe
from .flops import counted
from .latent_config import StableSRConfig
from .latents import LatentPool, Moments
from .net_tables import parsed
from .optim import process_rank
from .sft_init import undo_normalisation
from .task import Batch, Task
from .validate import evaluate_sampler

_LEVELS = (100, 300, 500, 700, 900)
"""Timesteps at which validation looks at the prediction's error."""


class StableSRTask(Task):
    """Noise prediction (or v) by a frozen U-Net that follows the encoded input."""

    name = "stablesr"
    licence = "that of the base, of the training pictures and of the weights it started from"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        refuse_compile(recipe.run.compile, self.name)
        c = self.config = recipe.task
        assert isinstance(c, StableSRConfig)
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
        self.prediction: Prediction = "v" if c.prediction == "v" else "eps"
        base = load_base(c.base, self.prediction, self.dtype, device)
        self.prompt_embeds = base.prompt_embeds
        self.context = base.prompt_embeds.to(device, self.dtype)
        # typed as Any, for diffusers' own types are partial
        self.unet: Any = base.unet
        self.vae: Any = base.vae
        self.coder = Coder(base.vae, self.dtype)
        encoder, hidden = encoder_config(recipe.net)
        self.encoder = TimeAwareEncoder(encoder)
        shape = self.unet.config
        self.layers = SftLayers(
            SftConfig(
                widths=tuple(shape["block_out_channels"]),
                blocks=int(shape["layers_per_block"]),
                features=encoder.features,
                hidden=hidden,
            )
        )
        self._check_sizes()
        self.trained_encoder = self.track("encoder", self.encoder, recipe.optim)
        self.trained_layers = self.track("sft", self.layers, recipe.optim)
        self.guide = Guide(self.unet, self.layers)
        if c.checkpointing:
            self.unet.enable_gradient_checkpointing()
        alpha_bar = Schedule.trained().alpha_bar
        self.signal = alpha_bar.sqrt().float().to(device)
        self.spread = (1 - alpha_bar).sqrt().float().to(device)
        self.pool = LatentPool(c.latent_pool, c.latent_reuse)
        self._flops = 0.0

    def _check_sizes(self) -> None:
        c, data, run = self.config, self.recipe.data, self.recipe.run
        self.factor = self.coder.factor
        levels = len(self.unet.config["block_out_channels"])
        if len(self.encoder.config.widths) != levels:
            raise ConfigError(
                f"net.widths = {self.encoder.config.widths!r} is not allowed with task.base = "
                f"{c.base!r}, whose U-Net has {levels} grids; give {levels} widths"
            )
        self.grid = self.factor * 2 ** (levels - 1)
        if data.crop_px % self.grid:
            raise ConfigError(
                f"data.crop_px = {data.crop_px} is not allowed with task.base = {c.base!r}; give a "
                f"multiple of {self.grid}"
            )
        require_reuse(c.latent_reuse, c.latent_pool, run.batch)

    def fresh_samples(self, batch: int) -> int:
        return self.pool.fresh(batch)

    # --- one training step -------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        moments = self.pool.exchange(self.encode(batch), self.recipe.run.batch, self.generator)
        z, z_lr = self.draw(moments.hr), self.draw(moments.lr)
        n = len(z)
        if c.lr_dropout:
            kept = (self.rand(n) >= c.lr_dropout).view(-1, 1, 1, 1)
            z_lr = torch.where(kept, z_lr, 0.0)
        t = torch.randint(TRAINED_STEPS, (n,), generator=self.generator, device=self.device)
        z_t, target = self.noised(z, t, self.randn_like(z))
        if c.sft_init == "identity" and not (
            self.trained_layers.updates or self.trained_layers.is_loaded
        ):
            self._start_as_identity(z_t, t)
        loss = self._backward(z_t, z_lr, t, target)
        norm_encoder, norm_layers = self.trained_encoder.step(), self.trained_layers.step()
        return {"loss": loss, "grad_encoder": norm_encoder, "grad_sft": norm_layers}

    @torch.no_grad()
    def encode(self, batch: Batch) -> Moments:
        """Distributions of the latents of targets and enlarged inputs, float32."""
        hr, lr = batch.hr, enlarge(batch)
        if self.config.clean_share:
            is_clean = (self.rand(len(hr)) < self.config.clean_share).view(-1, 1, 1, 1)
            lr = torch.where(is_clean, hr, lr)
        return Moments(self.coder.moments(hr), self.coder.moments(lr))

    def draw(self, moments: Tensor) -> Tensor:
        """A scaled latent `(B, 4, h, w)` from its distribution, float32."""
        return self.coder.draw(moments, self.randn_like(moments.chunk(2, dim=1)[0]))

    def noised(self, z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`z` at timesteps `t` `(B,)`, and what the network should say to it."""
        signal, spread = (table[t].view(-1, 1, 1, 1) for table in (self.signal, self.spread))
        target = noise if self.prediction == "eps" else signal * noise - spread * z
        return signal * z + spread * noise, target

    def _backward(self, z_t: Tensor, z_lr: Tensor, t: Tensor, target: Tensor) -> Tensor:
        z_lr = z_lr.to(self.dtype)
        if self.config.checkpointing:
            features: Any = checkpoint(self.encoder, z_lr, t, use_reentrant=False)
        else:
            features = self.encoder(z_lr, t)
        # the backward pass stays inside: checkpointed blocks run once more there, and the
        # modulation in them needs the features
        with self.guide.using(features):
            context = self.context.expand(len(z_t), -1, -1)
            z_t = differentiable(z_t.to(self.dtype))
            out = self.unet(z_t, t, encoder_hidden_states=context).sample
            loss = F.mse_loss(out.float(), target)
            loss.backward()
        return loss.detach()

    def _start_as_identity(self, z_t: Tensor, t: Tensor) -> None:
        self.guide.detach()
        context = self.context.expand(len(z_t), -1, -1)
        undo_normalisation(self.trained_layers, self.unet, z_t.to(self.dtype), t, context)
        self.guide = Guide(self.unet, self.layers)

    # --- validation --------------------------------------------------------------------------

    def check_pairs(self, pairs: list[Batch]) -> None:
        require_large(pairs, self.grid)

    @contextmanager
    def averaged(self) -> Generator[StableSRPipeline]:
        """The pipeline with the averaged weights, as long as the context lasts."""
        encoder = TimeAwareEncoder(self.encoder.config)
        layers = SftLayers(self.layers.config)
        for net, trained in ((encoder, self.trained_encoder), (layers, self.trained_layers)):
            net.to(self.device)
            net.load_state_dict(trained.state())
            net.to(self.dtype)
        self.guide.detach()
        pipe = StableSRPipeline(
            self.unet,
            encoder,
            layers,
            self.vae,
            self.prompt_embeds,
            config=PipelineConfig(
                prediction=self.prediction,
                tile=self.recipe.data.crop_px,
                steps=self.config.val_steps,
                fidelity=0.0,
            ),
        )
        try:
            yield pipe
        finally:
            pipe.guided.guide.detach()
            self.guide = Guide(self.unet, self.layers)

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Error of the prediction at fixed timesteps and noise, and figures of sampled pictures."""
        if not pairs:
            return {}, None
        with self.averaged() as pipe:
            errors = [self._error(pipe.guided, k, pair) for k, pair in enumerate(pairs)]

            def sampler(lr: Tensor, noise: Tensor) -> Tensor:
                seed = torch.Generator().manual_seed(0)
                done: Any = pipe(lr.cpu(), generator=seed, fidelity=0.0, output_type="pt")
                return done.images.to(noise.device)

            # the networks have the run's own types: nothing is left for autocast
            figures, grid = evaluate_sampler(
                {str(self.config.val_steps): sampler}, pairs, device=self.device, precision="fp32"
            )
        return {"loss": sum(errors) / len(errors), **figures}, grid

    def _error(self, guided: GuidedUnet, index: int, pair: Batch) -> float:
        scale = pair.hr.shape[-1] // pair.lr.shape[-1]
        side = min(*pair.hr.shape[-2:], self.recipe.data.crop_px) // self.grid * self.grid
        pair = Batch(
            pair.hr[..., :side, :side].to(self.device),
            pair.lr[..., : side // scale, : side // scale].to(self.device),
        )
        t = torch.tensor(_LEVELS, device=self.device)
        z, z_lr = (
            self.coder.mean(self.coder.moments(x)).expand(len(t), -1, -1, -1)
            for x in (pair.hr, enlarge(pair))
        )
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(index))
        z_t, target = self.noised(z, t, noise.to(self.device))
        out = guided(z_t.to(self.dtype), t, z_lr.to(self.dtype), self.context)
        return float(F.mse_loss(out.float(), target))

    # --- the rest ----------------------------------------------------------------------------

    def flops_per_sample(self) -> float:
        """Useful work: what checkpointing repeats is not counted."""
        if not self._flops:
            side = self.recipe.data.crop_px
            with torch.device("meta"):
                latent = torch.empty(1, 4, side // self.factor, side // self.factor)
                t, context = torch.zeros(1), torch.empty(1, *self.context.shape[1:])
                vae = rebuild("AutoencoderKL", self.vae.config)
                encode = counted(vae.encoder, torch.empty(1, 3, side, side))
                unet = rebuild("UNet2DConditionModel", self.unet.config)
                frozen = counted(unet, latent, t, context)
                encoder, layers = (
                    TimeAwareEncoder(self.encoder.config),
                    SftLayers(self.layers.config),
                )
                whole = counted(GuidedUnet(unet, encoder, layers), latent, t, latent, context)
            # the frozen part needs no gradients of its weights: one pass back, not two
            work = 2 * frozen + 3 * (whole - frozen)
            self._flops = work + 2 * encode / self.config.latent_reuse
        return self._flops

    def facts(self) -> dict[str, str]:
        """What a pipeline has to know of how they were trained."""
        return {"prediction": self.prediction, "crop_px": str(self.recipe.data.crop_px)}

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "pool": self.pool.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if process_rank() == 0:  # the others fill theirs anew: what is stored is the main one's
            self.pool.load(state["pool"], self.device)


def differentiable(x: Tensor) -> Tensor:
    """`x` as the input of a frozen network that holds trained layers.

    torch 2.13 crashes on CPUs in the backward pass of a trained group normalisation whose
    channels-last input needs no gradient, as that of the first trained layer would.
    """
    return x.detach().requires_grad_(x.device.type == "cpu")


def enlarge(batch: Batch) -> Tensor:
    """The inputs at the size of the targets, in [0, 1], as the pipeline enlarges them."""
    x = enlarge_picture(batch.lr, (batch.hr.shape[-2], batch.hr.shape[-1]))
    return x.contiguous(memory_format=torch.channels_last)


def encoder_config(table: dict[str, Any]) -> tuple[EncoderConfig, int]:
    """The [net] table as the encoder's shape and the modulation layers' `hidden` channels.

    Raises:
        ConfigError: an unknown field or a value that cannot be built.
    """
    hidden = table.get("hidden", SftConfig().hidden)
    if type(hidden) is not int or hidden < 1:
        raise ConfigError(f"net.hidden = {hidden!r} is not allowed; give a whole number from 1")
    rest = {k: v for k, v in table.items() if k != "hidden"}
    return parsed(EncoderConfig, rest, "hidden"), hidden
