"""Tiles through the network: padding, sampling, cropping, and the two things that go wrong.

Memory that runs out makes the batch smaller, down to one tile; where that does not fit either it
becomes `TileTooLarge`, so that the caller can cut the tile. Values that are not finite (half
precision overflows on some cards) bring one more try in fp32, of the tiles that have them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS
from addsr.errors import MemoryLimitError, ModelError

from .memory import is_out_of_memory, release_memory

log = logging.getLogger(__name__)

_BLACK = 1 / 255
"""The brightest that a black tile may be."""

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
        self._pixel_limit: int | None = None  # of a batch, after memory ran out once

    def context(self, lr: Tensor) -> Tensor | None:
        """What the network wants to know of whole pictures `(B, 3, h, w)`, `(B, C)`, or None.

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
        pictures: Sequence[int] | None = None,
    ) -> Tensor:
        """The restored tiles `(B, 3, 4h, 4w)` in [0, 1], float32 on the engine's device.

        Each is what it would be alone, but for the rounding of other kernels. A batch that does
        not fit is halved, and so are all later ones of so many pixels.

        Args:
            lr: `(B, 3, h, w)` in [0, 1], any h and w from 1.
            noise: standard normal `(B, 3, 4h, 4w)`.
            on_step: called after each step of the sampler, once for each tile.
            context: what `context` gave for the pictures these are tiles of; `(B, C)`, or
                `(1, C)` of one picture for all.
            pictures: which picture each tile is of; a warning about one tile carries that number
                in its log record as `picture`.

        Raises:
            TileTooLarge: the device ran out of memory on one tile.
            ModelError: the result is not finite even in fp32.
        """
        count = len(lr)
        if context is not None:
            context = context.expand(count, -1)
        told = _Steps(on_step)
        results: list[Tensor] = []
        first = 0
        while first < count:
            part = slice(first, min(first + self._most(lr), count))
            told.made = first * steps
            result = self._restore(
                lr[part], noise[part], steps, fidelity, told,
                None if context is None else context[part],
                None if pictures is None else pictures[part],
            )  # fmt: skip
            if result is not None:
                results.append(result)
                told.reach(part.stop * steps)
                first = part.stop
                continue
            # out of the handler: the traceback would keep the failed tiles' tensors alive
            release_memory(self.device)
            self._shrink(lr[part])
        return results[0] if len(results) == 1 else torch.cat(results)

    def _most(self, lr: Tensor) -> int:
        """Tiles like these that may go together, as far as was found out."""
        if self._pixel_limit is None:
            return len(lr)
        return max(self._pixel_limit // (lr.shape[-1] * lr.shape[-2]), 1)

    def _shrink(self, lr: Tensor) -> None:
        """Allows half as many as these, which did not fit.

        Raises:
            TileTooLarge: it is only one.
        """
        count, (height, width) = len(lr), lr.shape[-2:]
        if count == 1:
            raise TileTooLarge(
                f"tile: {width}x{height} px does not fit into the memory of {self.device}"
            )
        self._pixel_limit = count // 2 * height * width
        log.warning(
            "%d tiles of %dx%d px at once do not fit into the memory of %s; going on with %d",
            count, width, height, self.device, count // 2,
        )  # fmt: skip

    def _restore(
        self,
        lr: Tensor,
        noise: Tensor,
        steps: int,
        fidelity: float,
        told: _Steps,
        context: Tensor | None,
        pictures: Sequence[int] | None,
    ) -> Tensor | None:
        """The tiles, some of them by a second try in fp32; None: memory ran out."""
        try:
            try:
                return restore(self.net, lr, noise, steps, fidelity, self.device, told, context)
            except _NotFiniteError as error:
                if self.dtype == torch.float32:
                    raise
                result, guilty = error.result, error.guilty
            kept = [result[k : k + 1] for k in range(len(lr))]
            precise = self._precise or copy.deepcopy(self.net).float()
            self._precise = precise
            for k in guilty:
                log.warning(
                    "values overflowed in %s; this tile is done again in fp32", self.dtype,
                    extra=None if pictures is None else {"picture": pictures[k]},
                )  # fmt: skip
                # singly: in fp32 each takes twice the memory
                one = slice(k, k + 1)
                view = None if context is None else context[one]
                kept[k] = restore(
                    precise, lr[one], noise[one], steps, fidelity, self.device, None, view
                )
            return kept[0] if len(kept) == 1 else torch.cat(kept)
        except _NotFiniteError as error:
            raise ModelError(
                "model: its output is not finite even in fp32, the weights must be damaged; "
                "fetch them again"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None


class _Steps:
    """Tells of each step of each tile once, however often it has to be made."""

    def __init__(self, on_step: Callable[[], None] | None) -> None:
        self.on_step = on_step
        self.made = self.told = 0

    def __call__(self, tiles: int) -> None:
        """One more step of so many tiles."""
        self.made += tiles
        self.reach(self.made)

    def reach(self, made: int) -> None:
        """So many are made by now."""
        while self.told < made:
            self.told += 1
            if self.on_step is not None:
                self.on_step()


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
    """The network gave NaN, infinity or, in half precision, black for these tiles of the batch.

    The others are done.
    """

    def __init__(self, result: Tensor, guilty: Sequence[int]) -> None:
        super().__init__()
        self.result, self.guilty = result, guilty


def restore(
    net: nn.Module,
    lr: Tensor,
    noise: Tensor,
    steps: int,
    fidelity: float,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """`Engine.restore` without its second tries; `on_step` is told the number of tiles."""
    height, width = lr.shape[-2:]
    scale, multiple = int(net.scale), int(net.multiple)  # type: ignore[arg-type]
    lr = pad_to_multiple(lr.to(device), multiple)
    noise = pad_to_multiple(noise.to(device), multiple * scale)
    finite = torch.ones(len(lr), dtype=torch.bool, device=device)

    def checked(
        x_t: Tensor, t: Tensor, lr: Tensor, condition: Tensor | None, fidelity: float | Tensor
    ) -> Tensor:
        # only a network that has a picture-wide view is asked to take one
        view = {} if context is None else {"context": context}
        x0 = net(x_t, t, lr, condition, fidelity, **view)
        # here and not on the result: clamping would turn an infinity into plain white
        finite.logical_and_(torch.isfinite(x0).flatten(1).all(dim=1))
        if not bool(finite.any()):
            raise _NotFiniteError(x0, range(len(lr)))
        return x0

    def stepped(_index: int, x0: Tensor) -> None:
        if on_step is not None:
            on_step(len(x0))

    with torch.inference_mode():
        result = sample_addsr(checked, lr, noise, LEVELS[steps], fidelity=fidelity, on_step=stepped)
    result = result[..., : height * scale, : width * scale]
    if next(net.parameters()).dtype != torch.float32:
        # what overflows inside a network can come out as black as well
        is_lit = result.flatten(1).amax(1) > 0
        finite.logical_and_(is_lit | (lr.flatten(1).amax(1) <= _BLACK))
    guilty = (~finite).nonzero().flatten().tolist()
    if guilty:
        raise _NotFiniteError(result, guilty)
    return result


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
