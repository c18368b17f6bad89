"""AddSR's distillation on tiny networks: what it changes, what it leaves, how it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate", reason="the train extra is not installed")
pytest.importorskip("diffusers", reason="the diffusion extra is not installed")

from addsr.errors import ConfigError, ModelError
from addsr.models.files import load_weights, save_weights
from addsr.nets.dino import Vit, VitConfig
from addsr.train.addsr import AddSRTask
from addsr.train.addsr_config import AddSRConfig
from addsr.train.addsr_networks import (
    layers_of,
    load_teacher,
    make_embed,
    published_names,
    student_of,
    write_tiny_seesr,
)
from addsr.train.config import Recipe, load_recipe
from addsr.train.loop import fit
from addsr.train.passes import Rules
from addsr.train.run import make_task
from addsr.train.task import Batch

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")
Make = Callable[..., Recipe]


class Pictures:
    """A source of smooth random pictures."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def get(self, batch: int) -> tuple[Tensor, ...]:
        lr = torch.rand(batch, 3, 8, 8, generator=self.generator)
        hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
        return hr, lr

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@pytest.fixture(scope="session")
def tiny_seesr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seesr")
    write_tiny_seesr(folder)
    return folder


@pytest.fixture
def make(tmp_path: Path, tiny_base: Path, tiny_seesr: Path) -> Make:
    """Makes the smoke recipe on the tiny networks, with fields changed."""

    def recipe(output: str = "run", **tables: dict[str, Any]) -> Recipe:
        whole = load_recipe("addsr", RECIPES / "addsr-smoke.toml")
        task = {"base": str(tiny_base), "seesr": str(tiny_seesr), **tables.get("task", {})}
        run = {"output": str(tmp_path / output), **tables.get("run", {})}
        return dataclasses.replace(
            whole,
            task=dataclasses.replace(whole.task, **task),
            run=dataclasses.replace(whole.run, **run),
            data=dataclasses.replace(whole.data, **tables.get("data", {})),
        )

    return recipe


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted where a test is about that: counting takes longer than these runs."""
    if "counted" not in request.node.name:
        monkeypatch.setattr(AddSRTask, "flops_per_sample", lambda self: 1.0)


def task_of(recipe: Recipe) -> AddSRTask:
    task = make_task(recipe, CPU)
    assert isinstance(task, AddSRTask)
    return task


def masters(task: AddSRTask) -> dict[str, list[Tensor]]:
    return {k: [m.clone() for m in t.masters] for k, t in task.trained.items()}


def batch_of(n: int, seed: int = 0) -> Batch:
    source = Pictures()
    source.generator.manual_seed(seed)
    return Batch(*source.get(n))


def test_student_and_teacher_share_all_that_is_not_trained(tiny_seesr: Path) -> None:
    teacher = load_teacher(str(tiny_seesr), torch.float32, CPU)
    student, parts = student_of(teacher)
    theirs = dict(teacher.named_parameters())
    own = {n for n, p in student.named_parameters() if p is not theirs[n]}
    wanted = {n for n in theirs if ".image_attentions." in n or "controlnet_cond_embedding" in n}
    assert own == wanted and wanted
    assert all(torch.equal(p, theirs[n]) for n, p in student.named_parameters())
    assert {n for n, p in student.named_parameters() if p.requires_grad} == wanted
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {n.split(".")[0] for n in wanted} == {"unet", "controlnet"}
    names = {f"{k}.{n}" for k, v in parts.items() for n in published_names(v.state_dict())}
    assert names == wanted
    assert set(layers_of(student)) == set(parts)


def test_a_step_moves_the_trained_layers_and_leaves_the_teacher(make: Make) -> None:
    task = task_of(make())
    before = masters(task)
    frozen = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    figures = task.step(batch_of(2))
    assert all(bool(v.isfinite()) for v in figures.values())
    assert all(float(figures[k]) > 0 for k in ("grad_unet", "grad_controlnet", "grad_d", "r1"))
    for name, values in masters(task).items():
        assert (
            max(float((a - b).abs().max()) for a, b in zip(values, before[name], strict=True)) > 0
        )
    assert all(torch.equal(v, frozen[k]) for k, v in task.teacher.state_dict().items())


@pytest.mark.slow
def test_half_precision_keeps_exact_masters_and_shares_the_rest(make: Make) -> None:
    exact = task_of(make())
    task = task_of(make(run={"precision": "bf16"}))
    for name in ("unet", "controlnet"):
        pairs = zip(task.trained[name].masters, exact.trained[name].masters, strict=True)
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in pairs)
    theirs = dict(task.teacher.named_parameters())
    for name, own in task.student.named_parameters():
        assert own.dtype == theirs[name].dtype == torch.bfloat16
        assert (own is theirs[name]) is not own.requires_grad
    assert all(p.dtype == torch.float32 for p in task.heads.parameters())
    figures = task.step(batch_of(2))
    assert all(bool(v.isfinite()) for v in figures.values())
    assert float(figures["grad_unet"]) > 0


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient(make: Make) -> None:
    norms = []
    for checkpointing in (False, True):
        task = task_of(make(task={"checkpointing": checkpointing, "first_share": 0.0}))
        figures = task.step(batch_of(2))
        norms.append([float(figures[k]) for k in ("loss", "grad_unet", "grad_controlnet")])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.slow
def test_any_batch_size_is_trained(make: Make) -> None:
    for n in (1, 3):
        task = task_of(make(run={"batch": n}, task={"gan_weight": 0.0}))
        figures = task.step(batch_of(n))
        assert float(figures["loss"]) > 0 and "loss_d" not in figures


@pytest.mark.slow
def test_the_distillation_falls_on_one_batch(make: Make) -> None:
    task = task_of(make(task={"gan_weight": 0.0, "levels": 1, "teacher_sees": "lr"}))
    errors = []
    for _ in range(12):
        task.generator.manual_seed(5)  # the same noise and timesteps, so that steps compare
        errors.append(float(task.step(batch_of(2))["distillation"]))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    "teacher_sees", [pytest.param("hr"), pytest.param("lr", marks=pytest.mark.slow)]
)
def test_the_teacher_is_told_what_the_recipe_says(
    teacher_sees: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(make(task={"teacher_sees": teacher_sees, "gan_weight": 0.0}))
    seen: list[Tensor] = []
    forward = task.teacher.forward
    monkeypatch.setattr(task.teacher, "forward", lambda *a: (seen.append(a[4]), forward(*a))[1])
    batch = batch_of(2)
    task.step(batch)
    expected = batch.hr if teacher_sees == "hr" else task._pair(batch).lr
    assert len(seen) == 4 and all(torch.equal(picture, expected) for picture in seen)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(make: Make) -> None:
    def run(output: str, steps: int, resume: str | None = None) -> AddSRTask:
        recipe = make(output, run={"steps": steps})
        task = task_of(recipe)
        fit(task, Pictures(), recipe, [], resume=resume)
        return task

    whole = run("whole", 2)
    run("parts", 1)
    resumed = run("parts", 2, resume="latest")
    for key, trained in whole.trained.items():
        other = resumed.trained[key]
        for a, b in zip(trained.masters, other.masters, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert other.updates == trained.updates == 2
    for (_, a), b in zip(whole.heads.named_buffers(), resumed.heads.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_weights_are_written_and_started_from(make: Make, tmp_path: Path) -> None:
    recipe = make(run={"steps": 1})
    task = task_of(recipe)
    fit(task, Pictures(), recipe, [])
    weights = tmp_path / "run" / "weights"
    state, metadata = load_weights(weights / "unet.safetensors")
    assert metadata["kind"] == "addsr" and metadata["config"]["network"] == "unet"
    known = dict(task.student.unet.named_parameters())
    assert published_names(state).keys() <= known.keys()
    again = task_of(recipe)
    from addsr.train.checkpoint import load_light

    assert set(load_light(weights, again)) == {"unet", "controlnet", "discriminator"}
    for a, b in zip(again.trained["unet"].masters, task.trained["unet"].masters, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_validation_samples_with_the_averages_and_puts_the_weights_back(make: Make) -> None:
    task = task_of(make())
    lr = torch.rand(1, 3, 9, 7)
    before = task.sample(lr, 2)
    assert before.shape == (1, 3, 36, 28)
    assert torch.equal(before, task.sample(lr, 2))
    for average in task.trained["unet"].average:
        average.add_(0.05)
    with task.averaged():
        assert not torch.allclose(before, task.sample(lr, 2))
    torch.testing.assert_close(before, task.sample(lr, 2))
    figures, grid = task.validate([Batch(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8))])
    assert {"psnr_y/1", "psnr_y/2"} <= figures.keys() and grid is not None
    assert task.validate([]) == ({}, None)


@pytest.mark.slow
def test_dino_is_used_where_its_files_are_given(make: Make, tmp_path: Path) -> None:
    for name, config in (
        ("dino", VitConfig(width=64, depth=12, heads=1, patch=8, side=16, hidden=32)),
        ("dinov2", VitConfig(width=64, depth=1, heads=1, patch=8, side=16, hidden=32)),
    ):
        save_weights(tmp_path / f"{name}.safetensors", Vit(config).state_dict(), {"kind": name})
    files = {k: str(tmp_path / f"{k}.safetensors") for k in ("dino", "dinov2")}
    task = task_of(make(task=files))
    assert task.heads.config.widths == (64,) * 5 and task.class_token is not None
    assert task.class_token.is_normalised
    figures = task.step(batch_of(2))
    assert float(figures["grad_d"]) > 0 and bool(figures["gan"].isfinite())
    released = task_of(make(task={**files, "released_quirks": True}))
    assert released.class_token is not None and not released.class_token.is_normalised


def test_released_quirks_set_the_rules() -> None:
    assert AddSRConfig(levels=2).rules == Rules(levels=2)
    assert AddSRConfig(released_quirks=True).rules == Rules().released()


def test_without_a_tagger_there_is_one_token_of_zeros() -> None:
    tokens = make_embed("", "", 16, torch.float32, CPU)(torch.rand(2, 3, 8, 8))
    assert tokens.shape == (2, 1, 16) and not tokens.any()
    with pytest.raises(ModelError, match="absent"):
        make_embed("absent.pth", "", 16, torch.float32, CPU)


@pytest.mark.slow
def test_the_published_size_trains_386_739_280_numbers() -> None:
    from addsr.nets.seesr import ControlledUnet, build_controlnet, build_unet

    with torch.device("meta"):
        parts = layers_of(ControlledUnet(build_unet(), build_controlnet()))
    counts = {k: sum(p.numel() for p in v.parameters()) for k, v in parts.items()}
    assert counts == {"unet": 260_849_600, "controlnet": 124_803_200 + 1_086_480}


def test_image_tokens_are_the_taggers_of_the_resized_picture(
    ram_state: dict[str, Tensor], dape_state: dict[str, Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from addsr.models.convert_ram import convert_ram
    from addsr.nets.ram import Ram, prepare

    files = {"ram": ram_state, "dape": dape_state}
    for name, state in files.items():
        state = {k: v.clone().contiguous() for k, v in state.items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in files]
    converted = convert_ram(ram_state, dape_state)
    ram = Ram(converted.config).eval()
    ram.load_state_dict(converted.state)
    width, picture = converted.config.head.tokens, torch.rand(1, 3, 40, 56)
    embed = make_embed(*paths, width, torch.float32, CPU)
    with torch.no_grad():
        seen = prepare(picture, converted.config.swin.side, interpolation="bicubic")
        torch.testing.assert_close(embed(picture), ram.embed(seen))
    with pytest.raises(ModelError, match=f"task.seesr takes {width + 4}"):
        make_embed(*paths, width + 4, torch.float32, CPU)


@pytest.mark.slow
def test_work_is_counted_and_grows_with_the_teachers_draws(make: Make) -> None:
    one, four = (task_of(make(task={"teacher_draws": k})).flops_per_sample() for k in (1, 4))
    assert 0 < one < four < 4 * one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"seesr": "nowhere"}}, "task.seesr = 'nowhere' is no folder"),
        ({"task": {"dino": "a.pth"}}, "both dino and dinov2"),
        ({"task": {"dape": "a.pth"}}, "task.tagger with it"),
        ({"task": {"levels": 5}}, "task.levels = 5"),
        ({"task": {"val_steps": (5,)}}, "task.val_steps"),
        ({"task": {"teacher_sees": "both"}}, "task.teacher_sees = 'both'"),
        ({"run": {"compile": True}}, "run.compile"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    change: dict[str, Any], message: str, make: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(make(**change))


def test_the_student_is_assembled_in_the_published_layout(
    make: Make,
    tiny_seesr: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from addsr.pipelines import AddSRPipeline
    from addsr.train import checkpoint
    from addsr.train.assemble_addsr import main

    task, weights = task_of(make()), tmp_path / "weights"
    with torch.no_grad():
        for name in ("unet", "controlnet"):
            for average in task.trained[name].average:
                average.add_(0.25)
    checkpoint.save_light(weights, task, step=1, run="run")
    out = tmp_path / "out"
    command = ["--seesr", str(tiny_seesr), "--weights", str(weights), "-o", str(out)]
    assert main([*command, "--dtype", "fp32"]) == 0
    made = dict(load_teacher(str(out), torch.float32, CPU).named_parameters())
    for name, old in task.teacher.named_parameters():
        is_trained = ".image_attentions." in name or "controlnet_cond_embedding" in name
        torch.testing.assert_close(made[name], old + 0.25 * is_trained, atol=2e-3, rtol=1e-3)
    assert main(command) == 1  # it is there already
    whole = [*command[:-1], str(tmp_path / "whole"), "--base", str(tiny_base)]
    assert main(whole) == 0
    pipe = AddSRPipeline.from_pretrained(tmp_path / "whole")
    found = pipe.net.state_dict()
    for name, value in made.items():
        torch.testing.assert_close(found[name].float(), value, atol=2e-3, rtol=1e-3)
    assert main([*command[:-1], str(tmp_path / "b"), "--last"]) == 0
    (weights / "unet-ema.safetensors").write_bytes(
        (weights / "controlnet.safetensors").read_bytes()
    )
    assert main([*command[:-1], str(tmp_path / "c")]) == 1
    assert "no trained layers of AddSR's unet" in capsys.readouterr().err
    assert not (tmp_path / "c").exists() and not list(tmp_path.glob(".*.tmp"))
