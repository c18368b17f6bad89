"""Two processes train SeeSR, and its prompt extractor, as one: other pairs, the same networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPES = Path(__file__).parents[2] / "recipes"

PROGRAM = """
import os, sys, torch, torch.distributed as dist
from pathlib import Path
from addsr.train.config import load_recipe
from addsr.train.dape import DapeTask
from addsr.train.run import train_recipe
from addsr.train.seesr import SeeSRTask

recipes, base, tagger, data, output = sys.argv[1:]

def everywhere(x):
    found = [torch.zeros_like(x) for _ in range(2)]
    dist.all_gather(found, x.contiguous())
    return found

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
                  "task": {"tagger": tagger, **task}, "data": {"train": [data]}}
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
dist.barrier()
print("all is well", flush=True)
os._exit(0)  # gloo's threads now and then abort an orderly interpreter exit
"""


@pytest.mark.slow
def test_two_processes_train_seesr_and_its_extractor(
    tmp_path: Path, text_base: Path, tiny_tagger: Path
) -> None:
    pytest.importorskip("accelerate", reason="the train extra is not installed")
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(noise).save(tmp_path / "pictures" / "a.png")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [RECIPES, text_base, tiny_tagger, tmp_path / "pictures", tmp_path / "run"]
    done = subprocess.run(
        [*launch, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all is well") == 2
