"""AddSR's discriminator: who gets gradients, what is drawn, and the teacher's own features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from addsr.errors import ModelError, OptionError
from addsr.nets.dino import TokenMaps, Vit, VitConfig
from addsr.nets.projected import ProjectedHeads
from addsr.nets.views import PLAIN, ViewSpec
from addsr.train.passes import noised
from addsr.train.projection import BlockMaps, ProjectedDiscriminator


def discriminator(views: ViewSpec | None = None, seed: int = 0) -> ProjectedDiscriminator:
    torch.manual_seed(seed)
    vit = Vit(VitConfig(width=16, depth=2, heads=2, patch=4, side=16, hidden=24))
    extractor = TokenMaps(vit, (0, 1))
    heads = ProjectedHeads(extractor.widths, 6, 8)
    generator = torch.Generator().manual_seed(7)
    return ProjectedDiscriminator(extractor, heads, generator, views or ViewSpec(crop_px=16))


def test_learning_gives_gradients_to_heads_alone() -> None:
    d, c = discriminator(), torch.randn(2, 6)
    real = torch.rand(2, 3, 24, 24, requires_grad=True)
    fake = torch.rand(2, 3, 24, 24, requires_grad=True)
    loss = d.learn(real, fake, c, with_r1=True)
    loss.total(0.1).backward()
    assert float(loss.r1.detach()) > 0
    assert real.grad is None and fake.grad is None
    assert all(p.grad is not None for p in d.heads.parameters())
    assert float(d.learn(real, fake, c).r1) == 0


def test_opposing_gives_gradients_to_the_student_alone_and_leaves_the_norms() -> None:
    d, c = discriminator(), torch.randn(2, 6)
    before = {k: v.clone() for k, v in d.heads.state_dict().items()}
    fake = torch.rand(2, 3, 24, 24, requires_grad=True)
    d.oppose(fake, c).backward()
    assert fake.grad is not None and float(fake.grad.abs().max()) > 0
    assert all(p.grad is None and p.requires_grad for p in d.heads.parameters())
    assert d.heads.training
    assert all(torch.equal(v, before[k]) for k, v in d.heads.state_dict().items())


def test_each_call_has_views_of_its_own_and_a_seed_repeats_them() -> None:
    fake, c = torch.rand(2, 3, 24, 24), torch.randn(2, 6)
    d, again = discriminator(), discriminator()
    first, second = (float(d.oppose(fake, c).detach()) for _ in range(2))
    assert first != second
    assert [float(again.oppose(fake, c)) for _ in range(2)] == [first, second]


def test_heads_learn_to_tell_two_kinds_of_pictures() -> None:
    d, c = discriminator(PLAIN), torch.randn(4, 6)
    torch.manual_seed(1)
    real, fake = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16) * 0.2
    optimizer = torch.optim.Adam(d.heads.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = d.learn(real, fake, c).total(0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


# --- the teacher's own features ----------------------------------------------------------------


class TinyUnet(nn.Module):
    """Blocks as diffusers has them: the outer ones give a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(8, 12, 1)
        self.up = nn.Conv2d(12, 4, 1)
        self.ran = 0

        self.pair = Paired(self.down)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        h, _ = self.pair(z)
        h = self.mid(h + t.view(-1, 1, 1, 1) / 1000)
        self.ran += 1
        return self.up(h)


class Paired(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> tuple[Tensor, tuple[()]]:
        return self.inner(z), ()


def test_block_maps_are_the_blocks_outputs_and_the_rest_is_not_run() -> None:
    torch.manual_seed(0)
    unet = TinyUnet()
    maps = BlockMaps(unet, unet, ("pair", "mid"))
    z, noise, t = (
        torch.randn(2, 4, 8, 8, requires_grad=True),
        torch.randn(2, 4, 8, 8),
        torch.tensor([10, 900]),
    )
    a, b = maps(z, noise, t)
    h = unet.down(noised(z, noise, t))
    torch.testing.assert_close(a, h.flatten(2))
    torch.testing.assert_close(b, unet.mid(h + t.view(-1, 1, 1, 1) / 1000).flatten(2))
    assert unet.ran == 0
    b.sum().backward()
    assert z.grad is not None and float(z.grad.abs().max()) > 0
    condition = maps.condition(z, noise, t)
    torch.testing.assert_close(condition, b.detach().mean(-1))
    unet(z, t)  # no hook is left
    assert unet.ran == 1


def test_the_teachers_maps_serve_the_heads_without_any_file() -> None:
    torch.manual_seed(0)
    unet = TinyUnet().requires_grad_(False)
    maps = BlockMaps(unet, unet, ("pair", "mid"))
    noise, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    heads = ProjectedHeads((8, 12), 12, 8)
    d = ProjectedDiscriminator(lambda z: maps(z, noise, t), heads, torch.Generator())
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    condition = maps.condition(torch.randn(2, 4, 8, 8), noise, t)
    d.oppose(z, condition).backward()
    assert z.grad is not None and float(z.grad.abs().max()) > 0
    d.learn(torch.randn(2, 4, 8, 8), z, condition).total(0.0).backward()


def test_blocks_that_are_not_there_or_do_not_run_are_named() -> None:
    unet = TinyUnet()
    with pytest.raises(OptionError, match="blocks: middle"):
        BlockMaps(unet, unet, ("mid", "middle"))
    with pytest.raises(OptionError, match="none"):
        BlockMaps(unet, unet, ())
    maps = BlockMaps(unet, lambda z, t: unet.pair(z), ("pair", "mid"))
    with pytest.raises(ModelError, match="mid did not run"):
        maps(torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([5]))
    assert not unet.pair._forward_hooks  # pyright: ignore
