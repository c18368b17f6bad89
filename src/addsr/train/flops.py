"""Counted work of a network, for throughput figures."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from addsr.nets import CompactNet, Discriminator


def forward_flops(net: CompactNet, hr_px: int) -> float:
    """Floating-point operations (two per multiply-add) of one forward pass on one crop.

    Counted on the meta device, so it costs no arithmetic.
    """
    meta = copy.deepcopy(net).to("meta").float()
    lr = torch.empty(1, 3, hr_px // net.scale, hr_px // net.scale, device="meta")
    x = torch.empty(1, 3, hr_px, hr_px, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(x, torch.empty(1, device="meta"), lr)
    return float(counter.get_total_flops())


def discriminator_flops(net: Discriminator, hr_px: int) -> float:
    """Floating-point operations of one pass of the pixel part on one crop."""
    meta = copy.deepcopy(net.patches).to("meta").float()
    x = torch.empty(1, 3, hr_px, hr_px, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(x, x)
    return float(counter.get_total_flops())


def counted(net: nn.Module, *inputs: Tensor) -> float:
    """Floating-point operations of one pass of a network on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops())
