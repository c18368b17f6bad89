"""RAM whole: a picture in; image tokens and a logit per tag out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from addsr.errors import ConfigError

from .head import HeadConfig, TagHead
from .swin import Swin, SwinConfig


@dataclass(frozen=True)
class RamConfig:
    """Shape of the whole network; the defaults are those of `ram_swin_large_14m`."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    tags: int = 4585
    label_width: int = 512
    """Of the embedding of a tag's text, made once by the publishers."""

    def __post_init__(self) -> None:
        if min(self.tags, self.label_width) < 1:
            raise ConfigError(f"tags: {self.tags} of width {self.label_width}; both are positive")


class RamOutput(NamedTuple):
    """What is seen in a batch of pictures."""

    embeds: Tensor
    """Image tokens `(B, 1 + n, 512)`, the mean token first; the context of image attention."""
    logits: Tensor
    """`(B, tags)`, before the sigmoid."""


class Ram(nn.Module):
    """Swin encoder, projection to image tokens and tag head, as needed at inference."""

    def __init__(self, config: RamConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RamConfig()
        self.swin = Swin(config.swin)
        self.image_proj = nn.Linear(config.swin.widths[-1], config.head.tokens)
        self.label_embed = nn.Parameter(torch.randn(config.tags, config.label_width) * 0.02)
        self.label_proj = nn.Linear(config.label_width, config.head.width)
        self.head = TagHead(config.head)
        self.score = nn.Linear(config.head.width, 1)

    def embed(self, image: Tensor) -> Tensor:
        """Image tokens `(B, 1 + n, tokens)`: the mean of the encoder's, then all, row by row.

        `image` is `(B, 3, side, side)`, normalised as `prepare` does it. This alone is what a
        picture under restoration needs at each step; the tags come from `classify`.

        Raises:
            InputError: it has another size.
        """
        seen = self.swin(image)
        return self.image_proj(torch.cat([seen.mean(1, keepdim=True), seen], 1))

    def classify(self, embeds: Tensor) -> Tensor:
        """Logits `(B, tags)` of image tokens as `embed` gives them."""
        queries = relu(self.label_proj(self.label_embed))
        queries = queries.expand(len(embeds), -1, -1)
        return self.score(self.head(queries, embeds)).squeeze(-1)

    def forward(self, image: Tensor) -> RamOutput:
        """Tokens and logits of pictures `(B, 3, side, side)`, normalised as `prepare` does it.

        Raises:
            InputError: they have another size.
        """
        embeds = self.embed(image)
        return RamOutput(embeds, self.classify(embeds))
