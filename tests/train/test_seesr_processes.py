"""Two processes train SeeSR, and its prompt extractor, as one: other pairs, the same networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
from addsr.train.config import load_recipe
from addsr.train.dape import DapeTask
from addsr.train.run import train_recipe
from addsr.train.seesr import SeeSRTask

for name, kind, task in (
    ("dape", DapeTask, {}),
    ("seesr", SeeSRTask, {"base": base, "latent_reuse": 1, "prompt_dropout": 0.5}),
):
    tasks, drawn = [], []

    class Spied(kind):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            tasks.append(self)

        def step(self, batch):
            drawn.append(batch.hr.flatten()[:16].clone())
            return super().step(batch)

        def flops_per_sample(self):
            return 1.0

    setattr(sys.modules[kind.__module__], kind.__name__, Spied)
    for steps, resume in ((1, None), (2, "latest")):
        tables = {"run": {"steps": steps, "output": f"{output}/{name}", "checkpoint_every": 1},
                  "task": {"tagger": tagger, **task}, "data": {"train": [pictures]}}
        recipe = load_recipe(name, Path(recipes) / f"{name}-smoke.toml", tables)
        train_recipe(recipe, resume=resume)
    assert len(drawn) == 4  # two steps of two passes
    for trained in tasks[-1].trained.values():
        assert trained.updates == 2
        for master in trained.masters:
            assert torch.equal(*everywhere(master))
    for numbers in drawn:  # those after the resume too
        a, b = everywhere(numbers)
        assert not torch.equal(a, b)
assert Path(output, "seesr", "prompts", f"tags-{dist.get_rank()}.json").is_file()
"""


@pytest.mark.slow
def test_two_processes_train_seesr_and_its_extractor(
    run_twice: Callable[..., None], text_base: Path, tiny_tagger: Path
) -> None:
    run_twice({"both": PROGRAM}, base=text_base, tagger=tiny_tagger)
