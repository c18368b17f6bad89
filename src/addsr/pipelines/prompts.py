"""What a picture is said to show: the parts that see it, and the words made of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

ADDED_PROMPT = "clean, high-resolution, 8k, extremely detailed, best quality, sharp"
NEGATIVE_PROMPT = "dotted, noise, blur, lowres, smooth"
IMAGE_TOKENS = 145
"""Of the published tagger: 144 places and their mean."""


class Tagger(Protocol):
    """A prompt extractor, such as RAM or DAPE; pictures are `(B, 3, H, W)` in [0, 1]."""

    def embed(self, image: Tensor) -> Tensor:
        """Image tokens `(B, tokens, width)`."""
        ...

    def __call__(self, image: Tensor) -> Any:
        """`embeds`, the same, and `tags`: for each picture a list of words with a `name`."""
        ...


TextEncoder = Callable[[str], Tensor]
"""The embedding `(1, tokens, width)` of a prompt."""


def join_words(
    text_encoder: TextEncoder,
    tags: Sequence[str],
    prompt: str,
    added: str,
    *,
    is_cut: bool = False,
) -> str:
    """Tags, the user's words and those of quality, as far as the text encoder hears them.

    The last tags are left out first, where the released program (`is_cut`) lets the end go, which
    are the words of quality. An encoder without `fits` is taken to hear everything.
    """
    fits: Callable[[str], bool] | None = getattr(text_encoder, "fits", None)
    for count in range(len(tags), -1, -1):
        words = ", ".join(word for word in (*tags[:count], prompt, added) if word)
        if is_cut or fits is None or fits(words):
            return words
    return ", ".join(word for word in (prompt, added) if word)
