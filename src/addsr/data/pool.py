"""A pool of degraded pairs on the training device, renewed while training runs.

Making a pair costs more than reading one, so each is used about `reuse` times, every time with
other flips and turns. On CUDA a thread with a stream of its own makes new pairs beside training;
on the CPU they are made in `get` when they are due, which makes the sequence of batches
reproducible. In both cases what the n-th chunk of pairs holds depends on the seed alone.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from addsr.errors import OptionError, TrainingError

from .crops import CropSource
from .degrade import degrade
from .draw import derive_seed
from .spec import Preset, resolve


@dataclass
class _Chunk:
    """New pairs and, on CUDA, the event after which they are complete."""

    hr: Tensor
    lr: Tensor
    pictures: Tensor
    """Numbers of the pictures that the pairs are of, on the host."""
    ready: torch.cuda.Event | None = None


class PairPool:
    """Pairs of HR and LR crops for training.

    Args:
        pictures: uint8 `(N, 3, S, S)` tensors from `load_pictures`; moved to `device`.
        crop_px: side of the HR crops, a multiple of `scale`.
        size: number of pairs kept.
        reuse: how often each pair is used on average before it is replaced.
        preset: degradation, see `degrade`.
        seed: of all random choices.
        device: where pictures and pairs are kept.
        scale: HR side over LR side.
        group: pairs that share preset and resizes, see `degrade`.
        chunk: pairs made at a time; None takes 256 on CUDA and 16 on the CPU, at most `size`.
        background: make pairs in a thread; None means on CUDA only.
        rescaled: share of crops cut larger and shrunk, which makes detail denser and sharper.
        textured: share of crops that are the more textured of two tries.
        turned: whether pairs are turned and mirrored in all eight ways; False: mirrored left to
            right only.

    Raises:
        ConfigError: a wrong preset, or no picture is as large as `crop_px`.
        OptionError: another argument outside what it allows.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor],
        *,
        crop_px: int = 256,
        size: int = 4096,
        reuse: float = 2.0,
        preset: Preset = "mixture",
        seed: int = 0,
        device: str | torch.device = "cpu",
        scale: int = 4,
        group: int = 8,
        chunk: int | None = None,
        background: bool | None = None,
        rescaled: float = 0.3,
        textured: float = 0.5,
        turned: bool = True,
    ) -> None:
        self.turned = turned
        self.device = torch.device(device)
        self.crop_px, self.size, self.reuse, self.scale, self.group = (
            crop_px,
            size,
            reuse,
            scale,
            group,
        )
        is_cuda = self.device.type == "cuda"
        self.chunk = min(chunk or (256 if is_cuda else 16), size)
        self._check()
        resolve(preset)
        self.preset, self.seed = preset, seed
        self._is_background = is_cuda if background is None else background
        self._source = CropSource(
            pictures, crop_px, self.device, rescaled=rescaled, textured=textured, group=group
        )
        lr_px = crop_px // scale
        self._hr = torch.empty((size, 3, crop_px, crop_px), dtype=torch.uint8, device=self.device)
        self._lr = torch.empty((size, 3, lr_px, lr_px), dtype=torch.uint8, device=self.device)
        self._pictures = torch.empty(size, dtype=torch.long)
        self._choices = torch.Generator().manual_seed(derive_seed(seed, "choices"))
        self._chunks = 0  # chunks written to the pool since the beginning
        self._served = 0
        self._is_filled = False
        self._maker: _Maker | None = None

    @property
    def chunks_to_fill(self) -> int:
        """Chunks after which every place of the pool holds a pair."""
        return -(-self.size // self.chunk)

    @property
    def served(self) -> int:
        """Pairs handed out since the beginning."""
        return self._served

    @property
    def uses_per_pair(self) -> float:
        """How often each new pair has been used so far; above `reuse` if making pairs is slow."""
        made = (self._chunks - self.chunks_to_fill) * self.chunk
        return self._served / max(made, self.size)

    def get(self, batch: int) -> tuple[Tensor, Tensor]:
        """`batch` pairs: float32 hr `(B, 3, P, P)` and lr `(B, 3, P/4, P/4)` in [0, 1] on the
        device, channels last; each pair is flipped and turned at random.

        Raises:
            TrainingError: making pairs in the background failed.
        """
        return self.get_numbered(batch)[:2]

    @property
    def pictures(self) -> int:
        """How many pictures pairs are cut from."""
        return len(self._source)

    def picture(self, number: int) -> Tensor:
        """A picture that pairs are cut from, uint8 `(3, S, S)` on the device."""
        return self._source.picture(number)

    def get_numbered(self, batch: int) -> tuple[Tensor, Tensor, list[int]]:
        """What `get` gives, and the number of the picture that each pair is of."""
        if batch < 1:
            raise OptionError(f"batch = {batch} is not allowed; give a whole number from 1")
        self._fill()
        self._renew()
        self._served += batch
        table = torch.empty((4, batch), dtype=torch.long)
        table[0] = torch.randint(self.size, (batch,), generator=self._choices)
        table[1:] = torch.randint(2, (3, batch), generator=self._choices)
        if not self.turned:
            table[2:] = 0
        place, *turns = _send(table, self.device).unbind()
        numbers: list[int] = self._pictures[table[0]].tolist()
        return _finish(self._hr[place], turns), _finish(self._lr[place], turns), numbers

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: counters and generator, no pixels."""
        return {
            "seed": self.seed,
            "chunks": self._chunks,
            "served": self._served,
            "choices": self._choices.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; the pairs of that moment are made again.

        With the same pictures and arguments the batches that follow are the same (on the CPU;
        in the background the moments of renewal depend on timing).
        """
        self.close()
        self.seed = int(state["seed"])
        self._served = int(state["served"])
        self._chunks = int(state["chunks"])
        self._choices.set_state(state["choices"].to("cpu", torch.uint8))
        self._is_filled = False

    def close(self) -> None:
        """Ends the thread. The pool stays usable: the next `get` starts another."""
        maker, self._maker = self._maker, None
        if maker is not None:
            maker.close()

    def __enter__(self) -> PairPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def make_chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """The uint8 pairs of chunk `number`; they depend on the seed and the number alone."""
        chunk = self.make_whole(number)
        return chunk.hr, chunk.lr

    def make_whole(self, number: int) -> _Chunk:
        """Chunk `number` with the pictures that its pairs are of."""
        host = torch.Generator().manual_seed(derive_seed(self.seed, "chunk", number))
        hr, pictures = self._source.draw_numbered(self.chunk, host)
        lr = degrade(
            hr.float() / 255, self.preset, scale=self.scale, generator=host, group=self.group
        )
        return _Chunk(hr, (lr * 255).round().to(torch.uint8), pictures)

    def _fill(self) -> None:
        if self._is_filled:
            return
        first = max(0, self._chunks - self.chunks_to_fill)
        last = max(self._chunks, self.chunks_to_fill)
        for number in range(first, last):
            self._write(number, self.make_whole(number))
        self._chunks = last
        self._is_filled = True

    def _renew(self) -> None:
        due = int(self._served / self.reuse / self.chunk) + self.chunks_to_fill - self._chunks
        if due > 0 and not self._is_background:
            for _ in range(due):
                self._write(self._chunks, self.make_whole(self._chunks))
                self._chunks += 1
        elif self._is_background:
            if self._maker is None:
                self._maker = _Maker(self, self._chunks)
            while due > 0 and (chunk := self._maker.take()) is not None:
                self._write(self._chunks, chunk)
                self._chunks += 1
                due -= 1

    def _write(self, number: int, chunk: _Chunk) -> None:
        """Puts a chunk in its place; the last chunk of a round may be cut to fit."""
        if chunk.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(chunk.ready)
            for made in (chunk.hr, chunk.lr):  # their memory belongs to the maker's stream
                made.record_stream(stream)
        start = number % self.chunks_to_fill * self.chunk
        count = min(self.chunk, self.size - start)
        self._hr[start : start + count] = chunk.hr[:count]
        self._lr[start : start + count] = chunk.lr[:count]
        self._pictures[start : start + count] = chunk.pictures[:count]

    def _check(self) -> None:
        def refuse(name: str, value: float, allowed: str) -> OptionError:
            return OptionError(f"{name} = {value} is not allowed; give {allowed}")

        if self.scale < 1:
            raise refuse("scale", self.scale, "a whole number from 1")
        if self.crop_px < self.scale or self.crop_px % self.scale:
            raise refuse("crop_px", self.crop_px, f"a multiple of {self.scale}")
        if self.size < 1:
            raise refuse("size", self.size, "a whole number from 1")
        if self.group < 1:
            raise refuse("group", self.group, "a whole number from 1")
        if self.chunk < 1:
            raise refuse("chunk", self.chunk, "a whole number from 1")
        if not self.reuse > 0:
            raise refuse("reuse", self.reuse, "a number above 0")


class _Maker:
    """A thread that keeps a few chunks ready."""

    def __init__(self, pool: PairPool, first: int) -> None:
        self._pool, self._next = pool, first
        self._ready: queue.Queue[_Chunk] = queue.Queue(maxsize=2)
        self._stop = threading.Event()
        self._waiting: _Chunk | None = None
        self._error: BaseException | None = None
        self._stream: torch.cuda.Stream | None = None
        if pool.device.type == "cuda":
            self._stream = torch.cuda.Stream(pool.device)
            # the pictures may still be on their way
            self._stream.wait_stream(torch.cuda.current_stream(pool.device))
        self._thread = threading.Thread(target=self._run, name="pair-pool", daemon=True)
        self._thread.start()
        # a thread that still launches kernels while Python exits brings the process down
        atexit.register(self.close)

    def take(self) -> _Chunk | None:
        """The next chunk, or None if it is not ready."""
        if self._error is not None:
            raise TrainingError(
                f"making training pairs failed: {self._error}; with background=False the error "
                "shows where it happens"
            ) from self._error
        if self._waiting is None:
            try:
                self._waiting = self._ready.get_nowait()
            except queue.Empty:
                return None
        # asking costs nothing; taking it early would make training wait for it on the device
        if self._waiting.ready is not None and not self._waiting.ready.query():
            return None
        chunk, self._waiting = self._waiting, None
        return chunk

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            if self._stream is None:
                self._loop()
            else:
                with torch.cuda.device(self._pool.device), torch.cuda.stream(self._stream):
                    self._loop()
        except BaseException as error:
            self._error = error

    def _loop(self) -> None:
        while not self._stop.is_set():
            chunk = self._pool.make_whole(self._next)
            if self._stream is not None:
                chunk.ready = torch.cuda.Event()
                chunk.ready.record(self._stream)
            self._next += 1
            while not self._stop.is_set():
                try:
                    self._ready.put(chunk, timeout=0.2)
                    break
                except queue.Full:
                    continue


def _send(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def _finish(x: Tensor, turns: Sequence[Tensor]) -> Tensor:
    """uint8 `(B, 3, P, P)` to float32 in [0, 1], channels last.

    `turns` are three columns `(B,)`: mirror left to right, mirror top to bottom, swap the axes.
    Together they give all eight turns and mirrorings.
    """
    across, down, swapped = (turn.bool().view(-1, 1, 1, 1) for turn in turns)
    x = torch.where(across, x.flip(-1), x)
    x = torch.where(down, x.flip(-2), x)
    x = torch.where(swapped, x.transpose(-1, -2), x)
    return x.to(torch.float32, memory_format=torch.channels_last) / 255
