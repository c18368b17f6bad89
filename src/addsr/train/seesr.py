"""SeeSR (arXiv 2311.16518): Stable Diffusion taught to follow a picture, its tags and its tokens.

The loss is Stable Diffusion's own, the mean squared error of the predicted noise at uniform
timesteps. The ControlNet sees the input, enlarged to the target's size; the image attentions see
the tokens that DAPE makes of it; the prompt is the target's tags or, half of the time, empty
(`prompts`), so that guidance has something to be led away from.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.diffusion.ddpm import TRAINED_STEPS
from addsr.errors import ConfigError
from addsr.nets.seesr import ControlledUnet, build_controlnet, build_unet
from addsr.nets.stablesr.backbones import rebuild
from addsr.pipelines import SeeSRPipeline
from addsr.pipelines.config import PipelineConfig

from .addsr_networks import embedder, make_embed, token_width
from .base import load_part, load_prompt, stated_prediction
from .checks import refuse_compile, require, require_large, require_reuse
from .coding import Coder
from .config import Recipe
from .flops import counted
from .latents import LatentPool
from .optim import process_rank
from .passes import Embed, noised
from .prompts import dropped
from .seesr_config import SeeSRTaskConfig
from .seesr_networks import seesr_layers, start_networks
from .stablesr import differentiable, enlarge
from .tagging import load_ram
from .task import Batch, Task
from .validate import evaluate_sampler

_LEVELS = (100, 300, 500, 700, 900)
"""Timesteps at which validation looks at the prediction's error."""


@dataclass(frozen=True)
class Known:
    """What is made of a batch of pairs once."""

    hr: Tensor
    """Mean and log variance of the targets' latents, `(B, 8, h, w)`."""
    lr: Tensor
    """The inputs, `(B, 3, H/4, W/4)` in [0, 1]."""
    tokens: Tensor
    """Image tokens of the inputs."""
    text: Tensor
    """Embedded prompts, before some are dropped."""


class SeeSRTask(Task):
    """The ControlNet, and the image attentions of the U-Net."""

    name = "seesr"
    licence = "that of the base, of the training pictures and of the weights it started from"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        refuse_compile(recipe.run.compile, self.name)
        require(not recipe.net, "net", recipe.net, "none: networks are made of task.base")
        c = self.config = recipe.task
        assert isinstance(c, SeeSRTaskConfig)
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
        self._check_base()
        self.coder = Coder(load_part(Path(c.base), "vae", self.dtype, device), self.dtype)
        self.text = load_prompt(Path(c.base)).to(device, self.dtype)
        """Of the empty prompt."""
        ram = load_ram(c.tagger, c.dape) if c.tagger else None
        self.nets = start_networks(
            c.base,
            c.seesr,
            width=None if ram is None else ram.config.head.tokens,
            factor=self.coder.factor,
            device=device,
        )
        self.token_width = token_width(self.nets.unet)
        self.embed = (
            make_embed("", "", self.token_width, self.dtype, device)
            if ram is None
            else embedder(ram, self.dtype, device)
        )
        for name, part in seesr_layers(self.nets).items():
            part.requires_grad_(True)
            self.track(name, part, recipe.optim)  # in float32: it starts at the exact numbers
        self.nets.to(self.dtype)
        # typed as Any, for diffusers' own types are partial
        self.unet: Any = self.nets.unet
        self.controlnet: Any = self.nets.controlnet
        if c.checkpointing:
            for net in (self.unet, self.controlnet):
                net.enable_gradient_checkpointing()
        self.grid = self.coder.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        side = recipe.data.crop_px
        require(side % self.grid == 0, "data.crop_px", side, f"a multiple of {self.grid}")
        require_reuse(c.latent_reuse, c.latent_pool, recipe.run.batch)
        self.pool = LatentPool(c.latent_pool, c.latent_reuse, Known)
        self._flops = 0.0

    def _check_base(self) -> None:
        base = self.config.base
        if not base or not Path(base).is_dir():
            raise ConfigError(
                f"task.base = {base!r} is no folder; give a Stable Diffusion 2-base in diffusers' "
                "layout"
            )
        told = stated_prediction(Path(base))
        require(told in (None, "eps"), "task.base", base, f"one that predicts eps, not {told}")

    def fresh_samples(self, batch: int) -> int:
        return self.pool.fresh(batch)

    # --- one training step -------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        known = self.pool.exchange(self.encode(batch), self.recipe.run.batch, self.generator)
        n = len(known.hr)
        z = self.coder.draw(known.hr, self.randn_like(known.hr.chunk(2, dim=1)[0]))
        t = torch.randint(TRAINED_STEPS, (n,), generator=self.generator, device=self.device)
        noise = self.randn_like(z)
        text = dropped(known.text, self.text, self.rand(n), self.config.prompt_dropout)
        picture = self._enlarged(known.lr)
        eps = self.predict(noised(z, noise, t), t, picture, known.tokens, text)
        loss = F.mse_loss(eps.float(), noise)
        loss.backward()
        norms = {f"grad_{k}": trained.step() for k, trained in self.trained.items()}
        return {"loss": loss.detach(), **norms}

    @torch.no_grad()
    def encode(self, batch: Batch) -> Known:
        """What is made of a batch once, however often it is used."""
        text = batch.text
        if text is None:
            text = self.text.expand(len(batch.hr), -1, -1)
        tokens = self.embed(enlarge(batch))
        return Known(self.coder.moments(batch.hr), batch.lr, tokens, text.to(self.dtype))

    def _enlarged(self, lr: Tensor) -> Tensor:
        height, width = (4 * side for side in lr.shape[-2:])
        return enlarge(Batch(lr.new_empty(len(lr), 3, height, width), lr))

    def predict(
        self, z_t: Tensor, t: Tensor, picture: Tensor, tokens: Tensor, text: Tensor
    ) -> Tensor:
        """The noise in `z_t`, in the type of the networks."""
        z_t, picture = (differentiable(x.to(self.dtype)) for x in (z_t, picture))
        return self.nets(z_t, t, text, tokens.to(self.dtype), picture)

    # --- validation --------------------------------------------------------------------------

    def check_pairs(self, pairs: list[Batch]) -> None:
        require_large(pairs, self.grid)

    @contextmanager
    def averaged(self) -> Generator[SeeSRPipeline]:
        """The pipeline with the averaged weights, as long as the context lasts.

        Its prompts are empty, and so it has no guidance.
        """
        trained = [p for part in self.trained.values() for p in part.working]
        with ExitStack() as stack:
            for part in self.trained.values():
                stack.enter_context(part.averaged())
            pipe = SeeSRPipeline(
                self.unet,
                self.controlnet,
                self.coder.vae,
                self.text,
                tagger=_Untold(self.embed),
                config=PipelineConfig(
                    tile=self.recipe.data.crop_px, steps=self.config.val_steps, fidelity=0.0
                ),
            )
            try:
                yield pipe
            finally:
                for weight in trained:  # a pipeline freezes its networks
                    weight.requires_grad_(True)

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Error of the prediction at fixed timesteps and noise, and figures of sampled pictures."""
        if not pairs:
            return {}, None
        with self.averaged() as pipe:
            errors = [self._error(k, pair) for k, pair in enumerate(pairs)]

            def sampler(lr: Tensor, noise: Tensor) -> Tensor:
                seed = torch.Generator().manual_seed(0)
                done: Any = pipe(lr.cpu(), generator=seed, output_type="pt")
                return done.images.to(noise.device)

            # the networks have the run's own types: nothing is left for autocast
            figures, grid = evaluate_sampler(
                {str(self.config.val_steps): sampler}, pairs, device=self.device, precision="fp32"
            )
        return {"loss": sum(errors) / len(errors), **figures}, grid

    def _error(self, index: int, pair: Batch) -> float:
        side = min(*pair.hr.shape[-2:], self.recipe.data.crop_px) // self.grid * self.grid
        hr = pair.hr[..., :side, :side].to(self.device)
        lr = pair.lr[..., : side // 4, : side // 4].to(self.device)
        known = self.encode(Batch(hr, lr))
        t = torch.tensor(_LEVELS, device=self.device)
        z = self.coder.mean(known.hr).expand(len(t), -1, -1, -1)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(index))
        noise = noise.to(self.device)
        picture, tokens, text = (
            x.expand(len(t), *x.shape[1:]) for x in (self._enlarged(lr), known.tokens, known.text)
        )
        eps = self.predict(noised(z, noise, t), t, picture, tokens, text)
        return float(F.mse_loss(eps.float(), noise))

    # --- the rest ----------------------------------------------------------------------------

    def flops_per_sample(self) -> float:
        """Useful work of U-Net, ControlNet and VAE: neither what checkpointing repeats nor the
        tagger is counted."""
        if not self._flops:
            side, factor = self.recipe.data.crop_px, self.coder.factor
            with torch.device("meta"):
                channels = int(self.coder.vae.config["latent_channels"])
                small = side // factor
                latent = torch.empty(1, channels, small, small)
                picture = torch.empty(1, 3, side, side)
                text = torch.empty(1, *self.text.shape[1:])
                tokens = torch.empty(1, 1, self.token_width)
                nets = ControlledUnet(
                    build_unet(self.unet.config), build_controlnet(self.controlnet.config)
                )
                one = counted(nets, latent, torch.zeros(1), text, tokens, picture)
                vae = rebuild("AutoencoderKL", self.coder.vae.config)
                encode = counted(vae.encoder, picture)
            trained = sum(m.numel() for part in self.trained.values() for m in part.masters)
            share = trained / sum(p.numel() for p in self.nets.parameters())
            # back to the input of everything, and to the weights of what is trained
            self._flops = (2 + share) * one + encode / self.config.latent_reuse
        return self._flops

    def facts(self) -> dict[str, str]:
        """What a pipeline has to know of how they were trained."""
        return {"crop_px": str(self.recipe.data.crop_px)}

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "pool": self.pool.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if process_rank() == 0:  # the others fill theirs anew: what is stored is the main one's
            self.pool.load(state["pool"], self.device)


class _Untold:
    """A pipeline's tagger that gives tokens and no words."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    def embed(self, image: Tensor) -> Tensor:
        return self._embed(image)

    def __call__(self, image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(embeds=self.embed(image), tags=[[] for _ in image])
