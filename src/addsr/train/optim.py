"""Mixed precision without autocast: bf16 working weights, float32 masters, fused AdamW, EMA.

Autocast casts every weight at every convolution and runs normalisations in float32, which saves
their inputs in float32 too. Keeping the working network in bf16 halves that memory traffic; the
masters keep updates that bf16's 8 bits of mantissa would round away.

With `optim.offload` everything but the working weights and their gradients lives in main memory,
and AdamW runs there: 20 bytes less per trained number on the device (as in
ZeRO-Offload, arXiv 2101.06840).
"""

# pyright: reportPrivateUsage=false
# (torch._foreach_* have no public names; without them each update is thousands of launches)

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import OptimConfig


class Trained:
    """A network being trained: working weights, float32 masters, optimiser and moving average."""

    def __init__(
        self,
        net: nn.Module,
        optim: OptimConfig,
        *,
        precision: str,
        ema: float,
        device: torch.device,
        passes: int = 1,
    ) -> None:
        self.passes, self._pending = passes, 0
        self.device = device
        self.home = torch.device("cpu") if optim.offload else device
        """Where masters, their gradients, moments and average are."""
        self._norm = torch.zeros((), device=device)
        self.is_loaded = False
        self.net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        names_and_params = [(n, p) for n, p in self.net.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in names_and_params]
        self.masters = [self._at_home(p.detach()) for _, p in names_and_params]
        if precision == "bf16":
            self.net.to(torch.bfloat16)
        self.working: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        # an average without memory is the masters themselves, and takes no room
        self.average = [self._at_home(m) for m in self.masters] if ema else self.masters
        for master in self.masters:
            master.grad = self._at_home(torch.zeros_like(master))
        self.decay = ema
        self.updates = 0
        self.clip = optim.clip
        self.peak_rate = optim.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.masters,
            lr=optim.learning_rate,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=device.type == "cuda" or optim.offload,
        )

    def _at_home(self, x: Tensor) -> Tensor:
        """A float32 copy of `x` where the masters are; what GPUs read from there is pinned."""
        copy = x.to(self.home, torch.float32, copy=True)
        return copy.pin_memory() if self.home != self.device else copy

    def set_rate(self, factor: float) -> None:
        """Sets the learning rate to `factor` of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_rate * factor

    @torch.no_grad()
    def step(self) -> Tensor:
        """One update from the working weights' gradients; gives the gradient norm before clipping.

        With `passes` above 1 every so many-th call updates, with the mean of the gradients, and
        the calls between give the norm of the last update. They are added up in float32, for the
        working weights' own type may lose small ones. With several processes the gradients are
        averaged, once an update.
        """
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.working]
        if self.passes > 1:
            sums = [m.grad for m in self.masters if m.grad is not None]
            if self._pending == 0:
                torch._foreach_zero_(sums)
            there = [g.to(self.home) for g in grads]
            torch._foreach_add_(sums, there, alpha=1 / self.passes)
            self.net.zero_grad(set_to_none=True)
            self._pending = (self._pending + 1) % self.passes
            if self._pending:
                return self._norm
            grads = sums
        if process_count() > 1:
            grads = self._over_processes(grads)
        exact = [m.grad for m in self.masters if m.grad is not None]
        _copy(exact, grads)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(exact)))
        torch._foreach_mul_(exact, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.net.zero_grad(set_to_none=True)
        _copy(self.working, self.masters)
        self.updates += 1
        if self.average is not self.masters:
            # a short memory at first, so that the average forgets the initialisation
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self.average, self.masters, 1 - decay)
        self._norm = norm.to(self.device)
        return self._norm

    def _over_processes(self, grads: list[Tensor]) -> list[Tensor]:
        """The means of `grads` over all processes."""
        if self.home == self.device:
            flat = torch.cat([g.reshape(-1) for g in grads])
            dist.all_reduce(flat)
            flat /= process_count()
            parts = flat.split([g.numel() for g in grads])
            return [a.view_as(g) for a, g in zip(parts, grads, strict=True)]
        means: list[Tensor] = []
        for grad in grads:  # one at a time: the device has no room for all, and NCCL takes no other
            mean = grad.to(self.device)
            dist.all_reduce(mean)
            means.append((mean / process_count()).to(self.home))
        return means

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The working weights are the averaged ones as long as the context lasts."""
        with torch.no_grad():
            _copy(self.working, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self.working, self.masters)

    def state(self, which: str = "average") -> dict[str, Tensor]:
        """State dict of the float32 masters (`which="masters"`) or of their moving average."""
        values = self.average if which == "average" else self.masters
        state = dict(zip(self.names, values, strict=True))
        buffers = {n: b for n, b in self.net.named_buffers()}
        frozen = {n: p.detach() for n, p in self.net.named_parameters() if not p.requires_grad}
        return {**state, **buffers, **frozen}

    @torch.no_grad()
    def load(self, masters: dict[str, Tensor], average: dict[str, Tensor] | None = None) -> None:
        """Takes over weights (and their moving average, else the same weights)."""
        for i, name in enumerate(self.names):
            self.masters[i].copy_(masters[name])
            if self.average is not self.masters:
                self.average[i].copy_((average or masters)[name])
        _copy(self.working, self.masters)
        self.is_loaded = True

    def full_state(self) -> dict[str, Any]:
        """Everything a full resume needs."""
        return {
            "masters": dict(zip(self.names, self.masters, strict=True)),
            "average": dict(zip(self.names, self.average, strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restores what `full_state` gave."""
        self.load(state["masters"], state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies the numbers of each source, wherever the two lists are."""
    if targets[:1] and targets[0].device != sources[0].device:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    else:
        torch._foreach_copy_(targets, sources)


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process among those that train together."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def agree(value: float, device: torch.device) -> float:
    """The largest `value` of all processes; each waits for the others. One process: `value`."""
    if process_count() == 1:
        return value
    tensor = torch.tensor(value, device=device, dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def rate_factor(optim: OptimConfig, step: int, progress: float) -> float:
    """Learning-rate factor at `step` of a run that is `progress` (0..1) through."""
    import math

    warm = min(1.0, (step + 1) / optim.warmup_steps)
    if progress <= optim.decay_from or optim.decay_from >= 1:
        return warm
    x = min(1.0, (progress - optim.decay_from) / (1 - optim.decay_from))
    return warm * (optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * x)))
