"""Seconds and peak memory of full-size StableSR on a GPU, with random weights.

    python benchmarks/gpu.py --minutes 9

builds the pipeline on the device (no weights file is read or written) and measures outputs of 512,
1024 and 2048 px at 4 and 200 steps in bf16 and fp16, then variants. It writes docs/gpu.json after
every row and makes docs/benchmarks.md of it; `--render-only` does the last alone. When --minutes
are over it stops and says what was not run. What would take too long is measured on fewer steps,
and then marked as extrapolated.

Random weights cost what trained ones do, and give no pictures. It needs addsr's core and diffusers,
and nothing of the command line. On a machine that has torch, transformers and accelerate but
reaches no package index, two wheels are enough: `pip download --no-deps diffusers
importlib_metadata` elsewhere, `pip install --no-index --no-deps --target SITE *.whl` there, then
`PYTHONPATH=src:SITE` (tried with diffusers 0.42.1, importlib_metadata 10.2.0, transformers 5.17 and
torch 2.11). `--tiny --device cpu` tries the script out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_page import render
from torch import Tensor, nn

import addsr
from addsr.diffusion.aggregate import tile_starts
from addsr.errors import AddsrError, OptionError
from addsr.nets.stablesr import (
    CfwConfig,
    EncoderConfig,
    FeatureWrapping,
    SftConfig,
    SftLayers,
    TimeAwareEncoder,
    UnetConfig,
    VaeConfig,
    build_unet,
    build_vae,
)
from addsr.pipelines.stablesr import PipelineConfig, StableSRPipeline

DOCS = Path(__file__).parent.parent / "docs"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels-last": {},
    "compile": {},
    "compile-channels-last": {},
    "tile-batch-1": {"tile_batch": 1},
    "tile-batch-16": {"tile_batch": 16},
    "vae-whole": {"vae_tile": None},
}
"""What differs from the pipeline as it is; arguments of the call, where it is one."""
REPEATED = 8
"""Up to so many steps a row is the median of several runs."""
COMPILING_SECONDS = 120
"""Without so much time left nothing is compiled any more."""
_VARIANT = "_benchmark_variant"
"""Attribute of a pipeline that says what it was made into."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size: int
    dtype: str
    steps: int
    variant: str = "plain"


def build(device: str, dtype: torch.dtype, *, is_tiny: bool) -> StableSRPipeline:
    """The pipeline with fresh weights, made where it will run and in the type it will run in."""
    shapes: dict[str, Any] = {"unet": None, "encoder": None, "sft": None, "vae": None, "cfw": None}
    context, config = 1024, PipelineConfig()
    if is_tiny:
        widths, context = (32, 64), 24
        shapes = {
            "unet": UnetConfig(
                widths=widths, blocks=1, attention=(True, False), head_channels=16, context=context
            ),
            "encoder": EncoderConfig(
                widths=widths, blocks=1, attention=(True, False), time_channels=32, features=32
            ),
            "sft": SftConfig(widths=widths, blocks=1, features=32, hidden=16),
            "vae": VaeConfig(widths=(32, 32, 32), blocks=1),
            "cfw": CfwConfig(widths=(32,), growth=8),
        }
        config = PipelineConfig(tile=32, steps=2)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return StableSRPipeline(
                unet=build_unet(shapes["unet"]),
                encoder=TimeAwareEncoder(shapes["encoder"]),
                sft=SftLayers(shapes["sft"]),
                vae=build_vae(shapes["vae"]),
                cfw=FeatureWrapping(shapes["cfw"]),
                prompt_embeds=torch.randn(1, 77, context),
                config=config,
            )
    finally:
        torch.set_default_dtype(before)


def set_variant(pipe: StableSRPipeline, variant: str) -> None:
    """Memory format and compilation as `variant` says; the others' are undone.

    What is compiled stays so from size to size of one variant: compiling takes minutes.
    """
    if getattr(pipe, _VARIANT, "plain") == variant:
        return
    setattr(pipe, _VARIANT, "")  # should the rest fail
    layout = torch.channels_last if "channels-last" in variant else torch.contiguous_format
    for net in nets(pipe):
        net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if vars(pipe.guided).pop("forward", None) is not None:
        torch.compiler.reset()  # what was compiled for another setting counts against a limit
    if "compile" in variant:
        forward = pipe.guided.forward
        vars(pipe.guided)["forward"] = torch.compile(forward, dynamic=False)
    setattr(pipe, _VARIANT, variant)


def nets(pipe: StableSRPipeline) -> list[nn.Module]:
    """Its networks."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


class Bench:
    """Measures cases on one pipeline, within a limit of time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.end = time.monotonic() + 60 * args.minutes
        self.pipe: StableSRPipeline | None = None
        self.dtype = ""
        self.warm: set[tuple[int, str, str]] = set()
        self.per_tile: dict[str, float] = {}
        """Seconds of a tile in a step, by number type: what longer cases are foretold from."""
        self.per_pixel: dict[str, float] = {}
        """Seconds of everything but the steps, by number type."""

    def left(self) -> float:
        return self.end - time.monotonic()

    def measure(self, case: Case) -> dict[str, Any]:
        """The row of `case`: figures, or why there are none."""
        row: dict[str, Any] = asdict(case)
        steps = self._affordable(case)
        if not steps:
            return row | {"not_run": "the time was over"}
        try:
            return row | self._run(case, steps)
        except torch.OutOfMemoryError:
            return row | {"not_run": "out of memory"}
        # one variant that fails on this machine (of torch.compile, say) must not cost the others
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            text = reason if isinstance(error, AddsrError) else f"{type(error).__name__}: {reason}"
            return row | {"not_run": f"failed: {text[:200]}"}
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _affordable(self, case: Case) -> int:
        """How many steps of `case` fit in the time that is left; 0: none."""
        steps = case.steps
        if case.size >= self.args.shorten_from:
            steps = min(steps, self.args.measured_steps)
        reserve = COMPILING_SECONDS if "compile" in case.variant and not self.args.tiny else 0
        if self.left() <= reserve:
            return 0
        second = self.per_tile.get(case.dtype, 0.0) * self._tiles(case.size)
        if not second:
            return steps
        # twice, and one step more: the first run of a setting comes before the one that counts
        around = 2 * self.per_pixel.get(case.dtype, 0.0) * case.size**2
        fitting = int((self.left() - around) / second) - 1
        if fitting >= steps:
            return steps
        return fitting if fitting >= min(steps, 2) else 0

    def _tiles(self, size: int) -> int:
        side = 32 if self.args.tiny else 512
        return len(tile_starts(size, min(side, size), side // 2)) ** 2

    def _pipe(self, case: Case) -> StableSRPipeline:
        if self.pipe is None or self.dtype != case.dtype:
            self.pipe = None  # not two of them at once
            gc.collect()
            self.pipe = build(str(self.device), DTYPES[case.dtype], is_tiny=self.args.tiny)
            self.dtype, self.warm = case.dtype, set()
        set_variant(self.pipe, case.variant)
        return self.pipe

    def _run(self, case: Case, steps: int) -> dict[str, Any]:
        pipe, options = self._pipe(case), VARIANTS[case.variant]
        generator = torch.Generator().manual_seed(0)
        lr = torch.rand(1, 3, case.size // 4, case.size // 4, generator=generator)
        found: dict[str, Any] = {"measured_steps": steps}
        setting = (case.size, case.dtype, case.variant)
        if setting not in self.warm:
            found["first_run_seconds"] = self._time(pipe, lr, 1, options)[0]
            self.warm.add(setting)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        repeats = self.args.repeats if steps <= REPEATED else 1
        runs: list[tuple[float, list[float]]] = []
        for _ in range(repeats):
            runs.append(self._time(pipe, lr, steps, options))
            if self.left() <= 0:
                break
        seconds = statistics.median(total for total, _ in runs)
        gaps = [gap for _, some in runs for gap in some]
        if gaps:
            found["seconds_per_step"] = statistics.median(gaps)
            if case.variant == "plain":
                per_tile = found["seconds_per_step"] / self._tiles(case.size)
                self.per_tile[case.dtype] = per_tile
                around = max(seconds - steps * found["seconds_per_step"], 0.0)
                self.per_pixel[case.dtype] = around / case.size**2
        if steps < case.steps:
            if not gaps:
                return {"not_run": "the time was over"}
            seconds += (case.steps - steps) * found["seconds_per_step"]
        found |= {"seconds": seconds, "runs": len(runs)}
        if self.device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            found["reserved_bytes"] = torch.cuda.max_memory_reserved()
        return found

    def _time(
        self, pipe: StableSRPipeline, lr: Tensor, steps: int, options: dict[str, Any]
    ) -> tuple[float, list[float]]:
        """Seconds of a whole call, and from each step's end to the next one's."""
        ends: list[float] = []

        def ended(_pipe: object, _step: int, _t: float, _tensors: dict[str, Any]) -> None:
            self._wait()
            ends.append(time.perf_counter())

        self._wait()
        started = time.perf_counter()
        pipe(
            lr, steps, generator=torch.Generator().manual_seed(1), output_type="pt",
            callback_on_step_end=ended, **options,
        )  # fmt: skip
        self._wait()
        gaps = [b - a for a, b in itertools.pairwise(ends)]
        return time.perf_counter() - started, gaps

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def cases(args: argparse.Namespace) -> list[Case]:
    """All rows, the most wanted first: few steps, many steps, variants, those compiled last."""
    plain = [Case(s, d, n) for n in args.steps for d in args.dtypes for s in args.sizes]
    plain.sort(key=lambda case: (args.dtypes.index(case.dtype), case.steps, case.size))
    least, first = min(args.steps), args.dtypes[0]
    side = 32 if args.tiny else 512
    others: list[Case] = []
    for size in args.sizes:
        for variant in args.variants:
            only_large = variant.startswith("tile-batch") or variant == "vae-whole"
            if variant != "plain" and not (only_large and size <= side):
                others.append(Case(size, first, least, variant))
    # compiled once for all sizes, so these go variant by variant
    others.sort(key=lambda c: args.variants.index(c.variant) + 1 if "compile" in c.variant else 0)
    return plain + others


def facts(device: str, *, is_tiny: bool) -> dict[str, Any]:
    """What the figures depend on."""
    import diffusers

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "diffusers": diffusers.__version__,
        "addsr": addsr.__version__,
        "is_tiny": is_tiny,
    }
    if device.startswith("cuda"):
        found["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def write(path: Path, text: str) -> None:
    """Writes `path` by way of a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def listed(text: str, known: Sequence[str], name: str) -> list[str]:
    """The parts of a list with commas, checked.

    Raises:
        OptionError: one that is not known.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in known]
    if unknown or not parts:
        raise OptionError(f"{name}: {text!r} must be some of {', '.join(known)}")
    return parts


def whole(text: str, name: str, allowed: Callable[[int], bool], what: str) -> list[int]:
    """The numbers of a list with commas, rising.

    Raises:
        OptionError: one that is not allowed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and allowed(int(part)) for part in parts):
        raise OptionError(f"{name}: {text!r} must be {what}")
    return sorted({int(part) for part in parts})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="512,1024,2048", help="sides of the outputs")
    parser.add_argument("--steps", default="4,200")
    parser.add_argument("--dtypes", default="bf16,fp16", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--variants", default="all", help=f"all or some of {','.join(VARIANTS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the whole run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of a row with few steps")
    parser.add_argument("--shorten-from", type=int, default=2048, help="sides measured in part")
    parser.add_argument("--measured-steps", type=int, default=20, help="steps of such a side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    args = parser.parse_args(argv)
    data = args.docs / "gpu.json"
    try:
        args.dtypes = listed(args.dtypes, list(DTYPES), "dtypes")
        names = list(VARIANTS)
        args.variants = (
            names if args.variants == "all" else listed(args.variants, names, "variants")
        )
        args.sizes = whole(
            args.sizes, "sizes", lambda n: n >= 32 and n % 32 == 0, "multiples of 32"
        )
        args.steps = whole(args.steps, "steps", lambda n: 1 <= n <= 1000, "numbers from 1 to 1000")
        if (
            args.device.startswith("cuda")
            and not torch.cuda.is_available()
            and not args.render_only
        ):
            raise OptionError("device: torch sees no CUDA device here; give --device cpu --tiny")
        if args.render_only and not data.is_file():
            raise OptionError(f"docs: {data} is not there; measure first, or give its folder")
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not args.render_only:
        measure_all(args, data)
    write(args.docs / "benchmarks.md", render(json.loads(data.read_text(encoding="utf-8"))))
    return 0


def measure_all(args: argparse.Namespace, data: Path) -> None:
    """Measures every case and keeps the JSON file up to date; other devices' figures stay, and
    those of the full size when the script is tried out.
    """
    machine: dict[str, Any] = {**facts(args.device, is_tiny=args.tiny), "rows": []}
    runs: list[dict[str, Any]] = []
    if data.is_file():
        runs = json.loads(data.read_text(encoding="utf-8"))["runs"]
    same = ("device", "is_tiny")
    runs = [run for run in runs if any(run[k] != machine[k] for k in same)] + [machine]
    bench = Bench(args)
    for case in cases(args):
        row = bench.measure(case)
        machine["rows"].append(row)
        write(data, json.dumps({"runs": runs}, indent=1) + "\n")
        told = row.get("not_run") or f"{row['seconds']:.2f} s"
        print(f"{case}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
