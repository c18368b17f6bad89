"""StableSR's two trainings on a tiny base: what they change, what they leave, how they go on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from addsr.diffusion.ddpm import Schedule
from addsr.errors import ConfigError, ModelError, OutputError, TrainingError
from addsr.models.files import load_weights
from addsr.nets.stablesr import FeatureWrapping, Guide, SftConfig, SftLayers, TimeAwareEncoder
from addsr.pipelines import StableSRPipeline
from addsr.train import checkpoint
from addsr.train.assemble import assemble
from addsr.train.assemble import main as assemble_main
from addsr.train.base import stated_prediction
from addsr.train.cfw import CfwTask
from addsr.train.cfw_samples import make_samples
from addsr.train.config import Recipe, load_recipe
from addsr.train.loop import fit
from addsr.train.run import make_task, train_recipe
from addsr.train.stablesr import StableSRTask, encoder_config
from addsr.train.task import Batch

pytest.importorskip("accelerate", reason="the train extra is not installed")
pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
RECIPES = Path(__file__).parents[2] / "recipes"
Make = Callable[..., Recipe]


class Pictures:
    """A source of smooth random pictures, with latents where a task needs them."""

    def __init__(self, name: str = "stablesr", poison_at: int = -1) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.name, self.poison_at, self.calls = name, poison_at, 0

    def get(self, batch: int) -> tuple[Tensor, ...]:
        lr = torch.rand(batch, 3, 16, 16, generator=self.generator)
        hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
        self.calls += 1
        if self.calls == self.poison_at:
            hr = hr * float("nan")
        latent = torch.randn(batch, 4, 16, 16, generator=self.generator)
        return (hr, lr, latent) if self.name == "cfw" else (hr, lr)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": 0, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted where a test is about that: counting takes longer than these runs."""
    if "counted" not in request.node.name:
        for task in (StableSRTask, CfwTask):
            monkeypatch.setattr(task, "flops_per_sample", lambda self: 1.0)


def stablesr(recipe: Recipe, rank: int = 0) -> StableSRTask:
    task = make_task(recipe, torch.device("cpu"), rank)
    assert isinstance(task, StableSRTask)
    return task


def cfw(recipe: Recipe) -> CfwTask:
    task = make_task(recipe, torch.device("cpu"))
    assert isinstance(task, CfwTask)
    return task


def numbers(task: Any) -> list[Tensor]:
    return [m.clone() for trained in task.trained.values() for m in trained.masters]


@pytest.mark.parametrize("name", ["stablesr", pytest.param("cfw", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_unbroken_one(
    name: str, latent_recipe: Make, cpu: torch.device
) -> None:
    def run(output: str, steps: int, resume: str | None = None) -> tuple[Any, Pictures]:
        start = {"adversarial_start": 1} if name == "cfw" else {}
        recipe = latent_recipe(
            name, output, run={"steps": steps, "checkpoint_every": 1}, task=start
        )
        task, source = make_task(recipe, cpu), Pictures(name)
        fit(task, source, recipe, [], resume=resume)
        return task, source

    whole, source = run("whole", 2)
    early, _ = run("parts", 1)
    resumed, resumed_source = run("parts", 2, resume="latest")
    for key, trained in whole.trained.items():
        other = resumed.trained[key]
        for a, b in zip(
            trained.masters + trained.average, other.masters + other.average, strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
        moved = zip(trained.masters, early.trained[key].masters, strict=True)
        assert max(float((a - b).abs().max()) for a, b in moved) > 1e-4
        assert other.updates == trained.updates == (1 if key == "discriminator" else 2)
    assert resumed.generator.get_state().equal(whole.generator.get_state())
    assert resumed_source.generator.get_state().equal(source.generator.get_state())


@pytest.mark.parametrize("name", ["stablesr", "cfw"])
def test_what_is_frozen_stays_and_what_is_trained_moves(
    name: str, latent_recipe: Make, cpu: torch.device
) -> None:
    recipe = latent_recipe(name, run={"accumulate": 1}, task={} if name == "stablesr" else {
        "adversarial_start": 0
    })  # fmt: skip
    task: Any = make_task(recipe, cpu)
    frozen = [task.vae] if name == "cfw" else [task.vae, task.unet]
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in frozen]
    start = {key: [m.clone() for m in trained.masters] for key, trained in task.trained.items()}
    source = Pictures(name)
    for _ in range(3):  # what follows a layer that starts at zero has no gradient at first
        task.step(Batch(*source.get(task.fresh_samples(recipe.run.batch))))
    for net, state in zip(frozen, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    for key, trained in task.trained.items():
        still = [
            n
            for n, a, b in zip(trained.names, trained.masters, start[key], strict=True)
            if torch.equal(a, b)
        ]
        assert not still, key


def test_the_published_numbers_of_parameters_are_trained() -> None:
    recipe = load_recipe("stablesr", RECIPES / "stablesr.toml")
    config, hidden = encoder_config(recipe.net)
    with torch.device("meta"):
        nets = (
            TimeAwareEncoder(config),
            SftLayers(SftConfig(features=config.features, hidden=hidden)),
            FeatureWrapping(),
        )
    encoder, layers, wrapping = (sum(p.numel() for p in n.parameters()) for n in nets)
    assert encoder + layers == 105_514_240
    assert wrapping == 44_393_728
    assert load_recipe("cfw", RECIPES / "cfw.toml").net == {}
    assert recipe.run.batch * recipe.run.accumulate * 8 == 192


def test_processes_draw_timesteps_of_their_own_from_the_same_start(latent_recipe: Make) -> None:
    recipe = latent_recipe("stablesr", run={"accumulate": 1, "batch": 8}, task={"latent_reuse": 1})
    seen: list[Tensor] = []
    tasks = [stablesr(recipe, rank) for rank in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*map(numbers, tasks), strict=True))

    def spy(z: Tensor, t: Tensor, noise: Tensor) -> Any:
        seen.append(t)
        raise InterruptedError

    for task in tasks:
        task.noised = spy  # type: ignore[method-assign]
        with pytest.raises(InterruptedError):
            task.step(Batch(*Pictures().get(8)))
    assert len(seen[0].unique()) > 4
    assert not (seen[0] == seen[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "share"), [("stablesr", "loss", 0.8), ("cfw", "l1", 0.97)]
)
def test_the_loss_falls_on_what_can_be_learnt(
    name: str, figure: str, share: float, latent_recipe: Make, cpu: torch.device
) -> None:
    own = {"latent_reuse": 1, "lr_dropout": 0.0} if name == "stablesr" else {"adversarial_start": 9}
    recipe = latent_recipe(
        name,
        run={"accumulate": 1},
        task={"checkpointing": False, **own},
        optim={"learning_rate": 2e-3, "weight_decay": 0.0},
    )
    task = make_task(recipe, cpu)
    batch, dice = Batch(*Pictures(name).get(2)), task.generator.get_state()
    found = []
    for _ in range(8):
        task.generator.set_state(dice)  # the same timesteps and noise each time
        found.append(float(task.step(batch)[figure]))
    assert found[-1] < share * found[0]


@pytest.mark.parametrize("name", ["stablesr", "cfw"])
def test_recomputing_activations_changes_nothing(
    name: str, latent_recipe: Make, cpu: torch.device
) -> None:
    found = []
    for checkpointing in (False, True):
        recipe = latent_recipe(
            name,
            run={"accumulate": 1},
            task={"checkpointing": checkpointing}
            | ({"adversarial_start": 0} if name == "cfw" else {"latent_reuse": 1}),
        )
        task = make_task(recipe, cpu)
        for net in (t.net for t in task.trained.values()):
            for p in net.parameters():  # no zeros, for they would hide gradients
                p.data += 0.01
        task.step(Batch(*Pictures(name).get(recipe.run.batch)))
        found.append([m.grad for t in task.trained.values() for m in t.masters])
    assert max(float(g.abs().max()) for g in found[0]) > 1e-3
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_work_is_counted_without_what_is_repeated(latent_recipe: Make) -> None:
    once = stablesr(latent_recipe("stablesr", task={"latent_reuse": 1, "checkpointing": False}))
    twice = stablesr(latent_recipe("stablesr", task={"latent_reuse": 2}))
    assert 5e8 < twice.flops_per_sample() < once.flops_per_sample() < 5e9
    assert 1e9 < cfw(latent_recipe("cfw")).flops_per_sample() < 2e10


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_targets_are_what_the_sampler_takes_them_for(prediction: Any, latent_recipe: Make) -> None:
    task = stablesr(latent_recipe("stablesr", task={"prediction": prediction}))
    z, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    for t in (0, 400, 999):
        z_t, target = task.noised(z, torch.full((3,), t), noise)
        parts = Schedule.trained().split(z_t, target, t, prediction)
        torch.testing.assert_close(parts.z_0, z, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(parts.eps, noise, atol=2e-4, rtol=1e-4)


def test_clean_samples_and_dropped_inputs_are_what_their_names_say(latent_recipe: Make) -> None:
    recipe = latent_recipe(
        "stablesr", task={"clean_share": 1.0, "lr_dropout": 1.0, "latent_reuse": 1}
    )
    task = stablesr(recipe)
    moments = task.encode(Batch(*Pictures().get(2)))
    assert torch.equal(moments.hr, moments.lr)
    seen: list[Tensor] = []
    task.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.step(Batch(*Pictures().get(2)))
    assert seen[0].abs().max() == 0


def test_the_identity_start_disturbs_the_frozen_network_less(latent_recipe: Make) -> None:
    def error(init: str) -> float:
        recipe = latent_recipe(
            "stablesr", task={"sft_init": init, "latent_reuse": 1}, run={"accumulate": 2}
        )
        task = stablesr(recipe)
        z = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5))
        t = torch.tensor([50, 350, 650, 950])
        context = task.context.expand(4, -1, -1)
        with torch.no_grad():
            task.guide.detach()
            plain = task.unet(z, t, encoder_hidden_states=context).sample
            task.guide = Guide(task.unet, task.layers)
        task.step(Batch(*Pictures().get(2)))  # the first of two passes: no update yet
        with torch.no_grad(), task.guide.using(task.encoder(z, t)):
            guided = task.unet(z, t, encoder_hidden_states=context).sample
        return float((guided - plain).norm() / plain.norm())

    published, identity = error("published"), error("identity")
    assert identity < 0.1 < published


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    latent_recipe: Make, cpu: torch.device
) -> None:
    recipe = latent_recipe(
        "stablesr", run={"accumulate": 1, "checkpoint_every": 1}, task={"latent_reuse": 1}
    )
    with pytest.raises(TrainingError, match=r"loss.* NaN or infinite before step 2"):
        fit(make_task(recipe, cpu), Pictures(poison_at=2), recipe, [])
    names = sorted(p.name for p in (Path(recipe.run.output) / "checkpoints").iterdir())
    assert names == ["step-00000001"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stablesr", "cfw"])
def test_sigterm_ends_a_run_with_a_checkpoint_after_whole_updates(
    name: str, latent_recipe: Make, cpu: torch.device
) -> None:
    recipe = latent_recipe(name, run={"steps": 50, "checkpoint_every": 50})

    class Killer(Pictures):
        def get(self, batch: int) -> tuple[Tensor, ...]:
            if self.calls == 0:  # in the first of two passes of an update
                os.kill(os.getpid(), signal.SIGTERM)
            return super().get(batch)

    task, source = make_task(recipe, cpu), Killer(name)
    fit(task, source, recipe, [])
    assert source.calls == recipe.run.accumulate == 2
    assert (Path(recipe.run.output) / "checkpoints" / "step-00000001" / "state.pt").is_file()


def test_latents_are_used_as_often_as_asked(latent_recipe: Make) -> None:
    recipe = latent_recipe("stablesr", run={"batch": 4}, task={"latent_pool": 8})
    task = stablesr(recipe)
    counts = []
    source = Pictures()
    for _ in range(4):
        counts.append(task.fresh_samples(4))
        moments = task.encode(Batch(*source.get(counts[-1])))
        chosen = task.pool.exchange(moments, 4, task.generator)
        assert len(chosen.hr.unique(dim=0)) == 4
    assert counts == [4, 4, 2, 2]  # new ones alone until the pool is full
    assert task.pool.next == 4
    kept = task.pool.kept
    assert kept is not None and len(kept.hr.unique(dim=0)) == 8


def test_the_discriminator_waits_for_its_step_and_the_weight_balances_gradients(
    latent_recipe: Make,
) -> None:
    recipe = latent_recipe("cfw", run={"accumulate": 1}, task={"adversarial_start": 1})
    task = cfw(recipe)
    source = Pictures("cfw")
    first = task.step(Batch(*source.get(1)))
    assert float(first["loss_d"]) == 0 and task.trained_discriminator.updates == 0
    parts: dict[str, Tensor] = {}
    weigh = task._adversarial_weight

    def spy(loss: Tensor, gan: Tensor) -> Tensor:
        for name, value in (("loss", loss), ("gan", gan)):
            (parts[name],) = torch.autograd.grad(value, task.last_layer(), retain_graph=True)
        return weigh(loss, gan)

    task._adversarial_weight = spy  # type: ignore[method-assign]
    second = task.step(Batch(*source.get(1)))
    assert task.trained_discriminator.updates == 1
    ratio = parts["loss"].norm() / (parts["gan"].norm() + 1e-4)
    torch.testing.assert_close(second["adv_weight"], recipe.task.adversarial_weight * ratio)
    fixed = cfw(latent_recipe("cfw", task={"adversarial": "fixed", "adversarial_start": 0}))
    assert float(fixed.step(Batch(*source.get(1)))["adv_weight"]) == 0.5


def test_both_stages_lead_from_pictures_to_a_model_that_upscales(
    latent_recipe: Make, tmp_path: Path, tiny_base: Path, cpu: torch.device
) -> None:
    rng = np.random.default_rng(0)
    for folder, side in (("pictures", 160), ("val/hr", 96), ("val/lr", 24)):
        (tmp_path / folder).mkdir(parents=True)
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / folder / "a.png")
    data = {"train": (str(tmp_path / "pictures"),)}
    first = latent_recipe("stablesr", data={**data, "val": str(tmp_path / "val")}, run={"steps": 1})
    figures = train_recipe(first)
    assert np.isfinite(figures["val/loss"]) and np.isfinite(figures["val/psnr_y/2"])
    output = Path(first.run.output)
    assert list((output / "pictures").glob("*.webp"))
    weights = output / "weights"
    _, metadata = load_weights(weights / "sft.safetensors")
    assert metadata["kind"] == "sft" and "Apache" not in metadata["licence"]

    model = tmp_path / "model"
    assemble(tiny_base, model, stablesr=weights, tile=64, dtype=torch.float32)
    more = {"model": str(model), "samples": str(tmp_path / "samples")}
    second = latent_recipe("cfw", "second", data=data, task=more, run={"steps": 1})
    assert make_samples(second, cpu) == 2
    figures = train_recipe(second)
    assert np.isfinite(figures["loss"]) and np.isfinite(figures["val/psnr_y/w0.5"])

    whole = tmp_path / "whole"
    command = [
        "--base",
        str(model),
        "--cfw",
        str(tmp_path / "second" / "weights"),
        "-o",
        str(whole),
    ]
    assert assemble_main([*command, "--dtype", "fp32", "--fidelity", "0.7"]) == 0
    pipe = StableSRPipeline.from_pretrained(whole)
    assert (pipe.config.tile, pipe.config.fidelity) == (64, 0.7)
    state, _ = load_weights(weights / "encoder-ema.safetensors")
    assert torch.equal(pipe.encoder.state_dict()["conv_in.weight"], state["conv_in.weight"].float())
    small = torch.rand(1, 3, 10, 9, generator=torch.Generator().manual_seed(0))
    done: Any = pipe(small, 1, generator=torch.Generator().manual_seed(1), output_type="pt")
    assert done.images.shape == (1, 3, 40, 36) and done.images.isfinite().all()

    again = stablesr(latent_recipe("stablesr", task={"base": str(whole)}))
    assert checkpoint.load_light(whole, again) == ["encoder", "sft"]  # a published one goes on so
    assert torch.equal(again.trained["encoder"].masters[0], next(pipe.encoder.parameters()))
    with pytest.raises(OutputError, match="is not empty"):
        assemble(tiny_base, whole, stablesr=weights)
    with pytest.raises(ConfigError, match="has no encoder of its own"):
        assemble(tiny_base, tmp_path / "other", cfw=tmp_path / "second" / "weights")
    with pytest.raises(ConfigError, match="nothing to put in"):
        assemble(tiny_base, tmp_path / "other")
    with pytest.raises(ModelError, match=r"cfw-ema\.safetensors: no weights file"):
        assemble(tiny_base, tmp_path / "other", stablesr=weights, cfw=weights)


@pytest.mark.parametrize(
    ("name", "tables", "message"),
    [
        ("stablesr", {"task": {"base": ""}}, r"task\.base = '' is no folder"),
        ("stablesr", {"run": {"compile": True}}, r"run\.compile = True .*give false"),
        ("cfw", {"run": {"compile": True}}, r"run\.compile = True .*give false"),
        ("stablesr", {"data": {"crop_px": 64}, "net": {"widths": [32]}}, r"net\.attention"),
        (
            "stablesr",
            {"net": {"widths": [32, 32, 64], "attention": [False] * 3}},
            r"net\.widths = \(32, 32, 64\) .*give 2 widths",
        ),
        ("stablesr", {"net": {"hidden": 0}}, r"net\.hidden = 0 .*from 1"),
        ("stablesr", {"net": {"depth": 3}}, r"net\.depth is unknown; \[net\] has widths.*hidden"),
        ("stablesr", {"run": {"batch": 3}}, r"task\.latent_reuse = 2 .*run\.batch = 3"),
        ("stablesr", {"task": {"latent_pool": 1}}, r"task\.latent_pool = 1 .*run\.batch = 2"),
        ("cfw", {"task": {"model": "none"}}, r"task\.model = 'none' is no folder"),
        ("cfw", {"net": {"widths": [32]}}, r"net\.widths = \[32\] .*leave it out"),
        ("cfw", {"net": {"growth": 0}}, r"net\.growth = 0"),
        ("cfw", {"task": {"lpips_heads": "x"}}, r"task\.lpips_heads = 'x' .*give task\.lpips"),
    ],
)
def test_what_cannot_be_trained_is_named_by_its_field(
    name: str, tables: dict[str, Any], message: str, latent_recipe: Make, cpu: torch.device
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(latent_recipe(name, **tables), cpu)


def test_a_base_that_predicts_something_else_or_lacks_a_part_is_refused(
    latent_recipe: Make, tmp_path: Path
) -> None:
    scheduler = tmp_path / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    assert stated_prediction(tmp_path) == "v"
    with pytest.raises(ConfigError, match=r"task\.prediction = 'eps' .*predicts v; give 'v'"):
        stablesr(latent_recipe("stablesr", task={"base": str(tmp_path)}))
    with pytest.raises(ModelError, match=r"unet: cannot be loaded"):
        stablesr(latent_recipe("stablesr", task={"base": str(tmp_path), "prediction": "v"}))


def test_a_base_in_half_precision_alone_is_read(
    latent_recipe: Make, tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "half"
    shutil.copytree(tiny_base, base)
    for part in ("unet", "vae"):
        file = base / part / "diffusion_pytorch_model.safetensors"
        state = {k: v.half() for k, v in load_file(file).items()}
        save_file(state, base / part / "diffusion_pytorch_model.fp16.safetensors")
        file.unlink()
    task = stablesr(latent_recipe("stablesr", task={"base": str(base)}))
    assert next(task.unet.parameters()).dtype == torch.float32
    assert torch.equal(
        task.unet.conv_in.weight, state_of(tiny_base)["conv_in.weight"].half().float()
    )


def state_of(base: Path) -> dict[str, Tensor]:
    return load_file(base / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_bf16_keeps_masters_that_move_by_less_than_its_steps(latent_recipe: Make) -> None:
    recipe = latent_recipe(
        "stablesr",
        run={"precision": "bf16", "accumulate": 1},
        optim={"learning_rate": 1e-7, "weight_decay": 0.0},
    )
    task = stablesr(recipe)
    trained = task.trained["sft"]
    before = [w.clone() for w in trained.working]
    masters = [m.clone() for m in trained.masters]
    figures = task.step(Batch(*Pictures().get(2)))
    assert torch.isfinite(figures["loss"]) and trained.working[0].dtype == torch.bfloat16
    moved, rounded = (
        sum(int((a != b).sum()) for a, b in zip(old, new, strict=True))
        for old, new in ((masters, trained.masters), (before, trained.working))
    )
    assert moved > 50 * rounded
