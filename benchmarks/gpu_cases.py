"""What benchmarks/gpu.py measures, and in which order."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from typing import Any

STEPS = {"addsr": (1, 2, 4), "seesr": (50,), "stablesr": (4, 200)}
"""The models, the most wanted first, and how many steps of theirs are measured."""
SIZES = {"addsr": (512, 2048), "seesr": (512, 2048), "stablesr": (512, 1024, 2048)}


@dataclass(frozen=True)
class Variant:
    """What differs from a pipeline as it is."""

    is_channels_last: bool = False
    compiled: Any = None
    """torch.compile's mode."""
    call: tuple[tuple[str, Any], ...] = ()
    """Arguments of the call."""
    models: tuple[str, ...] = ("addsr", "seesr", "stablesr")
    pictures: int = 1
    """Of one call; figures are of one of them."""
    is_fused: bool = False
    """Whether queries, keys and values of an attention come of one matrix product."""
    only_large: bool = False
    """Whether it does nothing for a picture of one tile."""


TINY = (("refine_decoder", "tiny"),)
BATCH = (("picture_batch", 4),)
VARIANTS = {
    "plain": Variant(),
    "channels-last": Variant(True),
    "tiny-decoder": Variant(call=TINY, models=("addsr",)),
    "batch-4": Variant(True, call=BATCH, models=("addsr", "seesr"), pictures=4),
    "tile-batch-1": Variant(call=(("tile_batch", 1),), only_large=True),
    "tile-batch-16": Variant(call=(("tile_batch", 16),), only_large=True),
    "vae-whole": Variant(call=(("vae_tile", None),), only_large=True),
    "graphs-channels-last": Variant(True, "reduce-overhead"),
    "graphs-tiny-decoder": Variant(True, "reduce-overhead", TINY, ("addsr",)),
    "graphs-vae-whole": Variant(True, "reduce-overhead", (("vae_tile", None),), only_large=True),
    "graphs-batch-4": Variant(True, "reduce-overhead", BATCH, ("addsr", "seesr"), pictures=4),
    "compile": Variant(False, "default"),
    "compile-channels-last": Variant(True, "default"),
    "graphs": Variant(False, "reduce-overhead"),
    "graphs-fused": Variant(True, "reduce-overhead", is_fused=True),
}
"""In the order in which they are measured: what is alike in layout and mode is compiled once."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size: int
    dtype: str
    steps: int
    variant: str = "plain"
    model: str = "stablesr"

    @property
    def is_compiled(self) -> bool:
        return VARIANTS[self.variant].compiled is not None


def cases(args: argparse.Namespace) -> list[Case]:
    """All rows, the most wanted first: few steps, many steps, variants, those compiled last."""
    found: list[Case] = []
    for model in args.only:
        sizes, steps = args.sizes or SIZES[model], model_steps(args, model)
        plain = [Case(s, d, n, "plain", model) for n in steps for d in args.dtypes for s in sizes]
        plain.sort(key=lambda case: (args.dtypes.index(case.dtype), case.steps, case.size))
        found += plain
    side, first = (32 if args.tiny else 512), args.dtypes[0]
    order = list(VARIANTS)
    others: list[Case] = []
    for model in args.only:
        sizes, steps = args.sizes or SIZES[model], model_steps(args, model)
        # one step has no look at itself, four are the common number; of others the fewest
        chosen = steps if model == "addsr" else steps[:1]
        for name in args.variants:
            variant = VARIANTS[name]
            if name == "plain" or model not in variant.models:
                continue
            for size, number in itertools.product(sizes, chosen):
                looks = number > 1 or "refine_decoder" not in dict(variant.call)
                if looks and not (variant.only_large and size <= side):
                    others.append(Case(size, first, number, name, model))
    # model by model and then variant by variant: what is compiled serves all sizes and steps
    others.sort(key=lambda c: (c.is_compiled, list(STEPS).index(c.model), order.index(c.variant)))
    return found + others


def model_steps(args: argparse.Namespace, model: str) -> list[int]:
    """How many steps of `model` are measured; AddSR takes no more than four."""
    wanted = args.steps or STEPS[model]
    return [n for n in wanted if model != "addsr" or n <= 4]


def part_cases(args: argparse.Namespace) -> list[Case]:
    """Of which settings the parts are timed alone: one tile, each layout and mode."""
    wanted = ("plain", "channels-last", "compile-channels-last", "graphs-channels-last")
    found: list[Case] = []
    for model in args.only:
        if model == "seesr" and "addsr" in args.only:
            continue  # has the same ones
        size = min(args.sizes or SIZES[model])
        names = [n for n in wanted if n == "plain" or n in args.variants]
        found += [Case(size, args.dtypes[0], 0, name, model) for name in names]
    return found


def ordered(args: argparse.Namespace) -> list[tuple[str, Case]]:
    """Rows, and the parts of each setting behind the rows that have compiled what they need."""
    todo: list[tuple[str, Case]] = [("rows", case) for case in cases(args)]
    for case in part_cases(args):
        alike = [
            k for k, (_, c) in enumerate(todo)
            if (c.model, c.dtype, c.variant) == (case.model, case.dtype, case.variant)
        ]  # fmt: skip
        todo.insert(alike[-1] + 1 if alike else len(todo), ("parts", case))
    return todo
