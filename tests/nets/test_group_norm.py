"""Group normalisation by channels gives what torch's own gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from addsr.nets import group_norm
from addsr.nets.group_norm import (
    ChannelwiseGroupNorm,
    channelwise_group_norm,
    use_channelwise,
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_it_is_torchs_group_norm(
    layout: torch.memory_format, dtype: torch.dtype, mean: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 9, 7) * torch.rand(1, 12, 1, 1) + mean * torch.randn(1, 12, 1, 1)
    x = x.to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(12).to(dtype), torch.randn(12).to(dtype)
    got = channelwise_group_norm(x, 4, weight, bias, 1e-6)
    wanted = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-6)
    assert got.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), wanted, rtol=step, atol=max(step, 2e-5))


def test_networks_keep_names_and_results_and_other_norms() -> None:
    class Own(nn.GroupNorm):
        pass

    net = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), Own(2, 4), nn.LayerNorm(3))
    x, names = torch.randn(1, 4, 3, 3), list(net.state_dict())
    wanted = net(x)
    use_channelwise(net)
    assert isinstance(net[0], ChannelwiseGroupNorm) and type(net[2]) is Own
    assert list(net.state_dict()) == names and torch.equal(net(x), wanted)


def test_compiled_maps_that_are_large_enough_take_the_other_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_norm, "_WHERE", ("cpu",))
    taken: list[tuple[int, ...]] = []

    def count(x: torch.Tensor, *more: object) -> torch.Tensor:
        taken.append(tuple(x.shape))
        return channelwise_group_norm(x, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(group_norm, "channelwise_group_norm", count)
    net = nn.GroupNorm(2, 4)
    use_channelwise(net)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for shape in ((1, 4, 128, 128), (1, 4, 127, 128), (1, 4, 20000)):
        x = torch.randn(shape)
        torch.testing.assert_close(net(x), F.group_norm(x, 2), rtol=1e-4, atol=1e-5)
    assert taken == [(1, 4, 128, 128)]
