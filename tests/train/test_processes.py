"""Several processes on one machine train one network on data and noise of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

STABLESR = """
from addsr.train.config import load_recipe
from addsr.train.run import train_recipe
from addsr.train.stablesr import StableSRTask

drawn, tasks = [], []
make, noised = StableSRTask.__init__, StableSRTask.noised

def init(self, *arguments):
    make(self, *arguments)
    tasks.append(self)

def spy(self, z, t, noise):
    drawn.append(torch.cat([t.float(), z.flatten()[:8], noise.flatten()[:8]]))
    return noised(self, z, t, noise)

StableSRTask.__init__, StableSRTask.noised = init, spy
StableSRTask.flops_per_sample = lambda self: 1.0
for steps, resume in ((1, None), (3, "latest")):
    tables = {"run": {"steps": steps, "output": output, "checkpoint_every": 1},
              "task": {"base": base, "latent_reuse": 1}, "data": {"train": [pictures]}}
    recipe = load_recipe("stablesr", Path(recipes) / "stablesr-smoke.toml", tables)
    train_recipe(recipe, resume=resume)

for trained in tasks[-1].trained.values():
    for master in trained.masters:
        a, b = everywhere(master)
        assert torch.equal(a, b)
assert len(drawn) == 6  # three steps of two passes
for numbers in drawn:  # those after the resume too
    a, b = everywhere(numbers)
    assert not (a[2:] == b[2:]).any()
assert not all(torch.equal(*everywhere(numbers[:2])) for numbers in drawn)
"""

ADDSR = """
from addsr.train.addsr import AddSRTask
from addsr.train.config import load_recipe
from addsr.train.run import train_recipe

tasks, drawn = [], []
make, learn = AddSRTask.__init__, AddSRTask._learn

def init(self, *arguments):
    make(self, *arguments)
    tasks.append(self)

def spy(self, pair, hr, z, x):
    drawn.append(torch.cat([hr.flatten()[:8], z.detach().flatten()[:8]]))
    return learn(self, pair, hr, z, x)

AddSRTask.__init__, AddSRTask._learn = init, spy
AddSRTask.flops_per_sample = lambda self: 1.0
for steps, resume in ((1, None), (2, "latest")):
    tables = {"run": {"steps": steps, "output": output, "checkpoint_every": 1},
              "task": {"base": base, "seesr": seesr}, "data": {"train": [pictures]}}
    recipe = load_recipe("addsr", Path(recipes) / "addsr-smoke.toml", tables)
    train_recipe(recipe, resume=resume)

for trained in tasks[-1].trained.values():
    for master in trained.masters:
        assert torch.equal(*everywhere(master))
for buffer in tasks[-1].heads.buffers():  # spectral norms are iterated alike
    torch.testing.assert_close(*everywhere(buffer))
assert len(drawn) == 2
for numbers in drawn:
    a, b = everywhere(numbers)
    assert not (a == b).all()
"""


@pytest.mark.slow
def test_two_processes_train_one_network_before_and_after_a_resume(
    run_twice: Callable[..., None], tmp_path: Path, tiny_base: Path
) -> None:
    from addsr.train.addsr_networks import write_tiny_seesr

    write_tiny_seesr(tmp_path / "seesr")
    run_twice({"stablesr": STABLESR, "addsr": ADDSR}, base=tiny_base, seesr=tmp_path / "seesr")
