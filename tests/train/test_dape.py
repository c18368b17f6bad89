"""The prompt extractor's training: what it changes, what comes of it, and who reads that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss

pytest.importorskip("accelerate", reason="the train extra is not installed")

from addsr.errors import ConfigError, ModelError
from addsr.models.convert_ram import convert_ram, our_name, published_update
from addsr.models.pickles import read_state
from addsr.nets.ram import Ram
from addsr.nets.ram.tagger import RamOutput
from addsr.pipelines.tagger import Tagger
from addsr.train import checkpoint
from addsr.train.assemble_dape import UPDATES
from addsr.train.assemble_dape import main as assemble
from addsr.train.config import Recipe, load_recipe
from addsr.train.dape import DapeTask, agreement, f1_score
from addsr.train.loop import fit
from addsr.train.run import make_task
from addsr.train.tagging import load_ram
from addsr.train.task import Batch

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")
Make = Callable[..., Recipe]


class Pictures:
    """A source of random pictures and their blurred, darkened inputs."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def get(self, batch: int) -> tuple[Tensor, ...]:
        hr = torch.rand(batch, 3, 64, 64, generator=self.generator)
        return hr, torch.nn.functional.avg_pool2d(hr, 4) / 2

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@pytest.fixture
def make(tmp_path: Path, ram_files: Path) -> Make:
    """Makes the smoke recipe on RAM in small as published, with fields changed."""

    def recipe(output: str = "run", **tables: dict[str, Any]) -> Recipe:
        whole = load_recipe("dape", RECIPES / "dape-smoke.toml")
        task = {"tagger": str(ram_files / "ram_swin_large_14m.pth"), **tables.get("task", {})}
        run = {"output": str(tmp_path / output), **tables.get("run", {})}
        return dataclasses.replace(
            whole,
            task=dataclasses.replace(whole.task, **task),
            run=dataclasses.replace(whole.run, **run),
            net=tables.get("net", {}),
        )

    return recipe


def task_of(recipe: Recipe) -> DapeTask:
    task = make_task(recipe, CPU)
    assert isinstance(task, DapeTask)
    return task


def batch_of(n: int) -> Batch:
    return Batch(*Pictures().get(n))


def test_losses_are_those_of_the_paper() -> None:
    made = torch.Generator().manual_seed(0)
    seen, wanted = (
        RamOutput(torch.randn(2, 5, 3, generator=made), torch.randn(2, 7, generator=made))
        for _ in range(2)
    )
    found = agreement(seen, wanted)
    torch.testing.assert_close(found.embeds, mse_loss(seen.embeds, wanted.embeds))
    expected = binary_cross_entropy(seen.logits.sigmoid(), wanted.logits.sigmoid())
    torch.testing.assert_close(found.tags, expected)


def test_f1_counts_tags_that_both_say() -> None:
    seen, wanted = torch.tensor([[9.0, 9.0, -9.0]]), torch.tensor([[9.0, -9.0, 9.0]])
    assert f1_score(seen, wanted) == 0.5
    assert f1_score(seen, seen) == f1_score(-seen.abs(), -seen.abs()) == 1.0


def test_only_the_updates_are_trained_and_all_else_is_the_teachers(make: Make) -> None:
    task = task_of(make(run={"accumulate": 1}))
    theirs = {id(p) for p in task.teacher.parameters()}
    own = {n for n, p in task.student.named_parameters() if id(p) not in theirs}
    assert own == {n for n, p in task.student.named_parameters() if p.requires_grad}
    layers = {n.rpartition(".")[0] for n in own}
    # 4 blocks of the encoder, query and key of 2 layers of the head
    assert len(layers) == 8 and all(n.endswith(("lora_A", "lora_B")) for n in own)
    frozen = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    ups = [p for n, p in task.student.named_parameters() if n.endswith("lora_B")]
    assert not any(bool(p.any()) for p in ups)  # it starts as RAM itself
    figures = task.step(batch_of(2))
    assert float(figures["loss"]) == pytest.approx(float(figures["embeds"] + figures["tags"]))
    assert float(figures["grad"]) > 0 and all(bool(p.any()) for p in ups)
    assert all(torch.equal(v, frozen[k]) for k, v in task.teacher.state_dict().items())


def test_what_is_seen_of_inputs_comes_closer_to_what_is_seen_of_targets(make: Make) -> None:
    task = task_of(make(run={"accumulate": 1}))
    pair = batch_of(4)
    before = task.validate([pair])[0]
    assert before["embeds"] == pytest.approx(before["ram_embeds"])
    for _ in range(60):
        task.step(pair)
    after = task.validate([pair])[0]
    assert after["ram_embeds"] == pytest.approx(before["ram_embeds"])
    assert after["embeds"] < 0.8 * before["embeds"]
    assert after["tags"] < before["tags"]
    assert task.validate([]) == ({}, None)


@pytest.mark.parametrize("name", ["embeds_weight", "tags_weight"])
def test_a_loss_without_weight_moves_nothing(name: str, make: Make) -> None:
    other = {"embeds_weight": "tags", "tags_weight": "embeds"}[name]
    figures = task_of(make(task={name: 0.0})).step(batch_of(2))
    assert float(figures["loss"]) == pytest.approx(float(figures[other]))


def test_recomputing_activations_changes_no_gradient(make: Make) -> None:
    norms = []
    for checkpointing in (False, True):
        task = task_of(make(run={"accumulate": 1}, task={"checkpointing": checkpointing}))
        task.step(batch_of(2))
        norms.append(float(task.step(batch_of(2))["grad"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_half_precision_keeps_exact_masters(make: Make) -> None:
    exact, task = task_of(make()), task_of(make(run={"precision": "bf16"}))
    pairs = zip(task.trained["dape"].masters, exact.trained["dape"].masters, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    nets = (task.student, task.teacher)
    assert {p.dtype for net in nets for p in net.parameters()} == {torch.bfloat16}
    assert bool(task.step(batch_of(2))["loss"].isfinite())


def test_a_resumed_run_equals_an_unbroken_one(make: Make) -> None:
    def run(output: str, steps: int, resume: str | None = None) -> DapeTask:
        recipe = make(output, run={"steps": steps})
        task = task_of(recipe)
        fit(task, Pictures(), recipe, [batch_of(1)], resume=resume)
        return task

    whole = run("whole", 3)
    run("parts", 2)
    resumed = run("parts", 3, resume="latest").trained["dape"]
    for a, b in zip(whole.trained["dape"].masters, resumed.masters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
    assert whole.flops_per_sample() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"tagger": ""}}, "task.tagger = ''"),
        ({"task": {"rank": 0}}, "task.rank = 0"),
        ({"task": {"alpha": 0.0}}, "task.alpha = 0.0"),
        ({"task": {"embeds_weight": 0.0, "tags_weight": 0.0}}, "task.tags_weight"),
        ({"net": {"width": 3}}, "net = "),
        ({"run": {"compile": True}}, "run.compile"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    change: dict[str, Any], message: str, make: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(make(**change))


def test_published_names_of_updates_are_read_back(dape_state: dict[str, Tensor]) -> None:
    for name in dape_state:
        ours = our_name(name)
        assert name.startswith(("tag_encoder.", "text_decoder.")) or (
            ours is not None and published_update(ours) == name
        )


def test_updates_become_an_extractor_and_a_file_that_other_trainings_read(
    make: Make, ram_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, weights, out = task_of(make()), tmp_path / "weights", tmp_path / "own"
    ram = str(ram_files / "ram_swin_large_14m.pth")
    with torch.no_grad():
        for value in task.trained["dape"].masters:
            value.copy_(torch.randn(value.shape, generator=task.generator))
        for working, master in zip(
            task.trained["dape"].working, task.trained["dape"].masters, strict=True
        ):
            working.copy_(master)
    checkpoint.save_light(weights, task, step=1, run="run")
    command = ["--tagger", ram, "--weights", str(weights), "-o", str(out)]
    assert assemble([*command, "--last", "--dtype", "fp32"]) == 0
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted, plain = task.student(x), task.teacher(x)
        tagger = Tagger.from_pretrained(out)
        found = tagger.net(x)
        both = load_ram(ram, str(out / UPDATES))(x)
        folder = load_ram(str(out))(x)
    assert not torch.allclose(wanted.logits, plain.logits, atol=1e-2)
    for seen in (found, both, folder):  # updates travel in half precision
        torch.testing.assert_close(seen.embeds, wanted.embeds, atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(seen.logits, wanted.logits, atol=5e-3, rtol=5e-3)
    assert tagger.tags.tags[0] == "river"
    assert convert_ram(read_state(ram), read_state(out / UPDATES)).merged == 8

    assert assemble(command) == 1
    assert "is there already" in capsys.readouterr().err
    (weights / "dape-ema.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    assert assemble([*command[:-1], str(tmp_path / "b")]) == 1
    assert "no updates of a prompt extractor" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="with the folder"):
        load_ram(str(out), "DAPE.pth")
    with pytest.raises(ModelError, match="low-rank updates alone"):
        load_ram(str(out / UPDATES))


@pytest.mark.slow
def test_the_published_size_trains_what_the_published_file_holds() -> None:
    from addsr.nets.ram import LoraConfig, add_lora
    from addsr.train.dape import LoraUpdates

    with torch.device("meta"):
        ram = Ram()
        add_lora(ram)
        updates = LoraUpdates(ram, LoraConfig())
    # 24 blocks of the encoder, query and key of two layers of the head
    assert len(list(updates.parameters())) == 2 * (24 + 4)
