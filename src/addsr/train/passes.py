"""AddSR's passes in training: what the student is given, and what the teacher makes of its answer.

Prediction-based self-refinement (arXiv 2404.01717, section 3.2): from the second step on the
condition is `w x_prev + (1 - w) x_LR`, with the decoded prediction of the step before, and the
image tokens are taken of it anew. Training walks the steps of sampling without gradient up to the
one that it trains, so that the student learns on what it will be given.

HR-regulated teacher (same section): one step of the frozen base model from the noised *student's*
latent, under the condition of the target picture instead of the input.

Networks are callables; pictures are in [0, 1]; latents are scaled, float32; timesteps `(B,)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from addsr.diffusion.ddpm import TRAINED_STEPS, Schedule
from addsr.errors import OptionError

from .addsr_losses import LEVELS

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`predict(z_t, t, picture, tokens)` gives the noise in `z_t`, as ControlNet and U-Net see it."""
Told = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""The same with the embedded prompts `(B, tokens, width)` as last argument."""
Decode = Callable[[Tensor], Tensor]
"""A clean latent to its picture, about [0, 1], not clamped."""
Embed = Callable[[Tensor], Tensor]
"""A picture to the image tokens of its tagger."""


@dataclass(frozen=True)
class Rules:
    """What the student is trained on; the defaults are sampling's own, see `released`."""

    levels: int = 4
    """How many of the timesteps 999, 749, 499, 249 are trained, from the first on."""
    first_share: float = 0.5
    """Samples trained at the first step; the others are spread evenly over the rest."""
    refine_weight: float = 0.5
    """Share w of the prediction in the condition of later steps."""
    lr_start: float = 1.0
    """Share of samples whose first latent is the input's, as in sampling; the target's else."""
    latents: str = "own"
    """own: later steps start from the student's prediction before, noised anew, as in sampling.
    target: from the noised target, after one pass on it instead of all (teacher forcing)."""
    weight_of: str = "trained"
    """Which step's adaptive weight counts. before: that of the pass before the trained one."""
    signed_condition: bool = False
    """Later steps see the prediction in [-1, 1]."""
    per_batch: bool = False
    """First or later step is drawn once for the whole batch."""

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= len(LEVELS):
            raise OptionError(f"levels: {self.levels} is not 1 to {len(LEVELS)}")
        for name in ("first_share", "refine_weight", "lr_start"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise OptionError(f"{name}: {value} is not between 0 and 1")
        for name, allowed in (("latents", ("own", "target")), ("weight_of", ("trained", "before"))):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name}: {getattr(self, name)!r} is not {' or '.join(allowed)}")

    def released(self) -> Rules:
        """The same with all that the released training does otherwise (`train/quirks.py`)."""
        return replace(
            self,
            refine_weight=1.0,
            lr_start=0.0,
            latents="target",
            weight_of="before",
            signed_condition=True,
            per_batch=True,
        )


@dataclass(frozen=True)
class Prompted:
    """A `Predict` that tells each sample its own prompt."""

    net: Told
    text: Tensor

    def __call__(self, z_t: Tensor, t: Tensor, picture: Tensor, tokens: Tensor) -> Tensor:
        return self.net(z_t, t, picture, tokens, self.text)

    def take(self, chosen: Tensor) -> Prompted:
        """The same for some samples."""
        return Prompted(self.net, self.text[chosen])


@dataclass(frozen=True)
class Pair:
    """What is known of a batch: pictures, latents and image tokens of input and target."""

    lr: Tensor
    """The input, enlarged to the target's size, `(B, 3, H, W)` in [0, 1]."""
    z_hr: Tensor
    z_lr: Tensor
    tokens_lr: Tensor

    def take(self, chosen: Tensor) -> Pair:
        """Some samples of it."""
        parts = (self.lr, self.z_hr, self.z_lr, self.tokens_lr)
        return Pair(*(part[chosen] for part in parts))


@dataclass(frozen=True)
class Pass:
    """The inputs of one pass of the student, and what is needed to judge its answer."""

    z_t: Tensor
    noise: Tensor
    """What `z_t` was noised with; the teacher's latent is noised with the same."""
    timesteps: Tensor
    picture: Tensor
    tokens: Tensor
    weighted_as: Tensor
    """The level `(B,)` whose adaptive weight counts."""


def noised(z: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """`sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise`, per sample, in float32."""
    signal, spread = _roots(timesteps)
    return signal * z.float() + spread * noise.float()


def clean(z_t: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
    """The latent without `eps`, per sample; float32, for at 999 errors of eps grow 14.6 times."""
    signal, spread = _roots(timesteps)
    return (z_t.float() - spread * eps.float()) / signal


def draw_levels(n: int, rules: Rules, generator: torch.Generator) -> Tensor:
    """Which level each of n samples trains, `(n,)` from 0."""
    device = generator.device
    coins = torch.rand(1 if rules.per_batch else n, generator=generator, device=device)
    later = torch.randint(1, max(rules.levels, 2), (n,), generator=generator, device=device)
    return torch.where((coins > rules.first_share) & (rules.levels > 1), later, 0)


def student_pass(
    student: Predict,
    decode: Decode,
    embed: Embed,
    pair: Pair,
    levels: Tensor,
    rules: Rules,
    generator: torch.Generator,
) -> Pass:
    """What the student sees of each sample at its level; nothing in it has a gradient.

    The student runs without gradient before, `max(levels)` times (once with `latents` "target").
    """
    with torch.no_grad():
        walk = _look_back if rules.latents == "target" else _walk
        return walk(student, decode, embed, pair, levels.to(pair.lr.device), rules, generator)


def _walk(
    student: Predict,
    decode: Decode,
    embed: Embed,
    pair: Pair,
    levels: Tensor,
    rules: Rules,
    generator: torch.Generator,
) -> Pass:
    n, device = len(levels), levels.device
    noise = _noise_like(pair.z_hr, generator)
    draw = torch.rand(n, generator=generator, device=generator.device).to(device)
    start = torch.where((draw < rules.lr_start).view(-1, 1, 1, 1), pair.z_lr, pair.z_hr)
    z_t = noised(start, noise, _timesteps(torch.zeros_like(levels)))
    picture, tokens = pair.lr, pair.tokens_lr
    for step in range(int(levels.max()) if n else 0):
        (going,) = (levels > step).nonzero(as_tuple=True)
        t = _timesteps(torch.full_like(going, step))
        eps = _of(student, going)(z_t[going], t, picture[going], tokens[going])
        z_0 = clean(z_t[going], eps, t)
        some = pair.take(going)
        seen, told = _refined(decode, embed, some, z_0, rules)
        fresh = _noise_like(z_0, generator)
        after = noised(z_0, fresh, _timesteps(torch.full_like(going, step + 1)))
        z_t, noise = _put(z_t, going, after), _put(noise, going, fresh)
        picture, tokens = _put(picture, going, seen), _put(tokens, going, told)
    return Pass(z_t, noise, _timesteps(levels), picture, tokens, _weighted_as(levels, rules))


def _look_back(
    student: Predict,
    decode: Decode,
    embed: Embed,
    pair: Pair,
    levels: Tensor,
    rules: Rules,
    generator: torch.Generator,
) -> Pass:
    noise = _noise_like(pair.z_hr, generator)
    picture, tokens = pair.lr, pair.tokens_lr
    (going,) = (levels > 0).nonzero(as_tuple=True)
    if len(going):
        some, t = pair.take(going), _timesteps(levels[going] - 1)
        z_t = noised(some.z_hr, noise[going], t)
        z_0 = clean(z_t, _of(student, going)(z_t, t, some.lr, some.tokens_lr), t)
        seen, told = _refined(decode, embed, some, z_0, rules)
        picture, tokens = _put(picture, going, seen), _put(tokens, going, told)
    timesteps = _timesteps(levels)
    z_t = noised(pair.z_hr, noise, timesteps)
    return Pass(z_t, noise, timesteps, picture, tokens, _weighted_as(levels, rules))


def _of(student: Predict, chosen: Tensor) -> Predict:
    return student.take(chosen) if isinstance(student, Prompted) else student


def _refined(
    decode: Decode, embed: Embed, pair: Pair, z_0: Tensor, rules: Rules
) -> tuple[Tensor, Tensor]:
    """The condition and image tokens of the step after the prediction `z_0`."""
    prediction = decode(z_0).float().clamp(0, 1)
    if rules.signed_condition:
        prediction = prediction * 2 - 1
    w = rules.refine_weight
    picture = w * prediction + (1 - w) * pair.lr
    return picture, embed(picture)


def _weighted_as(levels: Tensor, rules: Rules) -> Tensor:
    if rules.weight_of == "trained":
        return levels
    # the released code has no step before the first: a stand-in there falls into its last case
    return torch.where(levels > 0, levels - 1, len(LEVELS) - 1)


# --- the teacher -----------------------------------------------------------------------------


def draw_teacher_timesteps(draws: int, n: int, generator: torch.Generator) -> Tensor:
    """`(draws, n)` timesteps, uniform in 0..999, each sample's own."""
    return torch.randint(TRAINED_STEPS, (draws, n), generator=generator, device=generator.device)


def teacher_pictures(
    teacher: Predict,
    decode: Decode,
    z_student: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    picture: Tensor,
    tokens: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Timesteps `(B,)` and the teacher's picture `(B, 3, H, W)` in [0, 1] of each draw, in turn.

    Args:
        z_student: the student's clean latent, whose gradient stays out.
        noise: that of the student's own input; one for all draws.
        timesteps: `(draws, B)`.
        picture: what the teacher is conditioned on: the target (HR-regulated), or the input, as in
            ADD.
        tokens: image tokens of `picture`.
    """
    for t in timesteps.to(z_student.device):
        with torch.no_grad():
            z_t = noised(z_student, noise, t)
            z_0 = clean(z_t, teacher(z_t, t, picture, tokens), t)
            target = decode(z_0).float().clamp(0, 1)
        yield t, target


def _timesteps(levels: Tensor) -> Tensor:
    return torch.tensor(LEVELS, device=levels.device)[levels]


def _roots(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = Schedule.trained().alpha_bar
    roots = (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    signal, spread = (r.float().to(timesteps.device)[timesteps].view(-1, 1, 1, 1) for r in roots)
    return signal, spread


def _noise_like(z: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(z.shape, generator=generator, device=generator.device).to(z.device)


def _put(whole: Tensor, chosen: Tensor, part: Tensor) -> Tensor:
    return whole.index_copy(0, chosen, part.to(whole.dtype))
