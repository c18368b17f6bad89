"""Training the time-aware variant: its recipe, and the frozen prior in two stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from addsr.errors import ConfigError
from addsr.models.files import load_weights
from addsr.train.config import Recipe, load_recipe
from addsr.train.loop import fit
from addsr.train.run import make_task
from addsr.train.task import Batch
from addsr.train.teacher import TeacherTask

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")


class Noise:
    """A source of random pairs."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def get(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        lr = torch.rand(batch, 3, 16, 16, generator=self.generator)
        return torch.nn.functional.interpolate(lr, scale_factor=4, mode="nearest"), lr

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def recipe(output: Path, net: dict[str, Any] | None = None, **task: Any) -> Recipe:
    made = load_recipe("teacher", RECIPES / "time-aware-smoke.toml", {"net": net or {}})
    return dataclasses.replace(
        made,
        run=dataclasses.replace(made.run, output=str(output)),
        task=dataclasses.replace(made.task, **task),
    )


def train(made: Recipe) -> tuple[TeacherTask, dict[str, torch.Tensor]]:
    task = make_task(made, CPU)
    assert isinstance(task, TeacherTask)
    fit(task, Noise(), made, [])
    return task, load_weights(Path(made.run.output) / "weights" / "net-ema.safetensors")[0]


GREY = {"base": "grey"}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherTask, Path]:
    """A trained prior that sees no low-resolution picture, and its weights file."""
    folder = tmp_path_factory.mktemp("prior")
    task, _ = train(recipe(folder, GREY, lr_free=True))
    return task, folder / "weights" / "net-ema.safetensors"


def test_the_recipe_and_its_smoke_twin_are_of_the_time_aware_net(tmp_path: Path) -> None:
    assert load_recipe("teacher", RECIPES / "time-aware.toml").net["conditioning"] == "time-aware"
    teacher = load_recipe("teacher", RECIPES / "teacher.toml")
    other = load_recipe("teacher", RECIPES / "time-aware.toml")
    assert other.optim == teacher.optim and other.task == teacher.task
    assert other.data == teacher.data
    assert dataclasses.replace(other.run, output="") == dataclasses.replace(teacher.run, output="")
    task, weights = train(recipe(tmp_path))
    assert any(name.startswith("guide.sft") for name in weights)
    pair = Batch(*Noise().get(1))
    figures, _ = task.validate([pair])
    assert "psnr_y/4" in figures


def test_a_prior_does_not_look_at_the_low_resolution_picture(prior: Any) -> None:
    task, _ = prior
    net = task.averaged_net()
    x, t, lr = torch.randn(1, 3, 64, 64), torch.ones(1), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x, t, lr), net(x, t, 1 - lr))
    figures, _ = task.validate([Batch(*Noise().get(1))])
    assert "psnr_y/1" in figures


def test_a_frozen_prior_stays_as_it_was_and_its_guide_learns(prior: Any, tmp_path: Path) -> None:
    task, file = prior
    before = load_weights(file)[0]
    _, after = train(recipe(tmp_path, GREY, prior=str(file)))
    assert before.keys() == after.keys()
    frozen = [name for name in before if not task.net.sees_lr(name)]
    assert len(frozen) > 20
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("gamma_beta" in name for name in moved)
    assert "decoder.lr_skip.weight" in moved


@pytest.mark.slow
def test_in_bf16_the_frozen_weights_are_those_that_were_trained_with(
    prior: Any, tmp_path: Path
) -> None:
    made = recipe(tmp_path, GREY, prior=str(prior[1]))
    made = dataclasses.replace(made, run=dataclasses.replace(made.run, precision="bf16", steps=1))
    task, guided = train(made)
    assert torch.equal(guided["stem.weight"].float(), task.net.stem.weight.float())


@pytest.mark.parametrize(
    ("net", "task", "message"),
    [
        ({}, {"lr_free": True}, r"net\.base = 'lr': a prior"),
        ({"conditioning": "concat", "base": "grey"}, {"lr_free": True}, "'concat'"),
    ],
)
def test_a_net_that_cannot_be_a_prior_is_refused(
    net: dict[str, Any], task: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(recipe(tmp_path, net, **task), CPU)


def test_a_prior_of_another_shape_is_named(prior: Any, tmp_path: Path) -> None:
    file = str(prior[1])
    with pytest.raises(ConfigError, match=r"task\.prior = .*does not fit"):
        make_task(recipe(tmp_path, {**GREY, "depths": [1, 1, 2]}, prior=file), CPU)
    with pytest.raises(ConfigError, match=r"task\.prior.*none with lr_free"):
        recipe(tmp_path, GREY, lr_free=True, prior=file)
