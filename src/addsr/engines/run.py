"""One tile through the network: padding, sampling, cropping, and the two things that go wrong.

Memory that runs out becomes `TileTooLarge`, so that the caller can cut the tile; values that are
not finite (half precision overflows on some cards) bring one more try in fp32.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS
from addsr.errors import MemoryLimitError, ModelError

from .memory import is_out_of_memory, release_memory

log = logging.getLogger(__name__)

_CONTEXT_BLOCK = 256
"""Side of the blocks whose contexts are averaged, in input pixels."""


class TileTooLarge(MemoryLimitError):
    """The device ran out of memory on a tile of this size; cut it and go on."""


class Engine:
    """A network made ready on one device, in one number type."""

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        # channels_last is what the fast convolution kernels of CPUs and tensor cores want
        layout: Any = {"device": device, "memory_format": torch.channels_last}
        if device.type == "cpu" and dtype == torch.float32:
            self.net = _widen_in_use(net.to(**layout)).eval()
        else:
            self.net = net.to(dtype=dtype, **layout).eval()
        self._precise: nn.Module | None = None

    def context(self, lr: Tensor) -> Tensor | None:
        """What the network wants to know of the whole picture `(1, 3, h, w)`, or None.

        The mean over blocks of fixed size, weighted by area: bounded memory, and the same value
        however the picture is tiled afterwards.
        """
        of_block = getattr(self.net, "context", None)
        if of_block is None:
            return None
        total: Tensor | None = None
        with torch.inference_mode():
            for band in lr.split(_CONTEXT_BLOCK, dim=-2):
                for block in band.split(_CONTEXT_BLOCK, dim=-1):
                    area = block.shape[-1] * block.shape[-2]
                    padded = pad_to_multiple(block.to(self.device), int(self.net.multiple))  # type: ignore[arg-type]
                    value = of_block(padded)
                    if value is None:
                        return None
                    value = value.float() * area
                    total = value if total is None else total + value
        return None if total is None else total / (lr.shape[-1] * lr.shape[-2])

    def restore(
        self,
        lr: Tensor,
        noise: Tensor,
        steps: int = 1,
        fidelity: float = 1.0,
        on_step: Callable[[], None] | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The restored tile `(1, 3, 4h, 4w)` in [0, 1], float32 on the engine's device.

        Args:
            lr: `(1, 3, h, w)` in [0, 1], any h and w from 1.
            noise: standard normal `(1, 3, 4h, 4w)`.
            on_step: called after each step of the sampler.
            context: what `context` gave for the picture this is a tile of.

        Raises:
            TileTooLarge: the device ran out of memory.
            ModelError: the result is not finite even in fp32.
        """
        try:
            try:
                return restore(self.net, lr, noise, steps, fidelity, self.device, on_step, context)
            except _NotFiniteError:
                if self.dtype == torch.float32:
                    raise
                log.warning("values overflowed in %s; this tile is done again in fp32", self.dtype)
                precise = self._precise or copy.deepcopy(self.net).float()
                self._precise = precise
                return restore(precise, lr, noise, steps, fidelity, self.device, None, context)
        except _NotFiniteError as error:
            raise ModelError(
                "model: its output is not finite even in fp32, the weights must be damaged; "
                "fetch them again"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside of the handler: the traceback would keep the failed tile's tensors alive
        release_memory(self.device)
        size = "x".join(str(n) for n in lr.shape[:-3:-1])
        raise TileTooLarge(f"tile: {size} px does not fit into the memory of {self.device}")


class _Widened(nn.Module):
    """What a layer sees in place of the fp16 weight it keeps."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def _widen_in_use(net: nn.Module) -> nn.Module:
    """`net` computing in fp32, its layers' fp16 weights widened one at a time while in use.

    Exact, and half the memory: the weights are most of what a small picture takes. Widening those
    of the compact network takes 0.04 to 0.14 s for each run of it, measured on two AVX2 cores.
    """
    for module in list(net.modules()):
        kept = None
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.dtype == torch.float16:
            kept = module.weight
        for parameter in module.parameters(recurse=False):
            if parameter is not kept:
                parameter.data = parameter.data.float()
        if kept is not None:
            register_parametrization(module, "weight", _Widened(), unsafe=True)
    return net


class _NotFiniteError(ArithmeticError):
    """The network gave NaN or infinity."""


def restore(
    net: nn.Module,
    lr: Tensor,
    noise: Tensor,
    steps: int,
    fidelity: float,
    device: torch.device,
    on_step: Callable[[], None] | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """`Engine.restore` without its second tries."""
    height, width = lr.shape[-2:]
    scale, multiple = int(net.scale), int(net.multiple)  # type: ignore[arg-type]
    lr = pad_to_multiple(lr.to(device), multiple)
    noise = pad_to_multiple(noise.to(device), multiple * scale)

    def checked(
        x_t: Tensor, t: Tensor, lr: Tensor, condition: Tensor | None, fidelity: float | Tensor
    ) -> Tensor:
        # only a network that has a picture-wide view is asked to take one
        view = {} if context is None else {"context": context}
        x0 = net(x_t, t, lr, condition, fidelity, **view)
        # here and not on the result: clamping would turn an infinity into plain white
        if not bool(torch.isfinite(x0).all()):
            raise _NotFiniteError
        return x0

    def stepped(_index: int, _x0: Tensor) -> None:
        if on_step is not None:
            on_step()

    with torch.inference_mode():
        result = sample_addsr(checked, lr, noise, LEVELS[steps], fidelity=fidelity, on_step=stepped)
    return result[..., : height * scale, : width * scale]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`x` `(B, C, H, W)` mirrored beyond its right and lower edge to multiples of `multiple`.

    Works for any size from 1, where `torch.nn.functional.pad` refuses to mirror more than once.
    """
    for dim in (-2, -1):
        size = x.shape[dim]
        padded = -(-size // multiple) * multiple
        if padded != size:
            period = max(2 * (size - 1), 1)
            place = torch.arange(padded, device=x.device) % period
            x = x.index_select(dim, torch.minimum(place, period - place).clamp_max(size - 1))
    return x
