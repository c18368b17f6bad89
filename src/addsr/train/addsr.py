"""AddSR (arXiv 2404.01717): SeeSR distilled adversarially to one to four steps.

A step of training: the student answers at one of its timesteps, on what sampling would give it
there (`passes`); the frozen teacher, told the target, answers four times to the student's answer;
the discriminator learns on both, and the student is pulled to the teacher's pictures and opposes
the discriminator (`addsr_losses`, `projection`). Half of the prompts are empty, the others the tags
of the target (`prompts`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.data.draw import derive_seed
from addsr.models.convert_dino import load_vit
from addsr.nets.dino import ClassToken, TokenMaps
from addsr.nets.projected import ProjectedHeads
from addsr.nets.seesr import ControlledUnet, build_controlnet, build_unet
from addsr.nets.stablesr.backbones import rebuild
from addsr.nets.views import ViewSpec

from .addsr_config import AddSRConfig
from .addsr_losses import draw_loss
from .addsr_networks import load_teacher, make_embed, student_of, token_width
from .base import load_part, load_prompt
from .checks import refuse_compile, require
from .coding import Coder
from .config import Recipe
from .flops import counted
from .losses import timestep_adaptive
from .optim import Trained, process_rank
from .passes import (
    Pair,
    Pass,
    Prompted,
    Rules,
    Told,
    clean,
    draw_levels,
    draw_teacher_timesteps,
    student_pass,
    teacher_pictures,
)
from .projection import BlockMaps, ProjectedDiscriminator
from .prompts import dropped
from .stablesr import differentiable, enlarge
from .task import Batch, Task
from .validate import evaluate_sampler


class AddSRTask(Task):
    """The student's trained layers in U-Net and ControlNet, and the discriminator's heads."""

    name = "addsr"
    licence = "that of SeeSR's weights, of the base and of the training pictures"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        refuse_compile(recipe.run.compile, self.name)
        require(not recipe.net, "net", recipe.net, "none: networks are those of task.seesr")
        c = self.config = recipe.task
        assert isinstance(c, AddSRConfig)
        self.rules = c.rules
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
        # read in float32, so that what is trained starts at the exact numbers
        self.teacher = load_teacher(c.seesr, torch.float32, device)
        self.student, layers = student_of(self.teacher)
        self.teacher.to(self.dtype)  # and with it what the student shares
        for name, part in layers.items():
            self.track(name, part, recipe.optim)
        self.coder = Coder(load_part(Path(c.base), "vae", self.dtype, device), self.dtype)
        self.vae = self.coder.vae
        self.text = load_prompt(Path(c.base)).to(device, self.dtype)
        """Of the empty prompt."""
        self.token_width = token_width(self.teacher.unet)
        self.embed = make_embed(c.tagger, c.dape, self.token_width, self.dtype, device)
        if c.checkpointing:
            nets: tuple[Any, ...] = (self.student.unet, self.student.controlnet, self.teacher.unet)
            for net in (*nets, self.vae):
                net.enable_gradient_checkpointing()
        self._check_sizes()
        self._make_discriminator()
        self._flops = 0.0

    def _check_sizes(self) -> None:
        unet: Any = self.teacher.unet
        self.grid = self.coder.factor * 2 ** (len(unet.config["block_out_channels"]) - 1)
        side = self.recipe.data.crop_px
        require(side % self.grid == 0, "data.crop_px", side, f"a multiple of {self.grid}")

    def _make_discriminator(self) -> None:
        c = self.config
        self.maps: TokenMaps | None = None
        self.class_token: ClassToken | None = None
        self.blocks: tuple[str, ...] = ()
        self.views = torch.Generator().manual_seed(
            derive_seed(self.recipe.run.seed, "views", process_rank())
        )
        if not c.gan_weight:
            return
        if c.dino:
            self.maps = TokenMaps(load_vit(c.dino)).to(self.device, self.dtype)
            token = ClassToken(load_vit(c.dinov2), is_normalised=not c.released_quirks)
            self.class_token = token.to(self.device, self.dtype)
            self.heads = ProjectedHeads(self.maps.widths, token.width)
        else:
            unet: Any = self.teacher.unet
            widths = list(unet.config["block_out_channels"])
            self.blocks = (*(f"down_blocks.{k}" for k in range(len(widths))), "mid_block")
            self.heads = ProjectedHeads([*widths, widths[-1]], widths[-1])
        run, optim = self.recipe.run, self.recipe.optim
        # in float32 throughout: few numbers, and spectral norms that are iterated
        self.trained["discriminator"] = Trained(
            self.heads,
            replace(optim, learning_rate=c.discriminator_rate),
            precision="fp32",
            ema=run.ema,
            device=self.device,
            passes=run.accumulate,
        )

    # --- one training step -------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        pair, hr = self._pair(batch), batch.hr
        levels = draw_levels(len(hr), self.rules, self.generator)
        text = self._text(batch)
        given = student_pass(
            Prompted(self._predict(self.student), text), self.coder.decode, self.embed, pair,
            levels, self.rules, self.generator,
        )  # fmt: skip
        z = self._answer(given, text)
        x = self.coder.decode(z)
        figures = self._learn(pair, hr, z, x)
        weights = timestep_adaptive(given.weighted_as, c.ta_base, c.ta_growth)
        told = hr if c.teacher_sees == "hr" else pair.lr
        tokens = self.embed(hr) if c.teacher_sees == "hr" else pair.tokens_lr
        t = draw_teacher_timesteps(c.teacher_draws, len(hr), self.generator)
        pulled = x.new_zeros(len(hr))
        draws = teacher_pictures(
            Prompted(self._predict(self.teacher), text), self.coder.decode, z.detach(),
            given.noise, t, told, tokens,
        )  # fmt: skip
        for timesteps, target in draws:
            pulled = pulled + draw_loss(x, target, timesteps) / c.teacher_draws
        distillation = (weights * pulled).mean()
        loss = distillation
        if c.gan_weight:
            opponent, condition, shown = self._opponent(pair)
            gan = opponent.oppose(shown(z, x), condition)
            loss = loss + c.gan_weight * gan
            figures["gan"] = gan.detach()
        loss.backward()
        norms = {f"grad_{k}": self.trained[k].step() for k in ("unet", "controlnet")}
        first = (levels == 0).to(pulled.device)
        return {
            "loss": loss.detach(),
            "distillation": distillation.detach(),
            # of both kinds of passes; nothing where a batch has none of a kind
            "error_first": (pulled.detach() * first).sum() / first.sum().clamp(min=1),
            "error_later": (pulled.detach() * ~first).sum() / (~first).sum().clamp(min=1),
            **figures,
            **norms,
        }

    @torch.no_grad()
    def _pair(self, batch: Batch) -> Pair:
        lr = enlarge(batch)
        return Pair(lr, self._latent(batch.hr), self._latent(lr), self.embed(lr))

    def _latent(self, picture: Tensor) -> Tensor:
        moments = self.coder.moments(picture)
        return self.coder.draw(moments, self.randn_like(moments.chunk(2, dim=1)[0]))

    def _text(self, batch: Batch) -> Tensor:
        n, share = len(batch.hr), self.config.prompt_dropout
        if batch.text is None:
            return self.text.expand(n, -1, -1)
        return dropped(batch.text, self.text, self.rand(n), share)

    def _predict(self, nets: ControlledUnet) -> Told:
        def predict(
            z_t: Tensor, t: Tensor, picture: Tensor, tokens: Tensor, text: Tensor
        ) -> Tensor:
            half = (x.to(self.dtype) for x in (z_t, tokens, picture))
            z_t, tokens, picture = half
            return nets(z_t, t, text, tokens, picture)

        return predict

    def _answer(self, given: Pass, text: Tensor) -> Tensor:
        """The student's clean latent, with gradient."""
        z_t = differentiable(given.z_t.to(self.dtype))
        predict = self._predict(self.student)
        eps = predict(z_t, given.timesteps, differentiable(given.picture), given.tokens, text)
        return clean(given.z_t, eps, given.timesteps)

    def _learn(self, pair: Pair, hr: Tensor, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """One update of the discriminator on the student's answer as it stands."""
        c = self.config
        if not c.gan_weight:
            return {}
        opponent, condition, shown = self._opponent(pair)
        loss = opponent.learn(
            shown(pair.z_hr, hr), shown(z, x).detach(), condition, with_r1=c.r1_weight > 0
        )
        loss.total(c.r1_weight).backward()
        norm = self.trained["discriminator"].step()
        return {
            "loss_d": loss.hinge.total.detach(),
            "r1": loss.r1.detach(),
            "grad_d": norm,
        }

    def _opponent(
        self, pair: Pair
    ) -> tuple[ProjectedDiscriminator, Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """The discriminator of this batch, its condition, and which of latent and picture it sees.

        The teacher's features are taken at timesteps and with noise of their own in each call.
        """
        if self.maps is not None and self.class_token is not None:
            condition = self.class_token(pair.lr).float()
            maps: Callable[[Tensor], list[Tensor]] = self.maps
            return (
                ProjectedDiscriminator(maps, self.heads, self.views, ViewSpec()),
                condition,
                lambda _z, x: x,
            )
        unet = self.teacher.unet
        text, tokens = self.text.expand(len(pair.lr), -1, -1), pair.tokens_lr.to(self.dtype)

        def run(z_t: Tensor, t: Tensor) -> Any:
            return unet(z_t.to(self.dtype), t, encoder_hidden_states=text, image_tokens=tokens)

        blocks = BlockMaps(unet, run, self.blocks)
        condition = blocks.condition(pair.z_lr, *self._noise_for(pair.z_lr))
        return (
            ProjectedDiscriminator(
                lambda z: blocks(z, *self._noise_for(z)), self.heads, self.views
            ),
            condition,
            lambda z, _x: z,
        )

    def _noise_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.randint(
            self.config.feature_t, (len(z),), generator=self.generator, device=self.device
        )
        return self.randn_like(z), t

    # --- validation --------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The student has its averaged weights as long as the context lasts."""
        with self.trained["unet"].averaged(), self.trained["controlnet"].averaged():
            yield

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Figures of pictures sampled with 1, 2 and 4 steps by the averaged student."""
        if not pairs:
            return {}, None
        samplers = {str(n): (lambda lr, _noise, n=n: self.sample(lr, n))
                    for n in self.config.val_steps}  # fmt: skip
        with self.averaged():
            return evaluate_sampler(samplers, pairs, device=self.device, precision="fp32")

    @torch.no_grad()
    def sample(self, lr: Tensor, steps: int, seed: int = 0) -> Tensor:
        """Pictures `(B, 3, 4h, 4w)` in [0, 1] of inputs `(B, 3, h, w)`, in 1 to 4 steps."""
        height, width = (side * 4 for side in lr.shape[-2:])
        large = enlarge(Batch(lr.new_empty(len(lr), 3, height, width), lr))
        large = F.pad(large, (0, -width % self.grid, 0, -height % self.grid), mode="replicate")
        z_lr = self.coder.mean(self.coder.moments(large))
        pair = Pair(large, z_lr, z_lr, self.embed(large))
        levels = torch.full((len(lr),), steps - 1, device=self.device)
        # as sampling goes, whatever training does
        rules = Rules(refine_weight=self.config.refine_weight)
        text = self.text.expand(len(lr), -1, -1)
        given = student_pass(
            Prompted(self._predict(self.student), text), self.coder.decode, self.embed, pair,
            levels, rules, torch.Generator().manual_seed(seed),
        )  # fmt: skip
        x = self.coder.decode(self._answer(given, text))
        return x[..., :height, :width].clamp(0, 1)

    # --- the rest ----------------------------------------------------------------------------

    def flops_per_sample(self) -> float:
        """Useful work of U-Net, ControlNet and VAE: what checkpointing repeats, the tagger and the
        discriminator are not counted."""
        if not self._flops:
            c, side = self.config, self.recipe.data.crop_px
            unet_config: Any = self.teacher.unet.config
            control_config: Any = self.teacher.controlnet.config
            with torch.device("meta"):
                small = side // self.coder.factor
                channels = int(self.vae.config["latent_channels"])
                latent, picture = (
                    torch.empty(1, channels, small, small),
                    torch.empty(1, 3, side, side),
                )
                text, tokens = (
                    torch.empty(1, *self.text.shape[1:]),
                    torch.empty(1, 1, self.token_width),
                )
                nets = ControlledUnet(build_unet(unet_config), build_controlnet(control_config))
                one = counted(nets, latent, torch.zeros(1), text, tokens, picture)
                vae = rebuild("AutoencoderKL", self.vae.config)
                encode, decode = counted(vae.encoder, picture), counted(vae.decoder, latent)
            trained = sum(
                m.numel() for k in ("unet", "controlnet") for m in self.trained[k].masters
            )
            share = trained / sum(p.numel() for p in self.teacher.parameters())
            back = (1 - c.first_share) * (1.0 if c.released_quirks else c.levels / 2)
            before = back * (one + decode) if c.levels > 1 else 0.0
            # back to the input of everything, and to the weights of what is trained
            self._flops = (
                2 * encode + before + (2 + share) * one + 2 * decode
                + c.teacher_draws * (one + decode)
            )  # fmt: skip
        return self._flops

    def extra_state(self) -> dict[str, Any]:
        norms = (
            {k: v.clone() for k, v in self.heads.named_buffers()} if self.config.gan_weight else {}
        )
        return {**super().extra_state(), "views": self.views.get_state(), "norms": norms}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if process_rank() == 0:  # what is stored is the main one's
            self.views.set_state(state["views"].cpu())
        if self.config.gan_weight:
            for name, buffer in self.heads.named_buffers():
                buffer.copy_(state["norms"][name])
