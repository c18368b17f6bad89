"""The compact network: its budget, its contract, and independence of where a photo is cut."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from addsr.errors import ModelError
from addsr.nets import CompactConfig, CompactNet, Discriminator, build, compact
from addsr.nets.blocks import Norm, ResBlock, in_strips, shuffle_conv
from addsr.nets.compact import enlarge

TINY = CompactConfig(
    widths=(32, 32, 32),
    depths=(1, 1, 1),
    decoder_widths=(32, 32, 32),
    decoder_depth=1,
    context_channels=16,
)


def test_shipped_size_keeps_its_budget() -> None:
    with torch.device("meta"):
        net = CompactNet()
        lr, x = torch.empty(1, 3, 128, 128), torch.empty(1, 3, 512, 512)
        t = torch.empty(1)
    half_bytes = 2 * sum(p.numel() for p in net.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, t, lr)
    assert half_bytes <= 50e6
    assert counter.get_total_flops() / 2 <= 60e9


@pytest.mark.parametrize(("h", "w"), [(8, 8), (8, 24), (40, 16)])
def test_output_is_four_times_the_input(h: int, w: int) -> None:
    net = CompactNet(TINY)
    y = net(torch.randn(2, 3, 4 * h, 4 * w), torch.rand(2), torch.rand(2, 3, h, w))
    assert y.shape == (2, 3, 4 * h, 4 * w)
    assert y.dtype == torch.float32


def test_bf16_weights_still_give_float32_and_nearly_the_same_picture() -> None:
    torch.manual_seed(0)
    net = CompactNet(TINY).eval()
    x, t, lr = torch.randn(1, 3, 64, 64), torch.ones(1), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        exact = net(x, t, lr)
        rough = net.to(torch.bfloat16)(x, t, lr)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.02


def _shaken(config: CompactConfig) -> CompactNet:
    """A network whose near-zero layers are given weight, so that every path matters."""
    torch.manual_seed(1)
    net = CompactNet(config).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ResBlock):
                torch.nn.init.kaiming_uniform_(module.conv2.weight)
        torch.nn.init.normal_(net.decoder.lr_skip.weight, std=0.3)
    return net


def _change_far_from_cut(config: CompactConfig) -> float:
    """How much the left part changes when the right part of the photo is cut off."""
    net = _shaken(config)
    lr, noise = torch.rand(1, 3, 16, 160), torch.randn(1, 3, 64, 640)
    cut = 128
    t = torch.ones(1)
    with torch.no_grad():
        context = net.context(lr)
        whole = net(noise, t, lr, context=context)
        part = net(noise[..., : 4 * cut], t, lr[..., :cut], context=context)
    return float((whole[..., :64] - part[..., :64]).abs().max())


def test_a_pixel_far_from_the_cut_does_not_know_of_it() -> None:
    assert _change_far_from_cut(TINY) < 1e-5


def test_the_context_of_a_photo_is_the_mean_of_its_parts() -> None:
    net = _shaken(TINY)
    lr = torch.rand(1, 3, 64, 256)
    with torch.no_grad():
        whole = net.context(lr)
        parts = [net.context(p) for p in lr.split(128, dim=-1)]
    assert whole is not None
    mean = torch.stack([p for p in parts if p is not None]).mean(dim=0)
    # equal but for the seam, where each part pads with zeros
    torch.testing.assert_close(mean, whole, atol=0.02, rtol=0.05)


def test_the_context_changes_the_picture() -> None:
    net = _shaken(TINY)
    x, t, lr = torch.randn(1, 3, 64, 64), torch.ones(1), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        own = net.context(lr)
        assert own is not None
        torch.testing.assert_close(net(x, t, lr), net(x, t, lr, context=own))
        assert (net(x, t, lr) - net(x, t, lr, context=own + 1)).abs().mean() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["plain", "group"])
def test_inference_in_strips_and_in_place_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, norm: Norm
) -> None:
    net = _shaken(CompactConfig(**{**TINY.to_dict(), "decoder_depth": 2, "decoder_norm": norm}))
    net = net.to(dtype)
    inputs = torch.randn(2, 3, 224, 96), torch.ones(2), torch.rand(2, 3, 56, 24)
    kept = [x.clone() for x in inputs]
    sizes: list[int] = []
    net.decoder.up1.register_forward_hook(lambda _m, x, _y: sizes.append(x[0].shape[-2]))
    monkeypatch.setattr(compact, "_STRIP_NUMBERS", 1)
    with torch.no_grad():
        whole = net(*inputs)
    with torch.inference_mode():
        stripped = net(*inputs)
    # strips of 12 rows, with 3 rows more at each cut; group norm needs the whole picture
    assert sizes == ([56, 15, 18, 18, 18, 11] if norm == "plain" else [56, 56])
    # kernels may add up in another order for another size
    limit = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(stripped, whole, atol=limit, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_a_strip_with_too_little_halo_would_show() -> None:
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    x = torch.rand(1, 1, 11, 5)
    with torch.no_grad():
        exact = in_strips(layer, x, scale=1, halo=1, rows=4)
        torch.testing.assert_close(exact, layer(x))
        assert (in_strips(layer, x, scale=1, halo=0, rows=4) - layer(x)).abs().max() > 1e-3


def test_group_norm_would_depend_on_the_cut() -> None:
    config = CompactConfig(**{**TINY.to_dict(), "norm": "group"})
    assert _change_far_from_cut(config) > 1e-4


def test_the_previous_prediction_and_the_gate_reach_the_output() -> None:
    net = _shaken(TINY)
    x, t, lr = torch.randn(1, 3, 64, 64), torch.ones(1), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        plain = net(x, t, lr)
        assert torch.equal(plain, net(x, t, lr, enlarge(lr)))
        assert (plain - net(x, t, lr, torch.rand(1, 3, 64, 64))).abs().mean() > 1e-3
        assert (plain - net(x, t, lr, None, 0.0)).abs().mean() > 1e-4
        per_sample = net(x, t, lr, None, torch.tensor([0.0]))
        assert torch.allclose(per_sample, net(x, t, lr, None, 0.0))


def test_a_fresh_shuffle_layer_has_no_checkerboard() -> None:
    layer = shuffle_conv(8, 4, kernel=3)
    y = torch.nn.functional.pixel_shuffle(layer(torch.rand(1, 8, 6, 6)), 2)
    cells = y.unfold(2, 2, 2).unfold(3, 2, 2)
    assert (cells - cells[..., :1, :1]).abs().max() < 1e-6


def test_discriminator_gives_two_maps_a_scale() -> None:
    logits, features = Discriminator().patches(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert len(logits) == 6
    assert len(features) == 9
    assert logits[0].shape == (2, 1, 4, 4)


def test_a_network_is_rebuilt_from_its_stored_configuration() -> None:
    net = build("compact", TINY.to_dict())
    assert isinstance(net, CompactNet)
    assert net.config == TINY
    with pytest.raises(ModelError, match="knows compact"):
        build("huge", {})
    with pytest.raises(ModelError, match="not understood"):
        build("compact", {"colour": 3})


def test_a_compiled_network_is_one_graph() -> None:
    torch.manual_seed(0)
    net = CompactNet(TINY)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    inputs = torch.randn(1, 3, 32, 32), torch.ones(1), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), net(*inputs))
    compiled(*inputs).sum().backward()
    assert all(p.grad is not None for p in net.decoder.stage2.parameters())
