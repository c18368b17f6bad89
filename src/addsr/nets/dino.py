"""Frozen vision transformers of DINO: token maps for a discriminator, and one token for its input.

DINO (arXiv 2104.14294) and DINOv2 (arXiv 2304.07193) are plain vision transformers (arXiv
2010.11929) and differ in the patch and in a scale on each branch. Tensors carry the names that both
were published with. One class serves both: a hundred lines, where those of transformers would be
two classes, with query, key and value apart, and a heavy import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addsr.errors import InputError, OptionError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VitConfig:
    """Shape of a `Vit`; the defaults are DINO's ViT-S/16 (21 665 664 numbers)."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    side: int = 224
    """Of the square pictures it takes, in pixels; a multiple of `patch`."""
    hidden: int = 1536
    """Width inside of the feed-forward layers."""
    has_layer_scale: bool = False
    """Each branch is scaled channel by channel, as in DINOv2."""

    def __post_init__(self) -> None:
        if self.side % self.patch:
            raise OptionError(f"side: {self.side} is no multiple of patch = {self.patch}")
        if self.width % self.heads:
            raise OptionError(f"width: {self.width} is no multiple of heads = {self.heads}")

    @property
    def tokens(self) -> int:
        """Patches of a picture; the class token comes on top."""
        return (self.side // self.patch) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata of a weights file."""
        return asdict(self)


DINO_S16 = VitConfig()
DINOV2_S14 = VitConfig(patch=14, side=518, has_layer_scale=True)
"""DINOv2's ViT-S/14 (22 056 192 numbers, without the mask token that only its training needs)."""


class Vit(nn.Module):
    """Tokens `(B, 1 + N, C)` of normalised pictures `(B, 3, side, side)`, class token first."""

    def __init__(self, config: VitConfig = DINO_S16) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.tokens, config.width))
        self.patch_embed = _PatchEmbed(config.width, config.patch)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, picture: Tensor) -> Tensor:
        """All tokens after the last layer's normalisation."""
        x = self.embed(picture)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, picture: Tensor) -> Tensor:
        """The first block's input: patches and class token with their positions.

        Raises:
            InputError: the picture has another size than the positions are for.
        """
        side = self.config.side
        if picture.ndim != 4 or tuple(picture.shape[1:]) != (3, side, side):
            raise InputError(
                f"picture: {tuple(picture.shape)} does not fit this transformer; "
                f"give (B, 3, {side}, {side})"
            )
        patches = self.patch_embed(picture)
        first = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1) + self.pos_embed

    def taps(self, picture: Tensor, hooks: Sequence[int]) -> list[Tensor]:
        """Tokens `(B, 1 + N, C)` after the blocks `hooks` (from 0), then those before the first.

        Blocks after the last of `hooks` are not run.
        """
        tokens = self.embed(picture)
        x, found = tokens, dict[int, Tensor]()
        for number, block in enumerate(self.blocks[: max(hooks) + 1]):
            x = block(x)
            if number in hooks:
                found[number] = x
        return [*(found[number] for number in hooks), tokens]


class TokenMaps(nn.Module):
    """Five maps of a picture for the discriminator's heads, from a frozen `Vit`.

    Tokens after four blocks evenly spread over the depth, and the embedded patches. The class token
    is added to every other one, so that each place knows the whole picture. The network sees one
    picture side whatever the picture's: resizing is by area (a box average), which hides nothing.
    """

    def __init__(self, vit: Vit, hooks: Sequence[int] = (2, 5, 8, 11)) -> None:
        super().__init__()
        depth = vit.config.depth
        if not hooks or not all(0 <= number < depth for number in hooks):
            raise OptionError(f"hooks: {tuple(hooks)} must be blocks of 0 to {depth - 1}")
        self.vit = vit.eval().requires_grad_(False)
        self.hooks = tuple(hooks)
        self.widths = (vit.config.width,) * (len(self.hooks) + 1)

    @property
    def side(self) -> int:
        """The picture side that the network works at, in pixels."""
        return self.vit.config.side

    def train(self, mode: bool = True) -> TokenMaps:
        """Frozen networks stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Maps `(B, C, N)`, N patches in reading order, of pictures `(B, 3, H, W)` in [0, 1]."""
        x = F.interpolate(picture, size=(self.side, self.side), mode="area")
        x = imagenet(x).to(self.vit.pos_embed.dtype)
        maps = self.vit.taps(x, self.hooks)
        return [(tokens[:, 1:] + tokens[:, :1]).transpose(1, 2) for tokens in maps]


class ClassToken(nn.Module):
    """What a frozen `Vit` says of a whole picture: its class token `(B, C)`, normalised.

    Args:
        vit: DINOv2's, as in AddSR; any will do.
        is_normalised: give it pictures normalised as it was trained; False is the released
            training, which left that out.
    """

    def __init__(self, vit: Vit, *, is_normalised: bool = True) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.is_normalised = is_normalised
        self.width = vit.config.width

    def train(self, mode: bool = True) -> ClassToken:
        """Frozen networks stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, picture: Tensor) -> Tensor:
        """The token of a picture `(B, 3, H, W)` in [0, 1], without gradient."""
        side = self.vit.config.side
        x = F.interpolate(picture, size=(side, side), mode="bilinear", align_corners=False)
        x = imagenet(x) if self.is_normalised else x
        return self.vit(x.to(self.vit.pos_embed.dtype))[:, 0]


def imagenet(picture: Tensor) -> Tensor:
    """`picture` `(B, 3, H, W)` in [0, 1] with ImageNet's mean and spread made 0 and 1."""
    mean, std = (picture.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (picture - mean) / std


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, picture: Tensor) -> Tensor:
        return self.proj(picture).flatten(2).transpose(1, 2)  # (B, N, C)


class _Block(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        has_scale = config.has_layer_scale
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = _Attention(config.width, config.heads)
        self.ls1 = _Scale(config.width) if has_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = _Mlp(config.width, config.hidden)
        self.ls2 = _Scale(config.width) if has_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, C / heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
