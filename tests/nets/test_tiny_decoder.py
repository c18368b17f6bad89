"""The tiny decoder: diffusers' layers, exact strips, shapes."""

from __future__ import annotations

import pytest
import torch

from addsr.errors import ConfigError
from addsr.nets.tiny_decoder import TinyDecoder, TinyDecoderConfig, decode_in_strips

diffusers = pytest.importorskip("diffusers", reason="the diffusion extra is not installed")


def make(width: int = 8, blocks: tuple[int, ...] = (2, 1, 1)) -> TinyDecoder:
    return TinyDecoder(TinyDecoderConfig(width, blocks)).eval().requires_grad_(False)


def test_it_decodes_as_diffusers_does() -> None:
    whole = diffusers.AutoencoderTiny(
        decoder_block_out_channels=(8, 8, 8),
        encoder_block_out_channels=(8, 8, 8),
        num_decoder_blocks=(2, 1, 1),
        num_encoder_blocks=(1, 1, 1),
    ).eval()
    net = make()
    net.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("decoder.")})
    latent = torch.randn(2, 4, 6, 5) * 2
    with torch.no_grad():
        wanted = whole.decode(latent).sample
    assert wanted.shape == (2, 3, 24, 20)
    torch.testing.assert_close(net(latent), wanted)


def test_the_published_size_has_as_many_numbers_as_taesd() -> None:
    with torch.device("meta"):
        net = TinyDecoder()
    assert sum(p.numel() for p in net.parameters()) == 1_222_531
    assert (net.factor, net.reach) == (8, 19)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_strips_give_the_values_of_the_whole(rows: int) -> None:
    net = make().double()
    latent = torch.randn(1, 4, 40, 3, dtype=torch.float64)
    wanted = net(latent)
    got = decode_in_strips(net, latent, rows * 3 * net.factor**2)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_a_pixel_depends_on_no_more_than_its_reach() -> None:
    net = make(blocks=(3, 2, 1)).double()
    latent = torch.randn(1, 4, 64, 2, dtype=torch.float64)
    other = latent.clone()
    other[:, :, 0] += 5
    rows = (net(latent) != net(other)).any(dim=3).any(dim=1)[0].nonzero()
    assert net.reach - 1 <= int(rows.max()) // net.factor <= net.reach


@pytest.mark.parametrize(("width", "blocks"), [(0, (1,)), (8, ()), (8, (1, 0))])
def test_shapes_that_cannot_be_are_refused(width: int, blocks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must all be 1 or more"):
        TinyDecoderConfig(width, blocks)
