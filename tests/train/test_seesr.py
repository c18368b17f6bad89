"""SeeSR's training on tiny networks: what it starts from, what it changes, what comes of it."""

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

from addsr.errors import ConfigError
from addsr.pipelines import AddSRPipeline, SeeSRPipeline
from addsr.train import checkpoint
from addsr.train.addsr_networks import load_teacher, published_names, write_tiny_seesr
from addsr.train.assemble_seesr import main as assemble
from addsr.train.base import load_part
from addsr.train.config import Recipe, load_recipe
from addsr.train.loop import fit
from addsr.train.prompts import dropped
from addsr.train.run import make_task
from addsr.train.seesr import SeeSRTask
from addsr.train.seesr_networks import seesr_layers, start_networks
from addsr.train.task import Batch

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")
Make = Callable[..., Recipe]


class Pictures:
    """A source of smooth random pictures."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def get(self, batch: int) -> tuple[Tensor, ...]:
        lr = torch.rand(batch, 3, 16, 16, generator=self.generator)
        hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
        return hr, lr

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@pytest.fixture
def make(tmp_path: Path, tiny_base: Path, tiny_tagger: Path) -> Make:
    """Makes the smoke recipe on the tiny networks, with fields changed."""

    def recipe(output: str = "run", **tables: dict[str, Any]) -> Recipe:
        whole = load_recipe("seesr", RECIPES / "seesr-smoke.toml")
        where = {"base": str(tiny_base), "tagger": str(tiny_tagger)}
        run = {"output": str(tmp_path / output), **tables.get("run", {})}
        return dataclasses.replace(
            whole,
            task=dataclasses.replace(whole.task, **{**where, **tables.get("task", {})}),
            run=dataclasses.replace(whole.run, **run),
            data=dataclasses.replace(whole.data, **tables.get("data", {})),
            optim=dataclasses.replace(whole.optim, **tables.get("optim", {})),
        )

    return recipe


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "counted" not in request.node.name:
        monkeypatch.setattr(SeeSRTask, "flops_per_sample", lambda self: 1.0)


def task_of(recipe: Recipe) -> SeeSRTask:
    task = make_task(recipe, CPU)
    assert isinstance(task, SeeSRTask)
    return task


def batch_of(n: int, seed: int = 0) -> Batch:
    source = Pictures()
    source.generator.manual_seed(seed)
    return Batch(*source.get(n))


def test_fresh_networks_start_as_the_base_with_a_controlnet_that_adds_nothing(
    tiny_base: Path,
) -> None:
    whole = start_networks(str(tiny_base), "", width=12, factor=4, device=CPU)
    base = load_part(tiny_base, "unet", torch.float32, CPU).state_dict()
    unet, controlnet = whole.unet.state_dict(), whole.controlnet.state_dict()
    assert all(torch.equal(unet[k], v) for k, v in base.items())
    assert {k.split(".image_attentions.")[0] for k in unet.keys() - base.keys()} == {
        "down_blocks.0", "mid_block", "up_blocks.1",
    }  # fmt: skip
    same = unet.keys() & controlnet.keys()
    assert {k.split(".")[0] for k in same} == {
        "conv_in", "time_embedding", "down_blocks", "mid_block",
    }  # fmt: skip
    assert all(torch.equal(unet[k], controlnet[k]) for k in same)
    z, t, text = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 5, 24)
    tokens, picture = torch.randn(1, 3, 12), torch.rand(1, 3, 64, 64)
    down, mid = whole.controlnet(
        z, t, encoder_hidden_states=text, image_tokens=tokens, controlnet_cond=picture,
        return_dict=False,
    )  # fmt: skip
    assert not any(bool(x.any()) for x in (*down, mid))


def test_the_controlnet_and_the_image_attentions_of_the_unet_are_trained(make: Make) -> None:
    task = task_of(make(run={"accumulate": 1}))
    before = {k: v.clone() for k, v in task.nets.state_dict().items()}
    for seed in (0, 1):  # the first opens the ControlNet's output layers
        figures = task.step(batch_of(2, seed))
    assert all(float(figures[k]) > 0 for k in ("loss", "grad_unet", "grad_controlnet"))
    moved = {k for k, v in task.nets.state_dict().items() if not torch.equal(v, before[k])}
    trained = {k for k, p in task.nets.named_parameters() if p.requires_grad}
    wanted = {k for k in before if k.startswith("controlnet.") or ".image_attentions." in k}
    assert trained == wanted
    assert moved <= wanted
    assert len(moved) > 0.95 * len(wanted)
    names = {
        f"{k}.{n}" for k, v in seesr_layers(task.nets).items()
        for n in published_names(v.state_dict())
    }  # fmt: skip
    assert names == wanted


def test_a_prompt_and_the_image_tokens_reach_the_networks(make: Make) -> None:
    task = task_of(make(task={"prompt_dropout": 0.0}))
    batch = batch_of(2)
    told = torch.randn(2, *task.text.shape[1:])
    known = task.encode(dataclasses.replace(batch, text=told))
    assert torch.equal(known.text, told)
    silent = task.encode(batch)
    assert torch.equal(silent.text, task.text.expand(2, -1, -1))
    assert known.tokens.shape == (2, 17, 12) and not torch.equal(known.tokens[0], known.tokens[1])
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([300, 300])
    picture = task._enlarged(batch.lr)
    answers = [
        task.predict(z, t, picture, tokens, text)
        for tokens, text in (
            (known.tokens, known.text), (known.tokens, silent.text), (known.tokens[[1, 0]], told)
        )
    ]  # fmt: skip
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_about_a_share_of_the_prompts_is_dropped() -> None:
    text, empty = torch.ones(1000, 2, 3), torch.zeros(1, 2, 3)
    chances = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    kept = dropped(text, empty, chances, 0.25)
    assert set(kept.flatten(1).sum(1).tolist()) == {0.0, 6.0}
    assert 0.2 < float((kept.sum((1, 2)) == 0).float().mean()) < 0.3
    assert not dropped(None, empty, chances, 0.0).any()
    assert dropped(text, empty, chances, 0.0).all() and not dropped(text, empty, chances, 1.0).any()


@pytest.mark.slow
def test_the_loss_falls_on_one_batch(make: Make) -> None:
    task = task_of(make(run={"accumulate": 1}, task={"latent_reuse": 1}))
    errors = []
    for _ in range(8):
        task.generator.manual_seed(5)  # the same noise and timesteps, so that steps compare
        errors.append(float(task.step(batch_of(2))["loss"]))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient(make: Make) -> None:
    norms = []
    for checkpointing in (False, True):
        task = task_of(make(run={"accumulate": 1}, task={"checkpointing": checkpointing}))
        figures = task.step(batch_of(2))
        norms.append([float(figures[k]) for k in ("loss", "grad_unet", "grad_controlnet")])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.slow
def test_what_is_made_of_pairs_is_used_again(make: Make) -> None:
    task = task_of(make())
    sizes = []
    for seed in range(5):
        sizes.append(task.fresh_samples(2))
        task.step(batch_of(sizes[-1], seed))
    assert sizes == [2, 2, 1, 1, 1] and task.pool.filled == 4
    again = task_of(make())
    again.load_extra_state(task.extra_state())
    for name in ("hr", "lr", "tokens", "text"):
        assert torch.equal(getattr(again.pool.kept, name), getattr(task.pool.kept, name))


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(make: Make) -> None:
    def run(output: str, steps: int, resume: str | None = None) -> SeeSRTask:
        recipe = make(output, run={"steps": steps}, optim={"offload": True})
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


@pytest.mark.slow
def test_half_precision_keeps_exact_masters(make: Make) -> None:
    exact, task = task_of(make()), task_of(make(run={"precision": "bf16"}))
    for name in ("unet", "controlnet"):
        pairs = zip(task.trained[name].masters, exact.trained[name].masters, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert {p.dtype for p in task.nets.parameters()} == {torch.bfloat16}
    assert bool(task.step(batch_of(2))["loss"].isfinite())


@pytest.mark.slow
def test_validation_samples_and_leaves_the_networks_trainable(make: Make) -> None:
    task = task_of(make())
    task.step(batch_of(2))
    before = {k: v.clone() for k, v in task.nets.state_dict().items()}
    pair = batch_of(1)
    figures, grid = task.validate([pair])
    assert {"loss", "psnr_y/2", "ssim_y/2"} <= figures.keys() and grid is not None
    assert figures == task.validate([pair])[0]
    assert all(torch.equal(v, before[k]) for k, v in task.nets.state_dict().items())
    assert float(task.step(batch_of(2))["grad_unet"]) > 0
    assert task.validate([]) == ({}, None)
    with pytest.raises(ConfigError, match="4 x 4 is too small"):
        task.check_pairs([Batch(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 1, 1))])


@pytest.mark.slow
def test_work_is_counted(make: Make) -> None:
    once, twice = (task_of(make(task={"latent_reuse": k})).flops_per_sample() for k in (1, 2))
    assert 0 < twice < once


@pytest.mark.slow
def test_the_published_size_trains_749_881_040_numbers() -> None:
    from addsr.nets.seesr import ControlledUnet, build_controlnet, build_unet

    with torch.device("meta"):
        parts = seesr_layers(ControlledUnet(build_unet(), build_controlnet()))
    counts = {k: sum(p.numel() for p in v.parameters()) for k, v in parts.items()}
    assert counts == {"unet": 260_849_600, "controlnet": 489_031_440}


def test_training_goes_on_from_a_published_folder(make: Make, tmp_path: Path) -> None:
    write_tiny_seesr(tmp_path / "seesr")  # its image tokens have 16 channels
    with pytest.raises(ConfigError, match="tokens of width 16, and those given have 12"):
        task_of(make(task={"seesr": str(tmp_path / "seesr")}))
    with pytest.raises(ConfigError, match=r"task\.seesr = 'nowhere' is no folder"):
        task_of(make(task={"seesr": "nowhere"}))
    task = task_of(make(task={"seesr": str(tmp_path / "seesr"), "tagger": ""}))
    published = load_teacher(str(tmp_path / "seesr"), torch.float32, CPU).state_dict()
    assert all(torch.equal(v, published[k]) for k, v in task.nets.state_dict().items())
    known = task.encode(batch_of(1))
    assert known.tokens.shape == (1, 1, 16) and not known.tokens.any()
    assert task_of(make(task={"tagger": ""})).token_width == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"base": "nowhere"}}, "task.base = 'nowhere' is no folder"),
        ({"task": {"dape": "a.pth"}}, "is not allowed with the folder task.tagger"),
        ({"task": {"dape": "a.pth", "tagger": ""}}, "task.tagger with it"),
        ({"task": {"prompt_dropout": 1.5}}, "task.prompt_dropout = 1.5"),
        ({"task": {"latent_reuse": 3}}, "task.latent_reuse = 3"),
        ({"task": {"latent_pool": 1}}, "task.latent_pool = 1"),
        ({"run": {"compile": True}}, "run.compile"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    change: dict[str, Any], message: str, make: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(make(**change))


def test_what_was_trained_becomes_a_pipeline_and_addsrs_teacher(
    make: Make, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, weights, out = task_of(make()), tmp_path / "weights", tmp_path / "model"
    task.step(batch_of(2))
    with torch.no_grad():
        for trained in task.trained.values():
            for value in trained.masters:
                value.add_(torch.randn(value.shape, generator=task.generator) * 0.02)
    checkpoint.save_light(weights, task, step=1, run="run")
    command = ["--base", str(tiny_base), "--weights", str(weights), "-o", str(out)]
    assert assemble([*command, "--dtype", "fp32", "--last"]) == 0
    pipe = SeeSRPipeline.from_pretrained(out)
    trained = {f"{k}.{n}" for k, v in seesr_layers(task.nets).items()
               for n in published_names(v.state_dict())}  # fmt: skip
    with torch.no_grad():
        for part in task.trained.values():
            for working, master in zip(part.working, part.masters, strict=True):
                working.copy_(master)
    for name, value in task.nets.state_dict().items():
        found = pipe.net.state_dict()[name]
        # weights travel in half precision
        torch.testing.assert_close(found, value, atol=1e-3 * (name in trained), rtol=1e-3)
    assert pipe.config.steps == 50 and pipe.config.tile == 64
    done: Any = pipe(batch_of(1).lr, 1, output_type="pt")
    assert done.images.shape == (1, 3, 64, 64)
    # AddSR's pipeline has the same parts
    assert AddSRPipeline.from_pretrained(out).config.steps == 4

    assert assemble(command) == 1
    assert "is there already" in capsys.readouterr().err
    (weights / "unet-ema.safetensors").write_bytes(
        (weights / "controlnet-ema.safetensors").read_bytes()
    )
    assert assemble([*command[:-1], str(tmp_path / "b")]) == 1
    assert "no trained layers of SeeSR's unet" in capsys.readouterr().err
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".*.tmp"))
