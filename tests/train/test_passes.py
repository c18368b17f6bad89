"""AddSR's passes: self-refinement as in sampling, the HR-regulated teacher, the released code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addsr.errors import OptionError
from addsr.train.passes import (
    Pair,
    Rules,
    clean,
    draw_levels,
    draw_teacher_timesteps,
    noised,
    student_pass,
    teacher_pictures,
)
from addsr.train.quirks import QUIRKS

STEPS = (999, 749, 499, 249)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = (1 - BETAS).cumprod(0)


@dataclass
class Toys:
    """Networks of a few operations that depend on all they are given, and a record of calls."""

    calls: list[tuple[list[int], Tensor]] = field(default_factory=list)

    def predict(self, z_t: Tensor, t: Tensor, picture: Tensor, tokens: Tensor) -> Tensor:
        self.calls.append((t.tolist(), picture))
        small = F.avg_pool2d(picture, 4).mean(1, keepdim=True)
        told = tokens.mean((1, 2)).view(-1, 1, 1, 1)
        return 0.9 * z_t + 0.05 * (t.view(-1, 1, 1, 1) / 1000) * small + 0.1 * told

    def decode(self, z: Tensor) -> Tensor:
        return 0.5 + 0.4 * F.interpolate(z[:, :3], scale_factor=4)

    def embed(self, picture: Tensor) -> Tensor:
        return picture.flatten(2).transpose(1, 2)[:, ::7] * 2 - 1


def pair(n: int, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    lr = torch.rand(n, 3, 16, 16)
    return Pair(lr, torch.randn(n, 4, 4, 4), torch.randn(n, 4, 4, 4), Toys().embed(lr))


def dice(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_pass_at_each_level_is_what_sampling_gives_the_student() -> None:
    toys, given, w = Toys(), pair(1), 0.5
    for level in range(4):
        got = student_pass(
            toys.predict, toys.decode, toys.embed, given,
            torch.tensor([level]), Rules(refine_weight=w), dice(),
        )  # fmt: skip
        # sampling as in the paper, transcribed, with the same draws
        g = dice()
        noise = torch.randn(1, 4, 4, 4, generator=g)
        torch.rand(1, generator=g)  # where the first latent comes from
        a = ALPHA_BAR[999]
        z = a.sqrt() * given.z_lr + (1 - a).sqrt() * noise
        picture, tokens = given.lr, given.tokens_lr
        for step in range(level):
            a = ALPHA_BAR[STEPS[step]]
            eps = toys.predict(z.float(), torch.tensor([STEPS[step]]), picture, tokens)
            x_0 = (z - (1 - a).sqrt() * eps) / a.sqrt()
            seen = toys.decode(x_0.float()).clamp(0, 1)
            picture = w * seen + (1 - w) * given.lr
            tokens = toys.embed(picture)
            noise = torch.randn(1, 4, 4, 4, generator=g)
            b = ALPHA_BAR[STEPS[step + 1]]
            z = b.sqrt() * x_0 + (1 - b).sqrt() * noise
        torch.testing.assert_close(got.z_t, z.float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.picture, picture, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.tokens, tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.noise, noise)
        assert got.timesteps.tolist() == [STEPS[level]] and got.weighted_as.tolist() == [level]


def test_samples_of_different_levels_go_together_and_are_run_no_more_than_needed() -> None:
    toys, given = Toys(), pair(5)
    levels = torch.tensor([0, 3, 1, 0, 2])
    got = student_pass(toys.predict, toys.decode, toys.embed, given, levels, Rules(), dice())
    assert [call[0] for call in toys.calls] == [[999] * 3, [749] * 2, [499]]
    assert got.timesteps.tolist() == [999, 249, 749, 999, 499]
    for b in (0, 3):
        assert torch.equal(got.picture[b], given.lr[b])
        assert torch.equal(got.tokens[b], given.tokens_lr[b])
        torch.testing.assert_close(
            got.z_t[b : b + 1],
            noised(given.z_lr[b : b + 1], got.noise[b : b + 1], torch.tensor([999])),
        )
    assert not any(torch.equal(got.picture[b], given.lr[b]) for b in (1, 2, 4))


def test_nothing_the_student_is_given_has_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    toys = Toys()
    got = student_pass(
        lambda *a: weight * toys.predict(*a), toys.decode, toys.embed, pair(2),
        torch.tensor([1, 3]), Rules(), dice(),
    )  # fmt: skip
    assert not any(x.requires_grad for x in (got.z_t, got.noise, got.picture, got.tokens))


def test_the_first_latent_is_the_targets_where_rules_say_so() -> None:
    toys, given = Toys(), pair(2)
    rules = Rules(lr_start=0.0)
    got = student_pass(
        toys.predict, toys.decode, toys.embed, given, torch.zeros(2).long(), rules, dice()
    )
    torch.testing.assert_close(got.z_t, noised(given.z_hr, got.noise, torch.tensor([999, 999])))


def test_the_released_training_is_reproduced() -> None:
    toys, given = Toys(), pair(4)
    rules, levels = Rules().released(), torch.tensor([0, 1, 2, 3])
    got = student_pass(toys.predict, toys.decode, toys.embed, given, levels, rules, dice())
    # one pass before, on the noised target at the timestep before, whose condition is the input
    assert len(toys.calls) == 1 and toys.calls[0][0] == [999, 749, 499]
    assert torch.equal(toys.calls[0][1], given.lr[1:])
    t, before = torch.tensor([749, 499, 249]), torch.tensor([999, 749, 499])
    torch.testing.assert_close(got.z_t[1:], noised(given.z_hr[1:], got.noise[1:], t))
    z = noised(given.z_hr[1:], got.noise[1:], before)
    x_0 = clean(z, toys.predict(z, before, given.lr[1:], given.tokens_lr[1:]), before)
    signed = toys.decode(x_0).clamp(0, 1) * 2 - 1  # quirks a and b
    torch.testing.assert_close(got.picture[1:], signed)
    torch.testing.assert_close(got.tokens[1:], toys.embed(signed))
    assert got.weighted_as.tolist() == [3, 0, 1, 2]  # quirk c: 4.6305, 0.5, 1.05, 2.205
    assert torch.equal(got.picture[0], given.lr[0])


def test_every_quirk_with_a_switch_is_set_by_released_and_listed_once() -> None:
    plain, released = Rules(), Rules().released()
    switched = {q.switch for q in QUIRKS if q.switch}
    rules = {n for n in vars(plain) if getattr(plain, n) != getattr(released, n)}
    assert switched - {"is_normalised"} == rules - {"lr_start", "per_batch"}
    assert [q.key for q in QUIRKS] == list("abcdefghijk")


def test_levels_are_drawn_in_their_shares() -> None:
    drawn = draw_levels(4000, Rules(first_share=0.4), dice())
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.03, rtol=0)
    assert set(draw_levels(50, Rules(levels=1, first_share=0.0), dice()).tolist()) == {0}
    assert set(draw_levels(200, Rules(levels=2), dice()).tolist()) == {0, 1}
    together = Rules(per_batch=True)
    first = [(draw_levels(20, together, dice(s)) == 0) for s in range(40)]
    assert all(bool(x.all()) or not bool(x.any()) for x in first)
    assert 10 <= sum(bool(x.all()) for x in first) <= 30


def test_the_teacher_answers_to_the_students_latent_under_the_target() -> None:
    toys = Toys()
    torch.manual_seed(0)
    z, noise, hr = (
        torch.randn(2, 4, 4, 4, requires_grad=True),
        torch.randn(2, 4, 4, 4),
        torch.rand(2, 3, 16, 16),
    )
    tokens, t = toys.embed(hr), draw_teacher_timesteps(4, 2, dice())
    found = list(teacher_pictures(toys.predict, toys.decode, z, noise, t, hr, tokens))
    assert len(found) == 4
    for k, (told, picture) in enumerate(found):
        assert torch.equal(told, t[k]) and not picture.requires_grad
        for b in range(2):
            a = ALPHA_BAR[t[k, b]]
            z_t = (a.sqrt() * z[b] + (1 - a).sqrt() * noise[b])[None].float()
            eps = toys.predict(z_t, t[k, b : b + 1], hr[b : b + 1], tokens[b : b + 1])
            x_0 = (z_t - (1 - a).sqrt() * eps) / a.sqrt()
            expected = toys.decode(x_0.float()).clamp(0, 1)
            torch.testing.assert_close(picture[b : b + 1], expected.detach(), atol=1e-4, rtol=1e-4)


def test_teacher_timesteps_are_uniform_over_all() -> None:
    drawn = draw_teacher_timesteps(4, 5000, dice())
    assert drawn.shape == (4, 5000)
    assert int(drawn.min()) == 0 and int(drawn.max()) == 999
    assert float(drawn.float().mean()) == pytest.approx(499.5, abs=8)


def test_half_precision_answers_are_judged_in_float32() -> None:
    z_0, noise, t = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.tensor([999])
    back = clean(noised(z_0, noise, t), noise, t)
    torch.testing.assert_close(back, z_0, atol=1e-4, rtol=1e-4)
    assert clean(z_0.half(), noise.half(), t).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 5}, "levels: 5 is not 1 to 4"),
        ({"refine_weight": 1.5}, "refine_weight: 1.5"),
        ({"lr_start": -1.0}, "lr_start: -1.0"),
        ({"latents": "hr"}, "latents: 'hr' is not own or target"),
        ({"weight_of": "next"}, "weight_of: 'next'"),
    ],
)
def test_impossible_rules_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(Rules(), **change)
