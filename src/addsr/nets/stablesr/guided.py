"""U-Net, encoder and modulation layers together: the network output of one denoising step."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from addsr.errors import InputError

from .encoder import TimeAwareEncoder
from .sft import Guide, SftLayers


class GuidedUnet(nn.Module):
    """What the published model predicts (noise, or v) from a noisy latent and a clean one.

    The modulation layers stay attached to `unet` as long as `self.guide` is not detached.
    """

    def __init__(self, unet: nn.Module, encoder: TimeAwareEncoder, layers: SftLayers) -> None:
        super().__init__()
        self.unet = unet
        self.encoder = encoder
        self.layers = layers
        self.guide = Guide(unet, layers)

    def forward(
        self,
        z_t: Tensor,
        timesteps: Tensor,
        z_lr: Tensor,
        context: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """The network output, of the shape of `z_t` `(B, 4, h, w)`.

        With `negative` and a `guidance` s other than 1 it is `out_neg + s * (out_pos - out_neg)`.
        Both branches see the low-resolution latent, so the encoder runs once for the two.

        Args:
            timesteps: `(B,)`, 0..999.
            z_lr: the scaled latent of the enlarged input, never noised, of the shape of `z_t`.
            context: embedded prompt `(1 or B, tokens, width)`.
            negative: embedded negative prompt of the same shape as `context`.

        Raises:
            InputError: shapes that do not fit each other or the network.
        """
        if z_lr.shape != z_t.shape:
            raise InputError(f"z_lr {tuple(z_lr.shape)} and z_t {tuple(z_t.shape)} differ in shape")
        features = self.encoder(z_lr, timesteps)
        prompts = [context] if negative is None or guidance == 1.0 else [negative, context]
        count = len(prompts)
        text = torch.cat([prompt.expand(len(z_t), -1, -1) for prompt in prompts])
        with self.guide.using(features):
            net = cast("Any", self.unet)
            out: Tensor = net(
                z_t.repeat(count, 1, 1, 1), timesteps.repeat(count), encoder_hidden_states=text
            ).sample
        if count == 1:
            return out
        without, toward = out.chunk(2)
        return without + guidance * (toward - without)
