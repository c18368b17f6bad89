"""Seconds and peak memory of full-size StableSR, AddSR and SeeSR on a GPU, with random weights.

    python benchmarks/gpu.py --minutes 9 [--only addsr,seesr]

builds the pipelines on the device (no weights file is read or written) and measures outputs of 512
and 2048 px, StableSR's of 1024 px too, in bf16 and fp16: StableSR at 4 and 200 steps, AddSR at 1, 2
and 4, SeeSR at 50; then variants (memory layout, torch.compile, CUDA graphs, tiny decoder) and each
model's parts. It writes docs/gpu.json after every row and makes docs/benchmarks.md of it;
`--render-only` does the last alone. When --minutes are over it stops and says what was not run.
What would take too long is measured on fewer steps, and then marked as extrapolated.

Random weights cost what trained ones do, and give no pictures. It needs addsr's core and diffusers,
and nothing of the command line; AddSR and SeeSR need transformers too. On a machine that has torch,
transformers and accelerate but reaches no package index, two wheels are enough: `pip download
--no-deps diffusers importlib_metadata` elsewhere, `pip install --no-index --no-deps --target SITE
*.whl` there, then `PYTHONPATH=src:SITE` (tried with diffusers 0.42.1, importlib_metadata 10.2.0,
transformers 5.17 and torch 2.11). `--tiny --device cpu` tries the script out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_cases import SIZES, STEPS, VARIANTS, Case, model_steps, ordered
from gpu_data import add, facts, is_same, take_over, write
from gpu_models import Timed, as_model, build, count, fuse, parts_of, work_of
from gpu_page import render
from torch import Tensor

from addsr.diffusion.aggregate import tile_starts
from addsr.errors import AddsrError, OptionError
from addsr.pipelines.prompts import IMAGE_TOKENS

DOCS = Path(__file__).parent.parent / "docs"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
REPEATED = 8
"""Up to so many steps a row is the median of several runs."""
COMPILING_SECONDS = 120
"""Without so much time left nothing is compiled any more."""
PART_RUNS = 20
WORDS = ("tagger", "text_encoder")
"""What finds words for a picture: attributes of AddSR's and SeeSR's pipelines."""
_VARIANT = "_benchmark_variant"
"""Attribute of a pipeline that says what it was made into."""


def set_variant(pipe: Any, name: str) -> None:
    """Memory format and compilation as the variant `name` says; the others' are undone.

    What is compiled stays so from size to size of one variant: compiling takes minutes.
    """
    variant = VARIANTS[name]
    wanted = (variant.is_channels_last, variant.compiled, variant.is_fused)
    before = getattr(pipe, _VARIANT, (False, None, False))
    if before == wanted:
        return
    setattr(pipe, _VARIANT, (False, None, True))  # should the rest fail
    if variant.is_fused != before[2]:
        fuse(pipe, is_wanted=variant.is_fused)
    pipe.to(torch.channels_last if wanted[0] else torch.contiguous_format)
    if wanted[1] is not None:
        torch.compiler.reset()  # what was compiled for another setting counts against a limit
    pipe.compile(wanted[1])
    setattr(pipe, _VARIANT, wanted)


@dataclass(frozen=True)
class Run:
    """One call, in seconds for each picture."""

    seconds: float
    gaps: list[float]
    """From each step's end to the next one's."""
    words: dict[str, float]
    """Of what finds words, within `seconds`."""
    images: Tensor


class Bench:
    """Measures cases on one pipeline, within a limit of time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.end = time.monotonic() + 60 * args.minutes
        self.pipe: Any = None
        self.held = ("", "")
        """Model and number type of `pipe`."""
        self.warm: set[tuple[Any, ...]] = set()
        self.per_tile: dict[tuple[str, str], float] = {}
        """Seconds of a tile in a step, by model and number type: what longer cases are foretold
        from."""
        self.per_pixel: dict[tuple[str, str], float] = {}
        """Seconds of everything but the steps, likewise."""
        self.plain: dict[tuple[Any, ...], Tensor] = {}
        """Pictures of the plain rows."""

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
            if self.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()

    def _affordable(self, case: Case) -> int:
        """How many steps of `case` fit in the time that is left; 0: none."""
        steps = case.steps
        if case.size >= self.args.shorten_from and case.model != "addsr":
            steps = min(steps, self.args.measured_steps)
        reserve = COMPILING_SECONDS if case.is_compiled and not self.args.tiny else 0
        if self.left() <= reserve:
            return 0
        key = (case.model, case.dtype)
        second = self.per_tile.get(key, 0.0) * self._tiles(case.size)
        if not second:
            return steps
        # twice, and one step more: the first run of a setting comes before the one that counts
        around = 2 * self.per_pixel.get(key, 0.0) * case.size**2
        fitting = int((self.left() - around) / second) - 1
        if fitting >= steps:
            return steps
        if case.model == "addsr":  # its steps are not alike, so fewer tell nothing of all
            return 0
        return fitting if fitting >= min(steps, 2) else 0

    def _tiles(self, size: int) -> int:
        side = 32 if self.args.tiny else 512
        return len(tile_starts(size, min(side, size), side // 2)) ** 2

    def _pipe(self, case: Case) -> Any:
        if self.held != (case.model, case.dtype):
            self._build(case.model, case.dtype)
        set_variant(self.pipe, case.variant)
        return self.pipe

    def _build(self, model: str, dtype: str) -> None:
        before, self.warm = self.pipe, set()
        is_same = self.held[1] == dtype and "stablesr" not in (self.held[0], model)
        self.pipe = None  # not two of them at once
        if is_same and before is not None:
            set_variant(before, "plain")
            self.pipe = as_model(model, before)
        else:
            del before
            gc.collect()
            new = build(model, str(self.device), DTYPES[dtype], is_tiny=self.args.tiny)
            self.pipe = as_model(model, new)
            for name in WORDS if model != "stablesr" else ():
                setattr(self.pipe, name, Timed(getattr(self.pipe, name), self._wait))
        self.held = (model, dtype)

    def _call(self, case: Case) -> dict[str, Any]:
        """Arguments besides picture, steps and seed."""
        options: dict[str, Any] = dict(VARIANTS[case.variant].call)
        if case.model == "seesr":
            options["negative_prompt"] = "noise"
        return options

    @torch.no_grad()
    def parts(self, case: Case) -> dict[str, Any]:
        """Seconds of each part of the model in `case`'s variant, run alone and again and again."""
        row: dict[str, Any] = asdict(case)
        reserve = COMPILING_SECONDS if case.is_compiled and not self.args.tiny else 0
        if self.left() <= reserve:
            return row | {"not_run": "the time was over"}
        try:
            pipe = self._pipe(case)
            found: dict[str, float] = {}
            for name, run in parts_of(case.model, pipe, case.size).items():
                if self.left() <= 0:
                    break
                found[name] = self._again(run)
            return row | {"parts": found}
        except Exception as error:  # as in `measure`
            reason = (str(error).strip().splitlines() or [""])[0]
            return row | {"not_run": f"failed: {type(error).__name__}: {reason[:200]}"}

    def _again(self, run: Callable[[], Any]) -> float:
        """The median of some runs in a row, after three that are not counted."""
        runs = 2 if self.args.tiny else PART_RUNS
        for _ in range(3):
            run()
        seconds: list[float] = []
        for _ in range(runs):
            self._wait()
            started = time.perf_counter()
            run()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _run(self, case: Case, steps: int) -> dict[str, Any]:
        pipe, options = self._pipe(case), self._call(case)
        generator = torch.Generator().manual_seed(0)
        pictures = VARIANTS[case.variant].pictures
        lr = torch.rand(pictures, 3, case.size // 4, case.size // 4, generator=generator)
        found: dict[str, Any] = {"measured_steps": steps}
        setting = (case.model, case.size, case.dtype, case.variant)
        if setting not in self.warm:
            # two of AddSR's steps: the second one looks at the first
            first = min(steps, 2) if case.model == "addsr" else 1
            found["first_run_seconds"] = self._time(pipe, lr, first, options).seconds
            self.warm.add(setting)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # what the first run alone had taken
            torch.cuda.reset_peak_memory_stats()
        # with a look at every step and part, which the device has to be waited for
        watched = self._time(pipe, lr, steps, options, is_watched=True)
        runs, bare = [watched], list[Run]()
        if steps == case.steps:
            repeats = self.args.repeats if steps <= REPEATED else 1
            runs = self._repeat(repeats, pipe, lr, steps, options)
            if watched.words:
                with without_words(pipe):
                    bare = self._repeat(repeats, pipe, lr, steps, _wordless(pipe, options))
        seconds = statistics.median(run.seconds for run in runs)
        for name, value in watched.words.items():
            found[f"{name}_seconds"] = value
        if bare:
            found["seconds_without_words"] = statistics.median(run.seconds for run in bare)
        if watched.gaps:
            found["seconds_per_step"] = statistics.median(watched.gaps)
            if case.variant == "plain":
                per_tile = found["seconds_per_step"] / self._tiles(case.size)
                self.per_tile[case.model, case.dtype] = per_tile
                around = max(seconds - steps * found["seconds_per_step"], 0.0)
                self.per_pixel[case.model, case.dtype] = around / case.size**2
        if steps < case.steps:
            if not watched.gaps:
                return {"not_run": "the time was over"}
            seconds += (case.steps - steps) * found["seconds_per_step"]
        found |= {"seconds": seconds, "runs": len(runs)} | self._compared(case, steps, runs[0])
        if self.device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            found["reserved_bytes"] = torch.cuda.max_memory_reserved()
        return found

    def _repeat(
        self, times: int, pipe: Any, lr: Tensor, steps: int, options: dict[str, Any]
    ) -> list[Run]:
        """Runs without a look at anything, one at least."""
        runs = [self._time(pipe, lr, steps, options)]
        while len(runs) < times and self.left() > 0:
            runs.append(self._time(pipe, lr, steps, options))
        return runs

    def _compared(self, case: Case, steps: int, run: Run) -> dict[str, float]:
        """How far the picture of a variant is from the plain one of the same steps and seed."""
        key = (case.model, case.size, case.dtype, steps)
        if case.variant == "plain":
            self.plain[key] = run.images
        told = VARIANTS[case.variant]
        if case.variant == "plain" or key not in self.plain or told.pictures > 1:
            return {}
        gap = (run.images - self.plain[key]).abs()
        return {"mean_difference": float(gap.mean()), "largest_difference": float(gap.max())}

    def _time(
        self,
        pipe: Any,
        lr: Tensor,
        steps: int,
        options: dict[str, Any],
        *,
        is_watched: bool = False,
    ) -> Run:
        """A whole call; only a watched one tells of its steps and parts, for which it waits."""
        ends: list[float] = []

        def ended(_pipe: object, _step: int, _t: float, _tensors: dict[str, Any]) -> None:
            self._wait()
            ends.append(time.perf_counter())

        words = {k: v for k in WORDS if isinstance(v := getattr(pipe, k, None), Timed)}
        for one in words.values():
            one.seconds, one.is_watched = 0.0, is_watched
        self._wait()
        started = time.perf_counter()
        output = pipe(
            lr, steps, generator=torch.Generator().manual_seed(1), output_type="pt",
            callback_on_step_end=ended if is_watched else None, **options,
        )  # fmt: skip
        self._wait()
        seconds, n = time.perf_counter() - started, len(lr)
        gaps = [(b - a) / n for a, b in itertools.pairwise(ends)]
        told = {k: one.seconds / n for k, one in words.items()}
        return Run(seconds / n, gaps, told, output.images)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def without_words(pipe: Any) -> Generator[None]:
    """A pipeline that is given prompt and tokens, and finds none itself."""
    kept = {name: getattr(pipe, name) for name in WORDS}
    try:
        for name in WORDS:
            setattr(pipe, name, None)
        yield
    finally:
        for name, part in kept.items():
            setattr(pipe, name, part)


def _wordless(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with embeddings in place of what words would be made into."""
    rest = {k: v for k, v in options.items() if k != "negative_prompt"}
    tokens = torch.zeros(1, IMAGE_TOKENS, pipe._image_width)
    found = {**rest, "prompt_embeds": pipe.prompt_embeds, "image_tokens": tokens}
    if "negative_prompt" in options:
        found["negative_prompt_embeds"] = pipe.prompt_embeds
    return found


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
    parser.add_argument("--only", default=",".join(STEPS), help="some of the models, by commas")
    parser.add_argument("--sizes", default="", help="sides of the outputs, in place of each one's")
    parser.add_argument("--steps", default="", help="in place of each model's own numbers")
    parser.add_argument("--dtypes", default="bf16,fp16", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--variants", default="all", help=f"all or some of {','.join(VARIANTS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the whole run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of a row with few steps")
    parser.add_argument("--shorten-from", type=int, default=2048, help="sides measured in part")
    parser.add_argument("--measured-steps", type=int, default=20, help="steps of such a side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--note", default="", help="what the page says of the machine")
    parser.add_argument("--add", type=Path, help="take over figures of this gpu.json and no more")
    parser.add_argument("--render-only", action="store_true", help="the page from the JSON alone")
    args = parser.parse_args(argv)
    data = args.docs / "gpu.json"
    try:
        args.only = listed(args.only, list(STEPS), "only")
        args.only.sort(key=list(STEPS).index)
        args.dtypes = listed(args.dtypes, list(DTYPES), "dtypes")
        names = list(VARIANTS)
        args.variants = (
            names if args.variants == "all" else listed(args.variants, names, "variants")
        )
        if args.sizes:
            args.sizes = whole(
                args.sizes, "sizes", lambda n: n >= 32 and n % 32 == 0, "multiples of 32"
            )
        if args.steps:
            args.steps = whole(
                args.steps, "steps", lambda n: 1 <= n <= 1000, "numbers from 1 to 1000"
            )
        if (
            args.device.startswith("cuda")
            and not torch.cuda.is_available()
            and not (args.render_only or args.add)
        ):
            raise OptionError("device: torch sees no CUDA device here; give --device cpu --tiny")
        if args.note and (args.add or args.render_only):
            raise OptionError("note: goes with measuring; leave it out of --add and --render-only")
        if args.add and not args.add.is_file():
            raise OptionError(f"add: {args.add} is not there; give the gpu.json of another run")
        if args.render_only and not data.is_file():
            raise OptionError(f"docs: {data} is not there; measure first, or give its folder")
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.add:
        add(data, args.add)
    elif not args.render_only:
        measure_all(args, data)
    write(args.docs / "benchmarks.md", render(json.loads(data.read_text(encoding="utf-8"))))
    return 0


def measure_all(args: argparse.Namespace, data: Path) -> None:
    """Measures every case and keeps the JSON file up to date; other devices' figures stay, and
    those of the full size when the script is tried out.
    """
    machine: dict[str, Any] = {
        **facts(args.device, is_tiny=args.tiny), "rows": [], "parts": [], "counted": {}
    }  # fmt: skip
    if args.note:
        machine["note"] = args.note
    runs: list[dict[str, Any]] = []
    if data.is_file():
        runs = json.loads(data.read_text(encoding="utf-8"))["runs"]
    todo = ordered(args)
    take_over(machine, runs, todo)
    runs = [run for run in runs if not is_same(run, machine)] + [machine]
    bench, counted = Bench(args), set[str]()
    for kind, case in todo:
        if case.model not in counted and bench.left() > 0:
            machine["counted"] |= counts(args, case.model)
            counted.add(case.model)
        row = bench.measure(case) if kind == "rows" else bench.parts(case)
        machine[kind].append(row)
        write(data, json.dumps({"runs": runs}, indent=1) + "\n")
        told = row.get("not_run") or (f"{row['seconds']:.3f} s" if kind == "rows" else "parts")
        print(f"{case}: {told}", file=sys.stderr, flush=True)


def counts(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Operations of each part and of each number of steps, by model and size."""
    found: dict[str, Any] = {}
    tile = 32 if args.tiny else 512
    for size in args.sizes or SIZES[model]:
        parts = count(model, size, is_tiny=args.tiny)
        whole_runs: dict[str, float] = {}
        for steps in model_steps(args, model):
            for is_tiny in (False, True) if model == "addsr" else (False,):
                work = work_of(model, size, steps, tile, is_tiny_decoder=is_tiny)
                whole_runs[f"{steps}{' tiny' if is_tiny else ''}"] = work.flops(parts)
        found[f"{model} {size}"] = {"parts": parts, "runs": whole_runs}
    return found


if __name__ == "__main__":
    sys.exit(main())
