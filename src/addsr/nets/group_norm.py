"""Group normalisation as a GPU's compiler does it best.

In `channels_last` the channels of a group lie side by side in every pixel. torch.compile sums
groups with strides across them: 734 us for 256 channels of 512x512 in bf16 on an H100, where three
passes over the memory take 120. Sums of each channel first, merged into groups afterwards, read
whole lines: 150 us.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_PIXELS = 128 * 128
"""Below this the compiler's own way is as fast (H100, 320 to 1280 channels)."""
_WHERE = ("cuda",)
"""Devices whose code generator gains by it."""


class ChannelwiseGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` whose statistics are made of each channel's, once it is compiled for a GPU.

    Anywhere else it is `nn.GroupNorm` itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not torch.compiler.is_compiling() or x.device.type not in _WHERE or x.ndim != 4:
            return super().forward(x)
        if x.shape[-2] * x.shape[-1] < LEAST_PIXELS:
            return super().forward(x)
        return channelwise_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def channelwise_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """`F.group_norm` of `(B, C, H, W)`, with float32 statistics and in the type of `x`.

    The variance of a group is the mean of its channels' variances plus the variance of their means
    (Chan, Golub and LeVeque, 1979), which loses no digits to a mean far from zero.
    """
    values = x.float()
    variance, mean = torch.var_mean(values, dim=(2, 3), correction=0)
    variance, mean = variance.unflatten(1, (groups, -1)), mean.unflatten(1, (groups, -1))
    centre = mean.mean(dim=2, keepdim=True)
    spread = (variance + (mean - centre).square()).mean(dim=2, keepdim=True)
    scale = (spread + eps).rsqrt() * weight.float().unflatten(0, (groups, -1))
    shift = bias.float().unflatten(0, (groups, -1)) - centre * scale
    scale, shift = scale.flatten(1)[..., None, None], shift.flatten(1)[..., None, None]
    return (values * scale + shift).to(x.dtype)


def use_channelwise(net: nn.Module) -> None:
    """Has every group normalisation of `net` that torch made compute in this way where it pays.

    Names, weights and results stay what they are.
    """
    for module in net.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.__class__ = ChannelwiseGroupNorm
