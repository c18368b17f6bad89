"""Models at work on whole pictures: one interface, whatever is behind it.

`tiled` runs a network of pixels tile by tile (compact), `latent` a pipeline of diffusion in a
latent space (StableSR, SeeSR, AddSR). Which of the two a name or path means is decided here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from addsr.models.hub import Model, find_pipeline
from addsr.models.hub import load_model as load_network
from addsr.models.registry import ModelInfo

from .base import Counter, Progress, Restorer, Wish, Words
from .tiled import TiledRestorer, choose_tiled

if TYPE_CHECKING:
    from .latent import PipelineModel

__all__ = [
    "Choice", "Counter", "Progress", "Restorer", "TiledRestorer", "Wish", "Words", "choose",
    "load_model",
]  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A model whose facts are known; its networks may still be on the disk."""

    info: ModelInfo
    load: Callable[[], Restorer]
    """Puts the networks on their device."""


def choose(
    model: str | Path | Model | PipelineModel, device: torch.device | None, dtype: str
) -> Choice:
    """What `model` means: a name, a path, or what `load_model` gave.

    Args:
        device: None leaves it to the model.
        dtype: "auto", "fp32", "bf16" or "fp16".

    Raises:
        ModelError: there is no such model, or its files are damaged.
        OptionError: a dtype that does not exist, or not for a model that is handed in.
    """
    if isinstance(model, Model):
        return Choice(*choose_tiled(model, device, dtype))
    if not isinstance(model, (str, Path)):
        from .latent import handed_in

        return Choice(*handed_in(model, device, dtype))
    found = find_pipeline(model)
    if found is None:
        return Choice(*choose_tiled(model, device, dtype))
    from .latent import choose_pipeline

    return Choice(*choose_pipeline(found, device, dtype))


def load_model(
    name_or_path: str | Path = "compact",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Model | PipelineModel:
    """The model called `name_or_path`, or the one in that file or folder, ready to run.

    A `Model` for compact and weights files of its kind, a `PipelineModel` for a pipeline; either
    can be given to `Upscaler`. `dtype` None keeps that of the files where it can.

    Raises:
        ModelError: an unknown name, a model that is not installed, missing or damaged files.
        DependencyError: the model needs diffusers, which is not installed.
    """
    found = find_pipeline(name_or_path)
    if found is None:
        return load_network(name_or_path, device, dtype)
    from .latent import load_pipeline

    return load_pipeline(found, torch.device(device), dtype)
