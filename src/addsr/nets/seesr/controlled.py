"""U-Net and ControlNet together: the noise predicted in one denoising step."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from addsr.errors import InputError


class ControlledUnet(nn.Module):
    """What SeeSR and AddSR predict from a noisy latent, a picture, its tags and its tokens."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def encode(self, picture: Tensor) -> Tensor:
        """The ControlNet's map `(B, channels, h, w)` of a picture `(B, 3, 8h, 8w)` in [0, 1].

        To be given in place of the picture wherever it is used more than once.
        """
        encoder = cast("nn.Module", self.controlnet.controlnet_cond_embedding)
        return encoder(picture)

    def forward(
        self,
        z_t: Tensor,
        timesteps: Tensor,
        text: Tensor,
        image_tokens: Tensor,
        condition: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
        control_scale: float = 1.0,
    ) -> Tensor:
        """The predicted noise, of the shape of `z_t` `(B, 4, h, w)`.

        With `negative` and a `guidance` s other than 1 it is `out_neg + s * (out_pos - out_neg)`;
        both branches see the same picture and tokens.

        Args:
            timesteps: `(1 or B,)`, 0..999.
            text: embedded prompt `(N, tokens, width)`, where N divides B: entry i serves latents
                i, i + N, i + 2N, ...
            image_tokens: `(N, tokens, width)`, likewise.
            condition: a picture `(B, 3, 8h, 8w)` in [0, 1], or its `encode`.
            negative: embedded negative prompt, of the shape of `text`.
            control_scale: factor of all that the ControlNet adds.

        Raises:
            InputError: shapes that do not fit each other or the networks.
        """
        latents = len(z_t)
        condition = self.encode(condition)
        if condition.shape[-2:] != z_t.shape[-2:]:
            raise InputError(
                f"condition: its map {tuple(condition.shape)} and z_t {tuple(z_t.shape)} differ in "
                "size; give the picture of this latent"
            )
        prompts = [_spread("text", text, latents)]
        if negative is not None and guidance != 1.0:
            prompts.insert(0, _spread("negative", negative, latents))
        count = len(prompts)
        z, t = z_t.repeat(count, 1, 1, 1), timesteps.expand(latents).repeat(count)
        shared: dict[str, Any] = {
            "encoder_hidden_states": torch.cat(prompts),
            "image_tokens": _spread("image_tokens", image_tokens, latents).repeat(count, 1, 1),
            "return_dict": False,
        }
        seen = _spread("condition", condition, latents).repeat(count, 1, 1, 1)
        down, mid = self.controlnet(
            z, t, controlnet_cond=seen, conditioning_scale=control_scale, **shared
        )
        out: Tensor = self.unet(
            z,
            t,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            **shared,
        )[0]
        if count == 1:
            return out
        without, toward = out.chunk(2)
        return without + guidance * (toward - without)


def _spread(name: str, x: Tensor, count: int) -> Tensor:
    """`x` repeated along its first axis to `count` entries."""
    times, rest = divmod(count, len(x))
    if rest or not times:
        raise InputError(f"{name}: {len(x)} given for {count} latents; give one, or one for each")
    return x.repeat(times, *(1,) * (x.ndim - 1))
