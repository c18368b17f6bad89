"""Training pictures from tar shards and folders, as uint8 squares in memory.

Shards come from anywhere, so they are read as data only: uncompressed tars, regular members, in
memory, with limits on bytes and pixels. Nothing is extracted and no name becomes a path.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from addsr.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_000_000
"""Largest picture that is decoded; from here on Pillow warns of decompression bombs itself."""

MAX_BYTES = 512 * 2**20
"""Largest encoded picture that is read from a shard or a folder."""

STEP = 64
"""Sides of the squares are multiples of this, so that there are few sizes."""

_WARNINGS_SHOWN = 20


def load_pictures(
    paths: str | Path | Iterable[str | Path],
    *,
    side: int = 640,
    smallest: int = 64,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
) -> list[Tensor]:
    """All pictures of `paths` as uint8 `(N, 3, S, S)`, one tensor per size S, largest first.

    A picture is cut into evenly spread squares of `side`, one with a shorter side into squares of
    the largest multiple of 64 that fits. The result depends on the files alone, not on timing.

    Args:
        paths: folders (searched recursively for pictures and `.tar` shards), shards, pictures.
        side: largest square, a multiple of 64.
        smallest: pictures with a shorter side are left out.
        max_pixels: larger pictures are left out unread.
        threads: decoding threads; None takes one per core, at most 16.

    Unreadable, too large and too small pictures are named in a warning and left out.

    Raises:
        InputError: a path does not exist, or no picture is left.
    """
    if side < STEP or side % STEP:
        raise InputError(f"side = {side} is not allowed; give a multiple of {STEP} from {STEP}")
    sources = [paths] if isinstance(paths, str | Path) else list(paths)
    squares: dict[int, list[np.ndarray]] = {}
    problems = _Problems()
    for cut in _decode(_encoded(sources, problems), side, smallest, max_pixels, threads, problems):
        for square in cut:
            squares.setdefault(len(square), []).append(square)
    problems.report()
    if not squares:
        named = ", ".join(str(source) for source in sources) or "no path"
        raise InputError(
            f"{named}: no picture that can be used{problems.summary()}; give folders or .tar "
            f"shards with pictures ({', '.join(SUFFIXES)}) of {max(smallest, STEP)} pixels a side "
            "or more"
        )
    out: list[Tensor] = []
    for size in sorted(squares, reverse=True):
        stack = np.stack(squares.pop(size))  # (N, S, S, 3)
        out.append(torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous())
    return out


def cut_squares(picture: np.ndarray, side: int = 640) -> list[np.ndarray]:
    """Squares `(S, S, 3)` of a picture `(H, W, 3)`; S is `side` or the largest multiple of 64."""
    height, width = picture.shape[:2]
    size = min(side, min(height, width) // STEP * STEP)
    if size == 0:
        return []
    tops, lefts = _starts(height, size), _starts(width, size)
    return [picture[y : y + size, x : x + size] for y, x in itertools.product(tops, lefts)]


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 RGB `(H, W, 3)` of an encoded picture, upright; transparent parts are laid on white.

    Raises:
        InputError: not a picture, damaged, of more than `max_pixels`, or of more than 8 bits.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{name}: {image.width} x {image.height} is more than the "
                    f"{max_pixels / 1e6:.0f} megapixels that are read; cut it into parts first"
                )
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{name}: has mode {image.mode}; save it with 8 bits per channel")
            image = ImageOps.exif_transpose(image)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its own text names a buffer that nobody knows
        raise InputError(
            f"{name}: cannot be read (not a picture); give {', '.join(SUFFIXES)}"
        ) from error
    except Exception as error:  # decoders fail in many ways on damaged data
        raise InputError(f"{name}: cannot be read ({error}); copy or download it again") from error


def read_picture(path: Path) -> bytes:
    """The encoded picture in a file.

    Raises:
        InputError: unreadable, or larger than `MAX_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size} bytes is more than the {MAX_BYTES} that are read")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


class _Problems:
    """What was left out: named in warnings up to a limit, counted beyond it."""

    def __init__(self) -> None:
        self.unreadable = 0
        self.too_small = 0

    def bad(self, message: str) -> None:
        self.unreadable += 1
        self._warn(f"{message} (left out)")

    def small(self, name: str, width: int, height: int, smallest: int) -> None:
        self.too_small += 1
        self._warn(f"{name}: {width} x {height} is smaller than {smallest} (left out)")

    def _warn(self, message: str) -> None:
        if self.unreadable + self.too_small <= _WARNINGS_SHOWN:
            log.warning("%s", message)

    def summary(self) -> str:
        if not self.unreadable + self.too_small:
            return ""
        return f" ({self.unreadable} unreadable, {self.too_small} too small)"

    def report(self) -> None:
        if self.unreadable + self.too_small:
            log.warning("pictures left out:%s", self.summary())


def _encoded(
    sources: Sequence[str | Path], problems: _Problems
) -> Iterator[tuple[str, bytes | Path]]:
    """Names and contents of all pictures in a fixed order; files stay paths until decoded."""
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file())
        elif path.is_file():
            found = [path]
        else:
            raise InputError(f"{path}: does not exist; give a folder, a .tar shard or a picture")
        for file in found:
            if file.suffix.lower() == ".tar":
                yield from _members(file, problems)
            elif file.suffix.lower() in SUFFIXES:
                yield str(file), file


def _members(shard: Path, problems: _Problems) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(shard, "r:") as tar:  # "r:" refuses compressed tars, and their bombs
            for member in tar:
                name = f"{shard}/{member.name}"
                if not member.isreg() or not member.name.lower().endswith(SUFFIXES):
                    continue
                if member.size > MAX_BYTES:
                    problems.bad(f"{name}: {member.size} bytes is more than {MAX_BYTES}")
                    continue
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                if len(data) < member.size:
                    problems.bad(f"{name}: the shard ends in the middle of it; download it again")
                    return
                yield name, data
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        problems.bad(f"{shard}: cannot be read on ({error}); give an uncompressed .tar")


def _decode(
    encoded: Iterator[tuple[str, bytes | Path]],
    side: int,
    smallest: int,
    max_pixels: int,
    threads: int | None,
    problems: _Problems,
) -> Iterator[list[np.ndarray]]:
    """Squares of each picture in order; a bounded number of pictures is under way at a time."""

    def work(name: str, content: bytes | Path) -> tuple[int, int, list[np.ndarray]]:
        if isinstance(content, Path):
            content = read_picture(content)
        picture = decode_picture(content, name, max_pixels)
        height, width = picture.shape[:2]
        cut = cut_squares(picture, side) if min(height, width) >= max(smallest, STEP) else []
        # copies, so that the squares do not keep a huge picture alive
        return width, height, [square.copy() for square in cut]

    threads = threads or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        pending: list[tuple[str, Future[tuple[int, int, list[np.ndarray]]]]] = []

        def finish() -> list[np.ndarray]:
            name, future = pending.pop(0)
            try:
                width, height, cut = future.result()
            except InputError as error:
                problems.bad(str(error))
                return []
            if not cut:
                problems.small(name, width, height, max(smallest, STEP))
            return cut

        for name, content in encoded:
            pending.append((name, pool.submit(work, name, content)))
            if len(pending) > 4 * threads:
                yield finish()
        while pending:
            yield finish()


def _starts(length: int, size: int) -> list[int]:
    """First positions of as many squares as fit along a side, one more (and all of them
    overlapping) where at least half a square would be left over."""
    count = max(1, int(length / size + 0.5))
    if count == 1:
        return [(length - size) // 2]
    return [round(k * (length - size) / (count - 1)) for k in range(count)]
