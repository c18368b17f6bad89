"""The tag head of RAM: each word of the list looks at the image tokens (arXiv 2306.03514, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from addsr.errors import ConfigError

# BERT's; a wider one than torch's default would move every layer
_EPS = 1e-12


@dataclass(frozen=True)
class HeadConfig:
    """Shape of the tag head; the defaults are the published one's."""

    tokens: int = 512
    """Channels of the image tokens."""
    width: int = 768
    inner: int = 3072
    heads: int = 4
    layers: int = 2

    def __post_init__(self) -> None:
        if min(self.tokens, self.width, self.inner, self.heads, self.layers) < 1:
            raise ConfigError(f"sizes of a tag head must be positive: {self}")
        if self.width % self.heads:
            raise ConfigError(
                f"heads: {self.heads} does not divide the {self.width} channels of the tag head"
            )


class TagHead(nn.Module):
    """Layers of cross-attention and MLP, normalised after each sum, without self-attention."""

    def __init__(self, config: HeadConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HeadConfig()
        self.layers = nn.ModuleList(TagLayer(config) for _ in range(config.layers))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """`(B, tags, width)` from queries of that shape and image tokens `(B, n, tokens)`."""
        for layer in self.layers:
            queries = layer(queries, tokens)
        return queries


class TagLayer(nn.Module):
    """One layer of the head."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.tokens, config.width)
        self.value = nn.Linear(config.tokens, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.expand = nn.Linear(config.width, config.inner)
        self.shrink = nn.Linear(config.inner, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPS)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, width / heads)
            for one in (self.query(x), self.key(tokens), self.value(tokens))
        )
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(seen))
        return self.norm2(x + self.shrink(gelu(self.expand(x))))
