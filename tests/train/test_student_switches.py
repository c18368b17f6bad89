"""The switches of the student that an ablation turns: each changes what it names, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from addsr.diffusion.samplers import sample_addsr
from addsr.diffusion.schedule import LEVELS, add_noise
from addsr.errors import ConfigError
from addsr.nets.compact import enlarge
from addsr.train.config import StudentConfig, load_recipe
from addsr.train.run import make_task
from addsr.train.student import StudentTask
from addsr.train.task import Batch

SMOKE = Path(__file__).parents[2] / "recipes" / "student-smoke.toml"
BATCH = 4


@pytest.fixture
def student(tiny_teacher: Path) -> Callable[..., StudentTask]:
    def make(**fields: Any) -> StudentTask:
        recipe = load_recipe("student", SMOKE)
        config = dataclasses.replace(recipe.task, teacher=str(tiny_teacher), **fields)
        task = make_task(dataclasses.replace(recipe, task=config), torch.device("cpu"))
        assert isinstance(task, StudentTask)
        return task

    return make


def batch_of(task: StudentTask) -> Batch:
    dice = torch.Generator().manual_seed(3)
    lr = torch.rand(task.fresh_samples(BATCH), 3, 16, 16, generator=dice)
    # sharper than the input, so that the two make different conditions for the teacher
    return Batch(
        (enlarge(lr) + 0.2 * torch.randn(len(lr), 3, 64, 64, generator=dice)).clamp(0, 1), lr
    )


def first_losses(task: StudentTask) -> dict[str, float]:
    figures = task.step(batch_of(task))
    return {name: float(figures[name]) for name in ("l1", "haar", "distill", "perceptual")}


@pytest.mark.parametrize("regulation", ["hr", "lr"])
def test_the_teacher_sees_the_picture_that_regulates_it(
    student: Callable[..., StudentTask], regulation: str
) -> None:
    task = student(regulation=regulation)
    seen: list[tuple[Tensor, ...]] = []
    answer = task.target

    def spy(*arguments: Tensor) -> Tensor:
        seen.append(arguments)
        return answer(*arguments)

    task.target = spy
    fresh = batch_of(task)
    task.step(fresh)
    clean = fresh.hr.unflatten(-1, (16, 4)).unflatten(-3, (16, 4)).mean((-1, -3))
    expected = clean if regulation == "hr" else fresh.lr
    torch.testing.assert_close(seen[0][1][: len(fresh.lr)], expected)
    x, condition, t, noise = seen[0]
    by_hand = task.teacher(add_noise(x.clamp(0, 1), noise, t), t, condition).clamp(0, 1)
    torch.testing.assert_close(answer(*seen[0]), by_hand)


def test_regulation_changes_the_distillation_loss_alone(
    student: Callable[..., StudentTask],
) -> None:
    hr, lr = (first_losses(student(regulation=name)) for name in ("hr", "lr"))
    assert abs(hr["distill"] / lr["distill"] - 1) > 1e-3
    for name in ("l1", "haar", "perceptual"):
        assert hr[name] == lr[name]


def test_adaptive_weights_are_the_papers_and_constant_ones_weigh_as_much(
    student: Callable[..., StudentTask],
) -> None:
    shares = (0.5, 0.25, 0.25, 0.0)
    adaptive = student(shares=shares).adaptive
    torch.testing.assert_close(adaptive, torch.tensor([0.5, 1.05, 2.205, 4.6305]))
    constant = student(shares=shares, ta_adaptive=False).adaptive
    assert constant.tolist() == pytest.approx([0.5 * 0.5 + 0.25 * 1.05 + 0.25 * 2.205] * 4)
    assert float(constant @ torch.tensor(shares)) == pytest.approx(
        float(adaptive @ torch.tensor(shares))
    )


def test_the_weight_of_a_step_multiplies_its_distillation_loss(
    student: Callable[..., StudentTask],
) -> None:
    task = student()
    dice = torch.Generator().manual_seed(0)
    x, target = torch.rand(2, BATCH, 3, 64, 64, generator=dice)
    index, t = torch.arange(4), torch.tensor([0.1, 0.3, 0.6, 0.9])
    _, figures = task.reconstruct(x, x, x, index, target, t, [], [])
    naive = [
        0.5 * 2.1 ** int(k) * 4 * float(1 - t[k]) * float(((x[k] - target[k]) ** 2).mean())
        for k in range(4)
    ]
    assert float(figures["distill"]) == pytest.approx(sum(naive) / 4, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_trained_step_is_that_of_the_sampler_with_its_refinement(
    student: Callable[..., StudentTask], weight: float
) -> None:
    task = student(psr_weight=weight)
    dice = torch.Generator().manual_seed(1)
    lr = torch.rand(1, 3, 16, 16, generator=dice)
    noise = torch.randn(1, 3, 64, 64, generator=dice)
    for trained in task.net.parameters():  # fresh networks give their input back
        trained.data += 0.02 * torch.randn(trained.shape, generator=dice)
    steps: list[Tensor] = []
    sample_addsr(
        task.net, lr, noise, LEVELS[4], psr_weight=weight, fidelity=0.5,
        on_step=lambda _, x0: steps.append(x0),
    )  # fmt: skip
    previous = enlarge(lr)
    for k, expected in enumerate(steps):
        x = task.forward(lr, noise, previous, torch.tensor([k]), torch.tensor([0.5]))
        previous = x.detach().clamp(0, 1)
        torch.testing.assert_close(previous, expected, atol=1e-5, rtol=0)


def test_without_refinement_the_last_prediction_is_not_in_the_condition(
    student: Callable[..., StudentTask],
) -> None:
    lr, previous = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 64, 64)

    def condition(weight: float) -> Tensor:
        task = student(psr_weight=weight)
        given: list[Tensor] = []
        task.net.register_forward_pre_hook(lambda _, inputs: given.append(inputs[3]))
        task.forward(lr, torch.zeros_like(previous), previous, torch.tensor([2]), torch.ones(1))
        return given[0]

    torch.testing.assert_close(condition(0.0), enlarge(lr))
    torch.testing.assert_close(condition(0.5), (previous + enlarge(lr)) / 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regulation": "gt"}, r"task\.regulation = 'gt'.*hr or lr"),
        ({"ta_base": 0.0}, r"task\.ta_base = 0\.0"),
        ({"ta_growth": -1.0}, r"task\.ta_growth = -1\.0"),
    ],
)
def test_a_switch_that_does_not_exist_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentConfig(**fields)
