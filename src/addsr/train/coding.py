"""The frozen VAE of a latent training: pictures to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Coder:
    """Pictures are `(B, 3, H, W)` in [0, 1], latents scaled, both float32."""

    def __init__(self, vae: nn.Module, dtype: torch.dtype) -> None:
        # typed as Any, for diffusers' own types are partial
        self.vae: Any = vae
        self.dtype = dtype
        self.scaling = float(self.vae.config["scaling_factor"])
        self.factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        """Picture pixels per latent pixel."""

    def moments(self, picture: Tensor) -> Tensor:
        """Mean and log variance of the latent, side by side `(B, 8, h, w)`, not yet scaled."""
        x = (picture * 2 - 1).to(self.dtype)
        return self.vae.encode(x).latent_dist.parameters.float()

    def mean(self, moments: Tensor) -> Tensor:
        """The latent's mean."""
        return self.scaling * moments.chunk(2, dim=1)[0]

    def draw(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A latent from its distribution; `noise` is standard normal, of its shape."""
        mean, log_variance = moments.chunk(2, dim=1)
        return self.scaling * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise)

    def decode(self, z: Tensor) -> Tensor:
        """The picture of a latent, about [0, 1], not clamped."""
        picture = self.vae.decode((z / self.scaling).to(self.dtype)).sample
        return (picture.float() + 1) / 2
