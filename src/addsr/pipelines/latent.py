"""What the pipelines share: networks on their devices, the empty prompt, callbacks after steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from addsr.errors import ModelError, OptionError
from addsr.models.store import Installed

from .compiled import CompileMode
from .config import PipelineConfig
from .stages import LatentStages, StepEnded

StepEnd = Callable[[Any, int, float, dict[str, Any]], "dict[str, Any] | None"]
"""`callback(pipeline, step, timestep, tensors)` may give `{"latents": ...}` to go on with."""
Progress = Callable[[int, int], None]

CALLBACK_TENSORS = ("latents", "image_latents", "model_output")

_Stages = TypeVar("_Stages", bound=LatentStages)
_T = TypeVar("_T", bound="LatentPipeline[Any]")


class LatentPipeline(Generic[_Stages]):
    """Networks that restore a picture's latent step by step, led by the empty prompt or another."""

    origin: Installed | None = None
    """The imported model that it was loaded from; `save_pretrained` passes its licence on."""

    def __init__(
        self, stages: _Stages, prompt_embeds: Tensor, width: int, config: PipelineConfig
    ) -> None:
        """`width` is that of the U-Net's cross-attention.

        Raises:
            ModelError: the prompt does not fit the U-Net.
        """
        if prompt_embeds.ndim != 3 or len(prompt_embeds) != 1 or prompt_embeds.shape[2] != width:
            raise ModelError(
                f"prompt_embeds: {tuple(prompt_embeds.shape)} does not fit this U-Net; give the "
                f"empty prompt's embedding (1, tokens, {width})"
            )
        self._stages = stages
        self.prompt_embeds = prompt_embeds.detach()
        self.config = config

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks by name."""
        return self._stages.nets()

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._stages.device

    @property
    def dtype(self) -> torch.dtype:
        return self._stages.dtype

    @property
    def is_offloading(self) -> bool:
        """Whether networks wait in main memory and come to the device to work."""
        return self._stages.is_offloading

    def to(self: _T, *where: str | torch.device | torch.dtype | torch.memory_format) -> _T:
        """Moves all `networks` to a device, a dtype or a memory format, or to some of these.

        A device ends CPU offload. `torch.channels_last` is what convolutions in half precision are
        quickest in on a GPU.
        """
        for one in where:
            self._stages.to(one)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keeps networks in main memory, and on `device` only those that work.

        Raises:
            DependencyError: no device is given and this machine has none but the CPU.
            OptionError: CUDA graphs are recorded, which `compile` was asked for.
        """
        self._stages.offload(device)

    def compile(self, mode: CompileMode | None = "default") -> None:
        """Has the networks compiled by torch.compile when they run next; None: no more.

        Compiling takes a minute or more and changes results by rounding alone. Tiles have one
        shape, so steps and further pictures bring nothing new; the VAE is compiled for the first
        size of picture and once more for all others. What works in strips is not compiled.

        Args:
            mode: torch.compile's; "reduce-overhead" records CUDA graphs, which pays for few tiles
                at a time.

        Raises:
            OptionError: a mode that is unknown, or CUDA graphs together with CPU offload.
        """
        self._stages.compile(mode)

    def _listener(
        self,
        callback: StepEnd | None,
        names: Sequence[str],
        progress: Progress | None,
        results: Sequence[Any],
        pictures: int,
    ) -> StepEnded:
        """What is called after each step; `results` holds those of the pictures that are done.

        Raises:
            OptionError: a name that is none of `CALLBACK_TENSORS`.
        """
        strange = [k for k in names if k not in CALLBACK_TENSORS]
        if strange:
            raise OptionError(
                f"callback_on_step_end_tensor_inputs: {strange} are unknown; "
                f"use some of {', '.join(CALLBACK_TENSORS)}"
            )

        def ended(k: int, steps: int, t: float, tensors: dict[str, Tensor]) -> Tensor:
            # `steps` is the sampler's word: some schedulers make more than they were asked for
            latents = tensors["latents"]
            if callback is not None:
                chosen = {name: tensors[name] for name in names}
                latents = _replaced(latents, callback(self, k, t, chosen))
            if progress is not None:
                # of a batch all pictures are a step further
                progress(len(results) * steps + (k + 1) * len(latents), steps * pictures)
            return latents

        return ended


def _replaced(latents: Tensor, answer: dict[str, Any] | None) -> Tensor:
    """The latents a callback wants to go on with."""
    new: Tensor = (answer or {}).get("latents", latents)
    if new.shape != latents.shape:
        raise OptionError(
            f"callback_on_step_end: gave latents {tuple(new.shape)} for {tuple(latents.shape)}; "
            "keep the shape"
        )
    return new.to(latents)
