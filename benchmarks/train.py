"""Training throughput: crops/s and TFLOP/s of a task beside the device's bf16 matrix rate.

    python benchmarks/train.py teacher --config recipes/teacher.toml [--profile trace.txt]

Three figures side by side: the step alone on one fixed batch, the step fed from the data pool, and
the pool alone. What lies between the first two is the cost of the data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from addsr.train.compiling import load_cache, save_cache
from addsr.train.config import load_recipe, parse_overrides
from addsr.train.run import make_pool, make_task
from addsr.train.task import Batch, Task


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_per_call(call: Callable[[], object], count: int) -> float:
    """Mean wall seconds of `call` over `count` calls, after three of warm-up."""
    for _ in range(3):
        call()
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - began) / count


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a large bf16 matrix product on random data."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / seconds_per_call(lambda: a @ b, 20 if device.type == "cuda" else 3) / 1e12


def profile(task: Task, batch: Batch, path: Path, steps: int = 5) -> None:
    """Writes a table of device time per kernel over `steps` training steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as prof:
        for _ in range(steps):
            task.step(batch)
        synchronize()
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = prof.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=90)
    path.write_text(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    recipe = load_recipe(options.task, options.config, parse_overrides(options.set))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = recipe.run.cudnn_benchmark
    matrix = matrix_rate(device)
    pool = make_pool(recipe.data, 0, device)
    load_cache(recipe.run)
    task = make_task(recipe, device)
    count = task.fresh_samples(recipe.run.batch)
    fixed = Batch(*pool.get(count))

    began = time.perf_counter()

    def step(batch: Batch) -> None:
        task.compiled.begin_pass()
        task.step(batch)

    step(fixed)
    synchronize()
    compiling = time.perf_counter() - began
    bare = seconds_per_call(lambda: step(fixed), options.steps)
    fed = seconds_per_call(lambda: step(Batch(*pool.get(count))), options.steps)
    data = seconds_per_call(lambda: pool.get(count), options.steps)
    flops = task.flops_per_sample()
    save_cache(recipe.run)

    figures: dict[str, float | str] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "task": options.task,
        "batch": recipe.run.batch,
        "crop_px": recipe.data.crop_px,
        "gflop_per_crop": flops / 1e9,
        "bf16_matrix_tflops": matrix,
        "first_step_seconds": compiling,
    }
    print(
        f"{figures['device']}, torch {torch.__version__}, bf16 matrix product {matrix:.0f} TFLOP/s"
    )
    print(f"first step (compilation) {compiling:.1f} s, {flops / 1e9:.0f} GFLOP a crop")
    for name, seconds in (("step alone", bare), ("step and data", fed)):
        rate = recipe.run.batch / seconds
        figures[f"{name}: crops/s"] = rate
        figures[f"{name}: TFLOP/s"] = rate * flops / 1e12
        print(
            f"{name:14s} {rate:7.0f} crops/s  {rate * flops / 1e12:5.0f} TFLOP/s "
            f"({rate * flops / 1e12 / matrix:.0%} of the matrix rate)"
        )
    figures["data alone: crops/s"] = count / data
    print(f"{'data alone':14s} {count / data:7.0f} crops/s")
    if graphs := task.compiled.count_graphs(device):
        figures["cuda_graphs"] = graphs
        print(f"{graphs} CUDA graphs recorded")
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak device memory {figures['peak_memory_gib']:.1f} GiB")
    if options.profile:
        profile(task, fixed, options.profile)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    pool.close()


if __name__ == "__main__":
    main()
