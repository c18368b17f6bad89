"""The compact network conditioned as in StableSR: budget, tiles, and what reaches the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from addsr.nets import CompactConfig, CompactNet, build
from addsr.nets.blocks import ResBlock
from addsr.nets.time_aware import STAGES, SftLayer

SMALL: dict[str, Any] = {
    "widths": (32, 48, 64),
    "depths": (2, 1, 2),
    "decoder_widths": (32, 32, 32),
    "decoder_depth": 1,
    "context_channels": 16,
    "conditioning": "time-aware",
    "guide_channels": 32,
}


def shaken(**changes: Any) -> CompactNet:
    """A network whose layers that start at zero, or near it, have weight."""
    torch.manual_seed(1)
    net = CompactNet(CompactConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ResBlock):
                torch.nn.init.kaiming_uniform_(module.conv2.weight)
            elif isinstance(module, SftLayer):
                torch.nn.init.normal_(module.gamma_beta.weight, std=0.2)
        torch.nn.init.normal_(net.decoder.lr_skip.weight, std=0.3)
    return net


def inputs(h: int = 16, w: int = 16, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 3, 4 * h, 4 * w), torch.ones(batch), torch.rand(batch, 3, h, w)


def test_the_time_aware_size_keeps_the_budget_of_the_compact_model() -> None:
    with torch.device("meta"):
        net = CompactNet(CompactConfig(conditioning="time-aware"))
        x, t, lr = inputs(128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, t, lr)
    assert 2 * sum(p.numel() for p in net.parameters()) <= 50e6
    assert counter.get_total_flops() / 2 <= 60e9


def test_concatenation_has_the_tensors_it_always_had() -> None:
    plain = CompactNet(CompactConfig(**{**SMALL, "conditioning": "concat"})).state_dict()
    assert plain["stem.weight"].shape[1] == 32 + 2 * 192
    assert "lr_in.weight" in plain
    assert not any(name.startswith("guide") for name in plain)


def test_the_low_resolution_picture_does_not_enter_the_stem() -> None:
    net = shaken()
    assert net.stem.in_channels == 192
    assert not any(name.startswith("lr_in") for name in net.state_dict())


def test_every_residual_block_of_the_unet_is_modulated() -> None:
    net = shaken()
    assert net.guide is not None
    calls = {stage: 0 for stage in STAGES}
    for stage in STAGES:
        layers: Any = net.guide.sft[stage]
        assert len(layers) == len(getattr(net, stage))
        for layer in layers:
            layer.register_forward_hook(lambda *_, s=stage: calls.update({s: calls[s] + 1}))
    with torch.no_grad():
        net(*inputs())
    assert calls == {"enc0": 2, "enc1": 1, "mid": 2, "dec1": 1, "dec0": 2}


def test_modulation_is_equation_1_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = SftLayer(6, 4)
    h, features = torch.randn(2, 6, 5, 7), torch.randn(2, 4, 5, 7)
    assert torch.equal(layer(h, features), h)  # gamma and beta start at zero
    torch.nn.init.normal_(layer.gamma_beta.weight)
    gamma, beta = layer.gamma_beta(torch.nn.functional.silu(layer.shared(features))).chunk(2, 1)
    torch.testing.assert_close(layer(h, features), (1 + gamma) * h + beta)


def test_the_time_reaches_the_encoder_unless_it_is_left_out() -> None:
    _, _, lr = inputs()
    large = torch.rand(1, 3, 64, 64)

    def change(net: CompactNet, t: float, context: Tensor | None) -> float:
        """Of the encoder's maps, against those at t = 1 with the picture's own context."""
        assert net.guide is not None
        told = [net._embed(torch.tensor([s]), lr, c)[1] for s, c in ((1.0, None), (t, context))]
        one, other = (net.guide(lr * 2 - 1, large, x) for x in told)
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    with torch.no_grad():
        aware, blind = shaken(), shaken(guide_time=False)
        assert change(aware, 0.1, None) > 1e-3
        assert change(blind, 0.1, None) == 0
        other = torch.randn(1, 32)
        assert change(aware, 1.0, other) > 1e-3 and change(blind, 1.0, other) > 1e-3
        # the ablation leaves out the time and nothing else
        assert sum(p.numel() for p in aware.parameters()) == sum(
            p.numel() for p in blind.parameters()
        )
        without = shaken(guide_time=False, context_channels=0)
        assert change(without, 0.1, None) == 0


def test_all_inputs_reach_the_output() -> None:
    net = shaken()
    x, t, lr = inputs()
    with torch.no_grad():
        plain = net(x, t, lr)
        context = net.context(lr)
        changed = {
            "noise": net(x + 0.1, t, lr, context=context),
            "time": net(x, t / 2, lr),
            "lr": net(x, t, 1 - lr, context=context),
            "previous prediction": net(x, t, lr, torch.rand(1, 3, 64, 64)),
            "gate": net(x, t, lr, None, 0.0),
        }
    for name, picture in changed.items():
        assert (plain - picture).abs().mean() > 1e-4, name


def test_a_pixel_far_from_the_cut_does_not_know_of_it() -> None:
    net = shaken()
    x, t, lr = inputs(16, 160)
    with torch.no_grad():
        context = net.context(lr)
        whole = net(x, t, lr, context=context)
        part = net(x[..., :512], t, lr[..., :128], context=context)
    assert (whole[..., :64] - part[..., :64]).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_working_in_place_changes_nothing(dtype: torch.dtype) -> None:
    net = shaken().to(dtype)
    given = inputs(24, 16)
    kept = [x.clone() for x in given]
    with torch.no_grad():
        plain = net(*given)
    with torch.inference_mode():
        spared = net(*given)
    torch.testing.assert_close(spared, plain, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_with_a_grey_base_and_a_fresh_guide_the_picture_is_not_seen() -> None:
    torch.manual_seed(0)
    net = CompactNet(CompactConfig(**SMALL, base="grey")).eval()
    x, t, lr = inputs()
    with torch.no_grad():
        assert torch.equal(net(x, t, lr), net(x, t, torch.rand_like(lr)))
    names = [name for name, _ in net.named_parameters()]
    assert {n.split(".")[0] for n in names if net.sees_lr(n)} == {
        "guide", "context_encoder", "context_in", "decoder",
    }  # fmt: skip
    assert [n for n in names if n.startswith("decoder") and net.sees_lr(n)] == [
        "decoder.lr_skip.weight",
        "decoder.lr_skip.bias",
    ]


def test_it_is_rebuilt_from_its_stored_configuration() -> None:
    net = shaken()
    again = build("compact", net.config.to_dict())
    again.load_state_dict(net.state_dict())
    given = inputs(8, 8)
    with torch.no_grad():
        assert torch.equal(again(*given), net(*given))


@pytest.mark.slow
def test_compiled_it_is_one_graph() -> None:
    net = shaken()
    given = inputs(8, 8)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*given), net(*given))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conditioning", "attention"),
        ("base", "black"),
        ("guide_channels", 0),
        ("guide_depth", 1.5),
        ("guide_time", 1),
    ],
)
def test_values_that_are_not_possible_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} = "):
        CompactConfig(**{**SMALL, field: value})
