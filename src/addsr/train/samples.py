"""Latents that a trained model sampled, with their pictures: what feature wrapping learns from.

Files of safetensors with a fixed number of samples each: `hr` and `lr` as uint8 `(N, 3, P, P)` and
`(N, 3, P/4, P/4)`, `latent` as float16 `(N, 4, h, w)`, scaled. `samples.json` beside them says how
they were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addsr.data.draw import derive_seed
from addsr.errors import ConfigError, ModelError

from .config import Recipe
from .latent_config import CfwTaskConfig
from .task import Batch

KIND = "cfw-samples"
NOTE = "samples.json"
PARTS = ("hr", "lr", "latent")


def shard_name(number: int) -> str:
    """
    >>> shard_name(7)
    'samples-000007.safetensors'
    """
    return f"samples-{number:06d}.safetensors"


class SampleSource:
    """Batches of stored samples, shuffled anew for each pass over them.

    Samples are read when they are needed, from wherever they are; the first `held_out` of the
    first file are kept for validation. What comes depends on the seed and the number of samples
    served alone.
    """

    def __init__(
        self, folder: Path, seed: int, device: torch.device, *, held_out: int = 0, crop_px: int = 0
    ) -> None:
        """
        Raises:
            ConfigError: no samples there, fewer than are held out, or of another size.
            ModelError: a damaged file.
        """
        self.seed, self.device = seed, device
        self._served = 0
        self._order: tuple[int, Tensor] | None = None
        paths = sorted(folder.glob("samples-*.safetensors"))
        if not paths:
            raise ConfigError(
                f"task.samples = {str(folder)!r} holds no samples; make them with "
                "`python -m addsr.train.cfw_samples --config RECIPE`"
            )
        # typed as Any, for safetensors' own types are partial
        self._files: list[Any] = [_open(path) for path in paths]
        self._places = [
            (number, row)
            for number, file in enumerate(self._files)
            for row in range(file.get_slice("latent").get_shape()[0])
        ]
        self._held, self._places = self._places[:held_out], self._places[held_out:]
        if not self._places:
            raise ConfigError(
                f"task.held_out = {held_out} is not allowed with the {len(self._held)} samples in "
                f"{folder}; make more of them, or hold out fewer"
            )
        side = self._files[0].get_slice("hr").get_shape()[-1]
        if crop_px and side != crop_px:
            raise ConfigError(
                f"data.crop_px = {crop_px} does not fit the samples in {folder}, which have {side} "
                f"pixels a side; give {side}, or another task.samples"
            )

    @classmethod
    def of(cls, recipe: Recipe, seed: int, device: torch.device) -> SampleSource:
        """The samples that a recipe of the task cfw names."""
        config = cast("CfwTaskConfig", recipe.task)
        if recipe.data.val:
            raise ConfigError(
                f"data.val = {recipe.data.val!r} is not used by cfw, which validates with the first"
                " task.held_out samples; leave it out"
            )
        return cls(
            Path(config.samples),
            seed,
            device,
            held_out=config.held_out,
            crop_px=recipe.data.crop_px,
        )

    def __len__(self) -> int:
        return len(self._places)

    def get(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """`batch` samples on the device: hr and lr in [0, 1], and the scaled latent, float32."""
        rows = [self._read(self._places[self._next()]) for _ in range(batch)]
        hr, lr, latent = (torch.cat(column).to(self.device) for column in zip(*rows, strict=True))
        return _unit(hr), _unit(lr), latent.float()

    def held_out(self, limit: int = 0) -> list[Batch]:
        """The samples that are never trained on, as batches of one on the CPU; 0: all of them."""
        rows = [self._read(place) for place in self._held[: limit or None]]
        return [Batch(_unit(hr), _unit(lr), latent.float()) for hr, lr, latent in rows]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "served": self._served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self._served = int(state["seed"]), int(state["served"])
        self._order = None

    def _next(self) -> int:
        epoch, position = divmod(self._served, len(self._places))
        if self._order is None or self._order[0] != epoch:
            dice = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._order = (epoch, torch.randperm(len(self._places), generator=dice))
        self._served += 1
        return int(self._order[1][position])

    def _read(self, place: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        number, row = place
        file = self._files[number]
        hr, lr, latent = (file.get_slice(part)[row : row + 1] for part in PARTS)
        return hr, lr, latent


def read_note(folder: Path) -> dict[str, Any] | None:
    """How the samples in `folder` were made; None where nothing readable says so."""
    try:
        facts = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast("dict[str, Any]", facts) if isinstance(facts, dict) else None


def _open(path: Path) -> Any:
    """An open file of samples, from which single rows can be read."""
    try:
        file: Any = safe_open(path, framework="pt")
        kind = (file.metadata() or {}).get("kind")
        names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable file of samples ({error}); delete it") from error
    if kind != KIND or not names.issuperset(PARTS):
        raise ModelError(f"{path}: holds no samples (its kind is {kind!r}); move it elsewhere")
    return file


def _unit(x: Tensor) -> Tensor:
    return x.to(torch.float32, memory_format=torch.channels_last) / 255
