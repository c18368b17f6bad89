"""Pairs of HR and LR files from a folder of pictures, for training and scoring elsewhere."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import InputError, MemoryLimitError, OptionError, OutputError
from addsr.replacing import replacing

from .degrade import degrade
from .draw import derive_seed
from .shards import MAX_PIXELS, SUFFIXES, decode_picture, read_picture
from .spec import Preset, resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairsSummary:
    """What `make_pairs` did; names are relative to the HR folder."""

    written: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of each picture that was left out."""


def make_pairs(
    hr_folder: str | Path,
    out: str | Path,
    preset: Preset = "mild",
    seed: int = 0,
    *,
    scale: int = 4,
    device: str | torch.device = "cpu",
    max_pixels: int = MAX_PIXELS,
    memory_bytes: int | None = None,
    on_file: Callable[[int, int, str], None] | None = None,
) -> PairsSummary:
    """Writes `out/hr/NAME.png` and `out/lr/NAME.png` for every picture of `hr_folder`.

    HR pictures are cropped at the right and bottom to a multiple of `scale`. Subfolders are kept;
    where two pictures differ in their suffix only, NAME keeps it (`cat.jpg.png`). Each file's
    randomness comes from `seed` and its relative name, so other files change nothing. A pair
    appears whole, LR first, or not at all; a picture that cannot be used is named and left out.
    `out/degrade.json` keeps how the pairs were made, and pairs made otherwise are never mixed in.

    Args:
        hr_folder: searched recursively.
        out: made if needed; neither it nor its `hr` and `lr` may overlap with `hr_folder`.
        preset: degradation, see `degrade`.
        seed: any whole number.
        scale: how many times smaller LR is.
        device: where the degradation runs.
        max_pixels: larger pictures are left out.
        memory_bytes: what one picture may take on `device`; pictures that might need more are left
            out. None: no limit.
        on_file: called with (done, total, name) after each picture.

    Raises:
        InputError: `hr_folder` is no folder or holds no picture.
        OutputError: `out` overlaps with `hr_folder`, holds other pairs or cannot be written.
        OptionError: `scale` is below 1; ConfigError: an unknown preset.
    """
    source, target = Path(hr_folder), Path(out)
    if scale < 1:
        raise OptionError(f"scale = {scale} is not allowed; give a whole number from 1")
    resolve(preset)
    if not source.is_dir():
        raise InputError(f"{source}: is no folder; give the folder with the HR pictures")
    _check_apart(source, target)
    names = _outputs(source)
    if not names:
        raise InputError(f"{source}: no pictures; give a folder with {', '.join(SUFFIXES)} files")
    _claim(target, {"preset": _plain(preset), "seed": seed, "scale": scale})
    written: list[str] = []
    skipped: list[tuple[str, str]] = []
    for done, (name, output) in enumerate(names.items(), start=1):
        try:
            hr = _read_hr(source / name, name, scale, max_pixels)
            if memory_bytes is not None:
                _check_memory(hr, name, preset, memory_bytes)
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            lr = _degrade(hr, name, preset, scale, generator, device)
        except (InputError, MemoryLimitError) as error:
            log.warning("%s (left out)", error)
            skipped.append((name, str(error)))
        else:
            _write_png(lr, target / "lr" / output)
            _write_png(hr, target / "hr" / output)
            written.append(name)
        if on_file is not None:
            on_file(done, len(names), name)
    return PairsSummary(tuple(written), tuple(skipped))


def _outputs(source: Path) -> dict[str, PurePosixPath]:
    """Relative names of all pictures, sorted, and where their results go below `hr` and `lr`."""
    found = sorted(
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    plain = {name: PurePosixPath(name).with_suffix(".png") for name in found}
    # file systems that ignore case would write A.png over a.png
    uses = Counter(str(output).lower() for output in plain.values())
    return {
        name: output if uses[str(output).lower()] == 1 else PurePosixPath(f"{name}.png")
        for name, output in plain.items()
    }


def _check_apart(source: Path, target: Path) -> None:
    hr, out = source.resolve(), target.resolve()
    for written in (out / "hr", out / "lr"):
        written = written.resolve()  # a link could lead back to the originals
        if hr == written or written in hr.parents or hr in written.parents:
            raise OutputError(
                f"{target}: would write into {source} or over it; give an output folder outside"
            )


def _plain(preset: Preset) -> Any:
    """`preset` in the types of JSON."""
    if isinstance(preset, str):
        return preset
    values = dict(preset) if isinstance(preset, Mapping) else asdict(preset)
    return json.loads(json.dumps(values))  # tuples become lists, as they will be read back


def _claim(target: Path, facts: dict[str, Any]) -> None:
    """Notes in `target` how its pairs are made; OutputError where it holds pairs made otherwise."""
    note = target / "degrade.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None  # none yet; what else is wrong with the folder, writing tells below
    sides = [side for side in (target / "hr", target / "lr") if side.is_dir()]
    if known != facts and any(any(side.iterdir()) for side in sides):
        stated = cast("dict[str, Any]", known) if isinstance(known, dict) else {}
        made = f"with {_words(stated)}" if stated else "nobody knows how"
        raise OutputError(
            f"{target}: holds pairs made {made}, these would be made with {_words(facts)}; "
            "give another folder, or delete it"
        )
    text = json.dumps(facts, indent=2) + "\n"
    _write(note, lambda path: path.write_text(text, encoding="utf-8"))


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _read_hr(path: Path, name: str, scale: int, max_pixels: int) -> np.ndarray:
    picture = decode_picture(read_picture(path), name, max_pixels)
    height, width = (side // scale * scale for side in picture.shape[:2])
    if not height or not width:
        raise InputError(
            f"{name}: {picture.shape[1]} x {picture.shape[0]} is smaller than scale {scale}; "
            "give a larger picture"
        )
    return picture[:height, :width]


def peak_bytes(preset: Preset, pixels: int) -> int:
    """Most memory that degrading one HR picture of so many pixels may take, itself included.

    For the largest first resize of the preset: were it for the one that is drawn, the pictures
    left out would all be of one kind, and the pairs no longer what the preset says.
    """
    specs, _ = resolve(preset)
    per_pixel = 0.0
    for spec in specs:
        largest = max(1.0, spec.resize1.factor[1] ** 2 if spec.resize1.shares[0] else 1.0)
        # measured: the first blur takes 90 bytes per pixel, Poisson noise and JPEG 150 per pixel
        # of the resized picture, the camera 180 to 190, as the allocator's pieces fall
        stage = 210 if spec.mosaic.probability else 160
        per_pixel = max(per_pixel, 90.0, 20 + stage * largest)
    return int(pixels * (per_pixel + 15)) + 50_000_000


def _check_memory(hr: np.ndarray, name: str, preset: Preset, memory_bytes: int) -> None:
    height, width = hr.shape[:2]
    needed = peak_bytes(preset, height * width)
    if needed > memory_bytes:
        raise MemoryLimitError(
            f"{name}: {width} x {height} may need {needed / 2**30:.2f} GiB to degrade, "
            f"{memory_bytes / 2**30:.2f} GiB are free; cut it into parts, or free memory"
        )


def _degrade(
    hr: np.ndarray,
    name: str,
    preset: Preset,
    scale: int,
    generator: torch.Generator,
    device: str | torch.device,
) -> np.ndarray:
    try:
        x = _to_tensor(hr).to(device)
        return _to_array(degrade(x, preset, scale=scale, generator=generator, group=1))
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"{name}: {hr.shape[1]} x {hr.shape[0]} did not fit in the memory of {device}; "
            "cut it into parts, or use --device cpu"
        ) from error


def _to_tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def _to_array(x: Tensor) -> np.ndarray:
    return (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _write_png(picture: np.ndarray, path: Path) -> None:
    _write(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG"))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save(temporary)
    except OSError as error:
        # without the name of the temporary file, which nobody has heard of
        why = error.strerror or error
        raise OutputError(f"{path}: cannot be written ({why}); choose another folder") from error
