"""Several processes on one machine train one network on data and noise of their own."""

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
from addsr.train.run import train_recipe
from addsr.train.stablesr import StableSRTask

recipe, base, data, output = sys.argv[1:]
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
              "task": {"base": base, "latent_reuse": 1}, "data": {"train": [data]}}
    train_recipe(load_recipe("stablesr", Path(recipe), tables), resume=resume)

def everywhere(x):
    found = [torch.zeros_like(x) for _ in range(2)]
    dist.all_gather(found, x)
    return found

for trained in tasks[-1].trained.values():
    for master in trained.masters:
        a, b = everywhere(master)
        assert torch.equal(a, b)
assert len(drawn) == 6  # three steps of two passes
for numbers in drawn:  # those after the resume too
    a, b = everywhere(numbers)
    assert not (a[2:] == b[2:]).any()
assert not all(torch.equal(*everywhere(numbers[:2].contiguous())) for numbers in drawn)
dist.barrier()
print("all is well", flush=True)
os._exit(0)  # gloo's threads now and then abort an orderly interpreter exit
"""

ADDSR = """
import os, sys, torch, torch.distributed as dist
from pathlib import Path
from addsr.train.addsr import AddSRTask
from addsr.train.config import load_recipe
from addsr.train.run import train_recipe

recipe, base, seesr, data, output = sys.argv[1:]
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
              "task": {"base": base, "seesr": seesr}, "data": {"train": [data]}}
    train_recipe(load_recipe("addsr", Path(recipe), tables), resume=resume)

def everywhere(x):
    found = [torch.zeros_like(x) for _ in range(2)]
    dist.all_gather(found, x.contiguous())
    return found

for trained in tasks[-1].trained.values():
    for master in trained.masters:
        assert torch.equal(*everywhere(master))
for buffer in tasks[-1].heads.buffers():  # spectral norms are iterated alike
    torch.testing.assert_close(*everywhere(buffer))
assert len(drawn) == 2
for numbers in drawn:
    a, b = everywhere(numbers)
    assert not (a == b).all()
dist.barrier()
print("all is well", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_distil_one_student(tmp_path: Path, tiny_base: Path) -> None:
    pytest.importorskip("accelerate", reason="the train extra is not installed")
    from addsr.train.addsr_networks import write_tiny_seesr

    write_tiny_seesr(tmp_path / "seesr")
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(noise).save(tmp_path / "pictures" / "a.png")
    program = tmp_path / "program.py"
    program.write_text(ADDSR)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    recipe = RECIPES / "addsr-smoke.toml"
    arguments = [recipe, tiny_base, tmp_path / "seesr", tmp_path / "pictures", tmp_path / "run"]
    done = subprocess.run(
        [*launch, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all is well") == 2


@pytest.mark.slow
def test_two_processes_train_one_network_before_and_after_a_resume(
    tmp_path: Path, tiny_base: Path
) -> None:
    pytest.importorskip("accelerate", reason="the train extra is not installed")
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(noise).save(tmp_path / "pictures" / "a.png")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    recipe = RECIPES / "stablesr-smoke.toml"
    arguments = [recipe, tiny_base, tmp_path / "pictures", tmp_path / "run"]
    done = subprocess.run(
        [*launch, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all is well") == 2
