"""phi': both of its jobs can be learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from addsr.train.config import load_recipe
from addsr.train.features import FeaturesTask
from addsr.train.task import Batch

RECIPES = Path(__file__).parents[2] / "recipes"


def test_degradations_and_pairs_are_learnt() -> None:
    recipe = load_recipe("features", RECIPES / "features-smoke.toml")
    optim = dataclasses.replace(recipe.optim, learning_rate=4e-3, decay_from=1.0)
    task = FeaturesTask(dataclasses.replace(recipe, optim=optim), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    saw = (torch.arange(48) % 8 / 8 - 0.4).view(1, 1, 1, 48)
    figures: list[dict[str, float]] = []
    for step in range(80):
        task.set_progress(step, 0.0)
        colour = torch.rand(16, 3, 1, 1, generator=generator)
        hr = (0.3 + 0.4 * colour + saw).clamp(0, 1).expand(16, 3, 48, 48)
        values = task.step(Batch(hr, hr[..., ::4, ::4]))
        figures.append({k: float(v) for k, v in values.items()})
    late = {k: sum(f[k] for f in figures[-10:]) / 10 for k in figures[0]}
    assert late["degradation"] < 0.7 * figures[0]["degradation"]
    assert late["pair_accuracy"] > 3 / 16
