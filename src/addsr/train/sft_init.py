"""A start for the modulation layers that leaves the frozen U-Net nearly as it was.

A layer is `GN(h) * (1 + gamma) + beta`. With PyTorch's own initialisation gamma and beta are random
and the normalisation gives every group of channels unit variance, which the frozen network never
saw. Here gamma and beta start at zero, and the normalisation's own scale and shift at the standard
deviations and means that the groups have on a first batch: what it takes away it gives back, but
for what differs between samples.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from addsr.nets.stablesr import SftLayer, SftLayers
from addsr.nets.stablesr.encoder import GROUPS
from addsr.nets.stablesr.sft import module_name

from .optim import Trained, process_count


@torch.no_grad()
def undo_normalisation(
    trained: Trained, unet: Any, z_t: Tensor, t: Tensor, context: Tensor
) -> None:
    """Sets the weights of `trained`, the modulation layers of `unet`, which are not attached now.

    Args:
        z_t: noisy latents `(B, 4, h, w)` at timesteps `t` `(B,)`.
        context: embedded prompt `(B, tokens, width)`.
    """
    layers = cast("SftLayers", trained.net)
    seen: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            groups = output.float().unflatten(1, (GROUPS, -1)).flatten(2)  # (B, GROUPS, numbers)
            seen[name] = torch.stack([groups.std(dim=2).mean(0), groups.mean(dim=(0, 2))])

        return hook

    places = layers.config.places
    handles = [
        unet.get_submodule(f"{place}.conv2").register_forward_hook(listen(module_name(place)))
        for place in places
    ]
    try:
        unet(z_t, t, encoder_hidden_states=context)
    finally:
        for handle in handles:
            handle.remove()
    if process_count() > 1:  # every process has seen other pictures, and all must start alike
        for statistics in seen.values():
            dist.all_reduce(statistics)
            statistics /= process_count()
    state = {k: v.clone() for k, v in trained.state("masters").items()}
    for name, (scale, shift) in seen.items():
        layer = cast("SftLayer", layers[name])
        per_group = layer.norm.num_channels // GROUPS
        state[f"{name}.norm.weight"] = scale.repeat_interleave(per_group)
        state[f"{name}.norm.bias"] = shift.repeat_interleave(per_group)
        for part in ("gamma", "beta"):
            for what in ("weight", "bias"):
                state[f"{name}.{part}.{what}"].zero_()
    trained.load(state)
