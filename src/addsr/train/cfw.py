"""StableSR's second stage: feature wrapping of the VAE's decoder.

Trained on latents that the first stage has sampled, with w = 1 throughout, so that the decoder
learns what to take from the input for such latents as it will get (arXiv 2305.07015, section 3.2):
L1, a perceptual loss, and a hinge loss against a PatchGAN from a given step on. Everything in the
VAE stays frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from addsr.errors import ConfigError
from addsr.nets.stablesr import CfwConfig, FeatureWrapping, WrappedVae
from addsr.nets.stablesr.backbones import rebuild

from .base import load_model_vae
from .checks import refuse_compile, require
from .config import Recipe
from .flops import counted
from .latent_config import CfwTaskConfig
from .net_tables import parsed
from .patchgan import PatchGan, PatchGanConfig, hinge
from .perceptual import make_perceptual
from .stablesr import differentiable, enlarge
from .task import Batch, Task
from .validate import evaluate_sampler

_SHOWN = (0.0, 0.5, 1.0)
"""Values of w that validation decodes with."""


class CfwTask(Task):
    """Fusion blocks between the VAE's two halves, and their discriminator."""

    name = "cfw"
    licence = "that of the model, of the training pictures and of the weights it started from"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        refuse_compile(recipe.run.compile, self.name)
        c = self.config = recipe.task
        assert isinstance(c, CfwTaskConfig)
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
        self.vae: Any = load_model_vae(c.model, self.dtype, device)
        self.scaling = float(self.vae.config["scaling_factor"])
        widths = tuple(self.vae.config["block_out_channels"])[1:-1]
        if "widths" in recipe.net:
            raise ConfigError(
                f"net.widths = {recipe.net['widths']!r} is not allowed: they are those of the VAE, "
                f"{widths}; leave it out"
            )
        shape = parsed(CfwConfig, {**recipe.net, "widths": widths})
        self.wrapping = FeatureWrapping(shape)
        most = (recipe.data.crop_px // 3).bit_length() - 1
        require(
            c.discriminator_layers <= most,
            "task.discriminator_layers",
            c.discriminator_layers,
            f"at most {most} with data.crop_px = {recipe.data.crop_px}",
        )
        self.discriminator = PatchGan(PatchGanConfig(c.discriminator_width, c.discriminator_layers))
        self.trained_wrapping = self.track("cfw", self.wrapping, recipe.optim)
        self.trained_discriminator = self.track("discriminator", self.discriminator, recipe.optim)
        self.wrapped = WrappedVae(self.vae, self.wrapping)
        if c.checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.perceptual = make_perceptual(c, device)
        self._flops = 0.0

    # --- one training step -------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        is_opposed = self.trained_wrapping.updates >= c.adversarial_start
        with torch.no_grad():
            _, taps = self.wrapped.encode((enlarge(batch) * 2 - 1).to(self.dtype))
        zero = torch.zeros((), device=self.device)
        figures = {"gan": zero, "loss_d": zero, "adv_weight": zero, "grad_d": zero}
        # the backward pass stays inside: checkpointed blocks run once more there
        with self.wrapped.blending(taps, 1.0):
            x = self._decode(self.wrapped, batch, taps, 1.0)
            pixel = (x - batch.hr).abs().mean()
            felt = zero
            if c.perceptual_weight:
                felt = self.perceptual(x, batch.hr, batch.lr, self.randn_like(batch.hr))
            # twice, for the published loss is of pictures in [-1, 1]
            loss = 2 * pixel + c.perceptual_weight * felt
            total = loss
            if is_opposed:
                self.discriminator.requires_grad_(False)
                gan = -self._judge(x).mean()
                weight = self._adversarial_weight(loss, gan)
                total = loss + weight * gan
                figures |= {"gan": gan.detach(), "adv_weight": weight}
            total.backward()
        norm = self.trained_wrapping.step()
        if is_opposed:
            self.discriminator.requires_grad_(True)
            loss_d = hinge(self._judge(batch.hr), self._judge(x.detach()))
            loss_d.backward()
            figures |= {"loss_d": loss_d.detach(), "grad_d": self.trained_discriminator.step()}
        return {
            "loss": loss.detach(),
            "l1": pixel.detach(),
            "perceptual": felt.detach(),
            **figures,
            "grad_norm": norm,
        }

    def _decode(self, wrapped: WrappedVae, batch: Batch, taps: Any, w: float) -> Tensor:
        """The picture `(B, 3, H, W)`, float32, in about [0, 1]."""
        assert batch.latent is not None
        latent = differentiable((batch.latent / self.scaling).to(self.dtype))
        return (wrapped.decode(latent, taps, w).float() + 1) / 2

    def _judge(self, picture: Tensor) -> Tensor:
        return self.discriminator((picture * 2 - 1).to(self.dtype)).float()

    def _adversarial_weight(self, loss: Tensor, gan: Tensor) -> Tensor:
        """The factor on the generator's adversarial loss.

        The published code means to balance gradients at the decoder's last layer, which is frozen:
        the error that this raises is caught there, and a constant taken. Here the constant is a
        choice, and the balance is taken at the last layer that is trained.
        """
        c = self.config
        weight = torch.tensor(c.adversarial_weight, device=self.device)
        if c.adversarial == "fixed":
            return weight
        last = self.last_layer()
        (toward,) = torch.autograd.grad(loss, last, retain_graph=True)
        (against,) = torch.autograd.grad(gan, last, retain_graph=True)
        ratio = toward.float().norm() / (against.float().norm() + 1e-4)
        return weight * ratio.clamp(max=1e4)

    def last_layer(self) -> nn.Parameter:
        """The weight of the trained layer that the decoder passes last."""
        finest: Any = self.wrapping.fusions[0]
        return finest.finish.conv2.weight

    # --- the rest ----------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Figures of held-out samples decoded with several w, by the averaged weights."""
        if not pairs:
            return {}, None
        wrapping = FeatureWrapping(self.wrapping.config).to(self.device)
        wrapping.load_state_dict(self.trained_wrapping.state())
        wrapping.to(self.dtype).eval()

        def sampler(lr: Tensor, latent: Tensor, w: float) -> Tensor:
            size = [side * 4 for side in lr.shape[-2:]]
            pair = Batch(lr.new_empty(len(lr), 3, *size), lr, latent)
            _, taps = wrapped.encode((enlarge(pair) * 2 - 1).to(self.dtype))
            return self._decode(wrapped, pair, taps, w).clamp(0, 1)

        with WrappedVae(self.vae, wrapping) as wrapped:
            samplers = {f"w{w:g}": (lambda lr, latent, w=w: sampler(lr, latent, w)) for w in _SHOWN}
            return evaluate_sampler(samplers, pairs, device=self.device, precision="fp32")

    def flops_per_sample(self) -> float:
        """Of the VAE and the fusion blocks; losses are not counted, nor what is repeated."""
        if not self._flops:
            side = self.recipe.data.crop_px
            with torch.device("meta"):
                vae = rebuild("AutoencoderKL", self.vae.config)
                wrapping: Any = FeatureWrapping(self.wrapping.config)
                encode = counted(vae.encoder, torch.empty(1, 3, side, side))
                small = side // 2 ** (len(self.vae.config["block_out_channels"]) - 1)
                channels = int(self.vae.config["latent_channels"])
                decode = counted(vae.decoder, torch.empty(1, channels, small, small))
                trained = 0.0
                for k, width in enumerate(self.wrapping.config.widths, start=1):
                    tap = torch.empty(1, width, side // 2**k, side // 2**k)
                    trained += counted(wrapping.fusions[k - 1], tap, tap)
            self._flops = encode + 2 * decode + 3 * trained
        return self._flops
