"""Models of others: files that spandrel knows, and the upscalers of diffusers.

Both packages are imported here only, when a method that needs them is used. Weights are read as
tensors: safetensors, or `torch.load` with `weights_only=True`; no code in a file is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from addsr.engines.device import choose_device, choose_dtype
from addsr.errors import DependencyError, ModelError, OptionError
from addsr.image.tiling import make_grid, merge_rows

Run = Callable[[Tensor], Tensor]

MODEL_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt"}
DIFFUSERS = "diffusers"
WHOLE_PX = 512
"""Sides up to which a picture is given to a foreign network whole, unless a tile is asked for."""
HALO_PX, BLEND_PX = 32, 16


@dataclass(frozen=True)
class ForeignModel:
    """Real-ESRGAN, BSRGAN, SwinIR, FeMaSR or any other single file that spandrel recognises."""

    path: Path = field(repr=False)
    scale: int
    tile: int | None
    device_name: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    def check(self) -> None:
        """Finds out before any work whether spandrel is there and the tile is possible.

        Raises:
            DependencyError: it is not; OptionError: the tile is too small.
        """
        if self.tile is not None:
            make_grid(1, 1, self.tile, halo=HALO_PX, blend=BLEND_PX, multiple=8)
        if find_spec("spandrel") is None:
            raise DependencyError(
                f"METHOD: {self.path} is a model of others, which needs spandrel; install the "
                "torchvision that fits your torch, then `pip install 'addsr[foreign-models]'`"
            )

    def details(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"loader": "spandrel", "tile": self.tile or "auto", "dtype": self._dtype_name()}

    def _dtype_name(self) -> str:
        # the figures that their authors publish are made in fp32
        return "fp32" if self.dtype == "auto" else self.dtype

    @contextmanager
    def open(self) -> Generator[Run]:
        """Gives the function that runs the network.

        Raises:
            ModelError: not a file that spandrel knows, or a network of another scale.
        """
        network = self._load()
        dtype = choose_dtype(self._dtype_name(), self.device)

        @torch.inference_mode()
        def run(lr: Tensor) -> Tensor:
            def restore(part: Tensor) -> Tensor:
                return network(part.to(self.device, dtype)).float().cpu()

            return in_tiles(restore, lr, self.scale, self.tile)

        yield run

    def _load(self) -> Any:
        self.check()
        try:
            import spandrel  # type: ignore[import-not-found]
        except Exception as error:  # a torchvision that does not match torch raises RuntimeError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DependencyError(
                f"METHOD: spandrel cannot be imported ({reason}); install the torchvision that "
                "fits your torch"
            ) from error
        state = _unwrapped(self.path)
        try:
            network: Any = spandrel.ModelLoader(device=self.device).load_from_state_dict(state)
        except Exception as error:  # of every kind: architectures are guessed from the names
            raise ModelError(
                f"{self.path}: spandrel knows no network for it "
                f"({(str(error).splitlines() or [type(error).__name__])[0]}); give another file"
            ) from error
        channels = (network.input_channels, network.output_channels)
        if network.scale != self.scale or channels != (3, 3):
            raise ModelError(
                f"{self.path}: enlarges {network.scale} times with {channels[0]} channels; "
                f"{self.scale} times with 3 are needed here, so give another file"
            )
        return network.eval().to(choose_dtype(self._dtype_name(), self.device))


def _unwrapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; where it holds several sets (`params`, `params_ema`) the average."""
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "weights only" in reason.lower():  # torch's advice is to allow code to be run
            reason = "it holds more than tensors"
        raise ModelError(
            f"{path}: cannot be read as tensors ({reason}); give a file of plain weights"
        ) from error
    for key in ("params_ema", "params", "model_state_dict", "state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = cast("dict[str, Any]", content[key])
            break
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{path}: holds no named tensors; give a file of plain weights")
    return _prefixless(cast("dict[str, Any]", content))


def _prefixless(state: dict[str, Any]) -> dict[str, Tensor]:
    for prefix in ("module.", "netG."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


_PIPELINES = {
    "ldm": ("LDMSuperResolutionPipeline", "CompVis/ldm-super-resolution-4x-openimages", 100),
    "x4": ("StableDiffusionUpscalePipeline", "stabilityai/stable-diffusion-x4-upscaler", 75),
}
"""Short name -> class, usual weights on the hub, usual number of steps."""
_SIDES = 64
"""Inputs are padded to a multiple of this: the networks halve them up to five times."""


@dataclass(frozen=True)
class DiffusersUpscaler:
    """One of diffusers' two x4 upscalers, with its own defaults and an empty prompt."""

    pipeline: str
    source: str
    """Folder or hub id of the pipeline."""
    steps: int
    seed: int
    device_name: str
    dtype: str
    scale: int = 4

    @classmethod
    def parse(cls, word: str, scale: int, seed: int, device: str, dtype: str) -> DiffusersUpscaler:
        """The upscaler that `diffusers:PIPELINE[:FOLDER_OR_ID][@STEPS]` means.

        Raises:
            OptionError: it means none; DependencyError: diffusers is not installed.
        """
        match = re.fullmatch(rf"{DIFFUSERS}:(\w+)(?::(.+?))?(?:@(\d+))?", word)
        if match is None or match[1] not in _PIPELINES:
            raise OptionError(
                f"METHOD: {word!r} is unknown; write {DIFFUSERS}:ldm or {DIFFUSERS}:x4, with "
                ":FOLDER_OR_ID and @STEPS behind it if you want others than usual"
            )
        if scale != 4:
            raise OptionError(f"METHOD: {word!r} enlarges 4 times and not {scale}; leave it out")
        missing = [name for name in ("diffusers", "transformers") if find_spec(name) is None]
        if missing:
            raise DependencyError(
                f"METHOD: {word!r} needs {' and '.join(missing)}; `pip install {' '.join(missing)}`"
            )
        _, usual, steps = _PIPELINES[match[1]]
        return cls(
            pipeline=match[1],
            source=match[2] or usual,
            steps=int(match[3] or steps),
            seed=seed,
            device_name=str(choose_device(device)),
            dtype="fp32" if dtype == "auto" else dtype,
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    def details(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"pipeline": _PIPELINES[self.pipeline][0], "source": self.source, "seed": self.seed,
                "dtype": self.dtype, "prompt": "" if self.pipeline == "x4" else None}  # fmt: skip

    def sha256(self) -> str | None:
        """Of the weights of a folder, all files together; None for weights on the hub."""
        from .cache import hash_file, key_of

        folder = Path(self.source)
        if not folder.is_dir():
            return None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return key_of(*(f"{path.relative_to(folder)} {hash_file(path)}" for path in files))

    @contextmanager
    def open(self) -> Generator[Run]:
        """Gives the function that runs the pipeline; every picture starts from the same noise.

        Raises:
            ModelError: the pipeline cannot be loaded.
        """
        pipe = self._load()

        def run(lr: Tensor) -> Tensor:
            height, width = lr.shape[-2:]
            padded = F.pad(lr, (0, -width % _SIDES, 0, -height % _SIDES), mode="replicate")
            levels = (padded[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            arguments: dict[str, Any] = {"prompt": ""} if self.pipeline == "x4" else {}
            made = pipe(
                image=Image.fromarray(levels),
                num_inference_steps=self.steps,
                generator=torch.Generator().manual_seed(self.seed),
                output_type="np",
                **arguments,
            ).images
            result = torch.from_numpy(np.asarray(made, dtype=np.float32)).permute(0, 3, 1, 2)
            return result[..., : height * self.scale, : width * self.scale]

        yield run

    def _load(self) -> Any:
        try:
            import diffusers  # type: ignore[import-not-found]
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DependencyError(
                f"METHOD: diffusers cannot be imported ({reason}); `pip install diffusers`"
            ) from error
        kind = getattr(diffusers, _PIPELINES[self.pipeline][0])
        try:
            # it takes safetensors where there are any, and else torch.load(weights_only=True)
            pipe: Any = kind.from_pretrained(self.source)
        except Exception as error:  # no such folder or id, no network, files missing
            raise ModelError(
                f"{self.source}: diffusers cannot load it "
                f"({(str(error).splitlines() or [type(error).__name__])[0]}); "
                "give the folder of a pipeline, or fetch it first with a network"
            ) from error
        pipe = pipe.to(self.device, choose_dtype(self.dtype, self.device))
        pipe.set_progress_bar_config(disable=True)
        return pipe


def in_tiles(restore: Run, lr: Tensor, scale: int, tile: int | None) -> Tensor:
    """`restore` of `lr` `(1, 3, h, w)` whole, or in blended tiles where it is large."""
    if tile is None and max(lr.shape[-2:]) <= WHOLE_PX:
        return restore(lr)
    grid = make_grid(
        lr.shape[-2], lr.shape[-1], tile or WHOLE_PX, halo=HALO_PX, blend=BLEND_PX, multiple=8
    )
    return torch.cat(
        list(merge_rows(grid, (restore(part.cut(lr)) for part in grid), scale)), dim=-2
    )
