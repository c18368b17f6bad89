"""What goes into a call and what comes out: pictures of all kinds, generators, results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addsr.errors import InputError, OptionError
from addsr.image.alpha import enlarge_alpha
from addsr.image.color import match_color
from addsr.image.encoding import Encoding
from addsr.image.kinds import Picture, accept
from addsr.image.sinks import PilSink

from .canvas import Canvas, enlarge
from .options import Options, OutputType

Seeds = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives."""

    images: Any
    """PIL images in a list; `(N, H, W, 3)` or `(N, 3, H, W)` in [0, 1], or latents `(N, 4, h, w)`.

    A list of such for pictures of different sizes.
    """
    tags: list[list[str]] | None = None
    """What a prompt extractor saw in each picture; None: there is none."""


def accept_all(image: Any) -> list[tuple[Picture, Encoding]]:
    """Every picture of what was handed in, with what its numbers mean.

    Raises:
        InputError: none, or one that cannot be used.
    """
    given = list(image) if isinstance(image, (list, tuple)) else [image]
    if not given:
        raise InputError("image: an empty list; give at least one picture")
    found: list[tuple[Picture, Encoding]] = []
    for one in given:
        source = accept(one)
        found += [(picture, source.encoding) for picture in source.pictures]
    return found


def share_out(generator: Seeds, count: int) -> list[torch.Generator | None]:
    """The generator of each of `count` pictures."""
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if len(generator) != count:
        raise OptionError(
            f"generator: {len(generator)} given for {count} pictures; give one, or one for each"
        )
    return list(generator)


def in_batches(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[range]:
    """Places of pictures of one size, one behind the other, `most` at a time.

    >>> list(in_batches([(8, 8), (8, 8), (8, 8), (8, 9)], 2))
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    first = 0
    for k in range(1, len(sizes) + 1):
        if k == len(sizes) or k - first == most or sizes[k] != sizes[first]:
            yield range(first, k)
            first = k


def finish(
    restored: Tensor,
    rgb: Tensor,
    picture: Picture,
    encoding: Encoding,
    canvas: Canvas,
    options: Options,
) -> Any:
    """The result of one picture from its restored pixels in [-1, 1], which are where `rgb` is."""
    height, width = canvas.target
    if options.color != "none":
        reference = enlarge(rgb, canvas.target) * 2 - 1
        restored = match_color(restored, reference, options.color)
    restored = ((restored + 1) / 2).clamp(0, 1).cpu()
    if options.output == "pt":
        return restored
    if options.output == "np":
        return restored.permute(0, 2, 3, 1).numpy()
    if picture.alpha is not None:
        alpha = enlarge_alpha(picture.alpha, canvas.target, 0, height)
        restored = torch.cat([restored, alpha], dim=1)
    sink = PilSink(picture.layout, height, width, encoding)
    sink.write(restored)
    return sink.result()


def join(results: list[Any], output: OutputType) -> Any:
    """The results as one array or tensor where their sizes allow it."""
    if output == "pil" or len({tuple(one.shape) for one in results}) > 1:
        return results
    return np.concatenate(results) if output == "np" else torch.cat(results)
