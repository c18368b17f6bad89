"""Training end to end at toy size: every task trains, resumes exactly, stops cleanly."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import ConfigError, ModelError, TrainingError
from addsr.models.files import load_weights
from addsr.train import checkpoint
from addsr.train.config import Recipe, load_recipe
from addsr.train.loop import fit
from addsr.train.run import make_task, train_recipe
from addsr.train.student import StudentTask
from addsr.train.task import Batch
from addsr.train.teacher import TeacherTask

pytest.importorskip("accelerate", reason="the train extra is not installed")
RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")


class Noise:
    """A source of smooth random pictures whose state can be saved."""

    def __init__(self, poison_at: int = -1) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.calls, self.poison_at = 0, poison_at

    def get(self, batch: int) -> tuple[Tensor, Tensor]:
        lr = torch.rand(batch, 3, 16, 16, generator=self.generator)
        hr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
        self.calls += 1
        if self.calls == self.poison_at:
            hr = hr * float("nan")
        return hr, lr

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def smoke(name: str, output: Path, **run: Any) -> Recipe:
    recipe = load_recipe(name, RECIPES / f"{name}-smoke.toml")
    return dataclasses.replace(
        recipe, run=dataclasses.replace(recipe.run, output=str(output), **run)
    )


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    recipe = smoke("teacher", folder)
    fit(make_task(recipe, CPU), Noise(), recipe, [])
    return folder / "weights" / "net-ema.safetensors"


def with_teacher(recipe: Recipe, weights: Path) -> Recipe:
    return dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, teacher=str(weights)))


@pytest.fixture
def recipe_of(tmp_path: Path, teacher_weights: Path) -> Iterator[Any]:
    def make(name: str, output: str = "run", **run: Any) -> Recipe:
        recipe = smoke(name, tmp_path / output, **run)
        return with_teacher(recipe, teacher_weights) if name == "student" else recipe

    yield make


@pytest.mark.parametrize("name", ["teacher", "student", "features"])
def test_a_resumed_run_equals_an_unbroken_one(name: str, recipe_of: Any) -> None:
    def run(output: str, steps: int, resume: str | None = None) -> tuple[Any, Noise]:
        recipe = recipe_of(name, output, steps=steps, checkpoint_every=3)
        # warm-up counts from each start: without it both runs have the same rates throughout
        optim = dataclasses.replace(recipe.optim, warmup_steps=1, decay_from=1.0)
        recipe = dataclasses.replace(recipe, optim=optim)
        task, source = make_task(recipe, CPU), Noise()
        fit(task, source, recipe, [], resume=resume)
        return task, source

    whole, source = run("whole", 6)
    early, _ = run("parts", 3)
    resumed, resumed_source = run("parts", 6, resume="latest")
    for key, trained in whole.trained.items():
        other = resumed.trained[key]
        for which in ("masters", "average"):
            a, b = trained.state(which), other.state(which)
            for tensor in a:
                torch.testing.assert_close(a[tensor], b[tensor], atol=1e-6, rtol=1e-5)
        moved = zip(trained.masters, early.trained[key].masters, strict=True)
        assert max(float((a - b).abs().max()) for a, b in moved) > 1e-4
        assert other.updates == trained.updates == 6
    assert resumed.generator.get_state().equal(whole.generator.get_state())
    assert resumed_source.generator.get_state().equal(source.generator.get_state())


def test_the_loss_falls_on_pictures_that_can_be_learnt(recipe_of: Any) -> None:
    recipe = recipe_of("teacher", steps=60, log_every=60)
    task = make_task(recipe, CPU)
    assert isinstance(task, TeacherTask)
    source = Noise()
    hr, lr = source.get(8)
    losses = []
    for step in range(60):
        task.set_progress(step, 0)
        losses.append(float(task.step(Batch(hr, lr))["l1"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_nan_stops_training_and_keeps_the_last_good_checkpoint(recipe_of: Any) -> None:
    recipe = recipe_of("teacher", steps=20, checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"NaN or infinite before step 6.*kept"):
        fit(make_task(recipe, CPU), Noise(poison_at=6), recipe, [])
    folder = Path(recipe.run.output) / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004"]
    good = make_task(recipe, CPU)
    assert checkpoint.load(folder / "step-00000004", good, CPU)["step"] == 4
    assert all(torch.isfinite(m).all() for m in good.trained["net"].masters)


def test_only_the_newest_checkpoints_stay(recipe_of: Any) -> None:
    recipe = recipe_of("teacher", steps=8, checkpoint_every=2, checkpoints_limit=2)
    fit(make_task(recipe, CPU), Noise(), recipe, [])
    names = sorted(p.name for p in (Path(recipe.run.output) / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]


def test_sigterm_ends_the_run_with_a_checkpoint(recipe_of: Any) -> None:
    recipe = recipe_of("teacher", steps=1000, checkpoint_every=1000)

    class Killer(Noise):
        def get(self, batch: int) -> tuple[Tensor, Tensor]:
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().get(batch)

    before = signal.getsignal(signal.SIGTERM)
    fit(make_task(recipe, CPU), Killer(), recipe, [])
    assert (Path(recipe.run.output) / "checkpoints" / "step-00000004" / "state.pt").is_file()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_teacher_of_one_kind_of_samples_alone_has_a_finite_loss(
    recipe_of: Any, share: float
) -> None:
    recipe = recipe_of("teacher")
    recipe = dataclasses.replace(
        recipe, task=dataclasses.replace(recipe.task, one_step_share=share)
    )
    task = make_task(recipe, CPU)
    figures = task.step(Batch(torch.rand(4, 3, 64, 64), torch.rand(4, 3, 16, 16)))
    assert all(math.isfinite(float(v)) for v in figures.values()), figures
    assert (float(figures["l1"]) > 0) == (share == 1)
    assert (float(figures["diffusion"]) > 0) == (share == 0)


def test_light_weights_start_another_run(recipe_of: Any, teacher_weights: Path) -> None:
    state, metadata = load_weights(teacher_weights)
    assert metadata["kind"] == "compact"
    assert all(v.dtype == torch.float16 for v in state.values())
    task = make_task(recipe_of("student"), CPU)
    assert checkpoint.load_light(teacher_weights, task) == ["net"]
    trained = task.trained["net"]
    for name, master in zip(trained.names, trained.masters, strict=True):
        assert torch.equal(master, state[name].float())
    folder_task = make_task(recipe_of("teacher"), CPU)
    checkpoint.load_light(teacher_weights.parent, folder_task)
    average = folder_task.trained["net"].average
    assert torch.equal(average[0], state[trained.names[0]].float())
    with pytest.raises(ModelError, match="lacks"):
        checkpoint.load_light(teacher_weights, make_task(recipe_of("features"), CPU))


def test_unusable_starting_points_are_named(recipe_of: Any, tmp_path: Path) -> None:
    task = make_task(recipe_of("teacher"), CPU)
    with pytest.raises(ModelError, match="no weights for net"):
        checkpoint.load_light(tmp_path, task)
    with pytest.raises(ConfigError, match=r"no state\.pt there"):
        checkpoint.find(str(tmp_path), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.load(tmp_path, task, CPU)


def test_the_student_trains_each_level_on_its_own_predictions(recipe_of: Any) -> None:
    recipe = recipe_of("student", batch=8)
    task = make_task(recipe, CPU)
    assert isinstance(task, StudentTask)
    assert task.counts(8) == [2, 2, 2, 2]
    source = Noise()
    seen: list[Tensor] = []
    forward = task.forward

    def spy(*arguments: Tensor) -> Tensor:
        seen.append(arguments[2].clone())  # the previous predictions it is given
        x = forward(*arguments)
        seen.append(x.detach().clamp(0, 1).clone())
        return x

    task.forward = spy
    for _ in range(2):
        task.step(Batch(*source.get(task.fresh_samples(8))))
    first_output, second_input = seen[1], seen[2]
    torch.testing.assert_close(second_input[2:], first_output[:6])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"widths": [1, 2]}, r"net\.widths = \(1, 2\): give three"),
        ({"widths": [-4, 32, 32]}, r"net\.widths = \(-4, 32, 32\)"),
        ({"norm": "foo"}, r"net\.norm = 'foo': give one of channel"),
        ({"context_channels": 3}, r"net\.context_channels = 3"),
        ({"foo": 1}, r"foo.*\[net\] has widths"),
    ],
)
def test_a_network_that_cannot_be_built_is_named_by_its_field(
    net: dict[str, Any], message: str, recipe_of: Any
) -> None:
    recipe = recipe_of("teacher")
    with pytest.raises(ConfigError, match=message):
        make_task(dataclasses.replace(recipe, net={**recipe.net, **net}), CPU)


def test_the_student_without_a_teacher_says_so(tmp_path: Path) -> None:
    recipe = smoke("student", tmp_path)
    with pytest.raises(ConfigError, match=r"task\.teacher = ''"):
        make_task(
            dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, teacher="")), CPU
        )


def test_the_discriminator_sees_a_moving_window_of_each_crop(recipe_of: Any) -> None:
    recipe = recipe_of("student", batch=8)
    config = dataclasses.replace(
        recipe.task, discriminator_crop=32, discriminator_scales=2, head_share=0.0
    )
    recipe = dataclasses.replace(recipe, task=config)
    task = make_task(recipe, CPU)
    assert isinstance(task, StudentTask)
    sizes: list[tuple[int, ...]] = []
    judge = task.adversary._judge

    def spy(hr: Tensor, x: Tensor, enlarged: Tensor) -> Any:
        sizes.append(tuple(hr.shape[-2:]))
        assert hr.shape == x.shape == enlarged.shape
        return judge(hr, x, enlarged)

    task.adversary._judge = spy
    source, windows = Noise(), set()
    for _ in range(4):
        task.step(Batch(*source.get(task.fresh_samples(8))))
        windows.add(task.adversary.window)
    assert set(sizes) == {(32, 32)}
    assert len(windows) > 1
    with pytest.raises(ConfigError, match=r"discriminator_crop = 40 .*multiple of 32"):
        bad = dataclasses.replace(config, discriminator_crop=40)
        make_task(dataclasses.replace(recipe, task=bad), CPU)


def test_the_adversarial_gradient_never_exceeds_its_share(recipe_of: Any) -> None:
    recipe = recipe_of("student", batch=8)
    config = dataclasses.replace(
        recipe.task, adversarial_cap=1e6, adversarial_share=0.25, adversarial_warmup=1
    )
    task = make_task(dataclasses.replace(recipe, task=config), CPU)
    source = Noise()
    shares = [
        float(task.step(Batch(*source.get(task.fresh_samples(8))))["adv_share"]) for _ in range(3)
    ]
    assert shares == pytest.approx([0.0, 0.25, 0.25], abs=1e-5)  # the first is the warm-up's


def test_sharpened_targets_are_those_of_the_pixel_losses(recipe_of: Any) -> None:
    def losses(amount: float) -> dict[str, float]:
        recipe = recipe_of("student", batch=8)
        config = dataclasses.replace(recipe.task, sharpen=amount)
        task = make_task(dataclasses.replace(recipe, task=config), CPU)
        figures = task.step(Batch(*Noise().get(task.fresh_samples(8))))
        return {name: float(figures[name]) for name in ("l1", "haar", "perceptual", "distill")}

    plain, sharp = losses(0.0), losses(0.5)
    assert sharp["l1"] > 1.01 * plain["l1"] and sharp["haar"] > plain["haar"]
    for name in ("perceptual", "distill"):
        assert sharp[name] == pytest.approx(plain[name], rel=1e-5)


def test_the_adversarial_gradient_lies_in_the_window_and_opposes_the_discriminator(
    recipe_of: Any,
) -> None:
    recipe = recipe_of("student", batch=8)
    config = dataclasses.replace(
        recipe.task,
        discriminator_crop=32,
        discriminator_scales=1,
        discriminator_rate=3e-3,
        head_share=0.0,
    )
    task = make_task(dataclasses.replace(recipe, task=config), CPU)
    assert isinstance(task, StudentTask)
    hr, lr = Noise().get(8)
    x = (hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    base = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear")
    adversary = task.adversary
    for _ in range(30):  # so that it can tell the two apart
        figures = adversary.learn(hr, x, base)
    assert float(figures["loss_d"]) < 0.68
    leaf = x.clone().requires_grad_(True)
    gradient, before = adversary.oppose(leaf, base)
    top, left = adversary.window
    outside = gradient.clone()
    outside[..., top : top + 32, left : left + 32] = 0
    assert outside.abs().max() == 0
    assert gradient.abs().max() > 0
    step = 1e-2 * gradient / gradient.abs().max()
    _, after = adversary.oppose((x - step).requires_grad_(True), base)
    assert float(after["gan"]) < float(before["gan"])


@pytest.mark.parametrize("name", ["teacher", "student", "features"])
def test_a_smoke_twin_runs_from_pictures_to_weights(
    name: str, recipe_of: Any, tmp_path: Path
) -> None:
    pictures, val = tmp_path / "pictures", tmp_path / "val"
    rng = np.random.default_rng(0)
    for folder, side in ((pictures, 160), (val / "hr", 192), (val / "lr", 48)):
        folder.mkdir(parents=True)
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / "a.png")
    recipe = recipe_of(name)
    data = dataclasses.replace(recipe.data, train=(str(pictures),), val=str(val))
    figures = train_recipe(dataclasses.replace(recipe, data=data))
    assert np.isfinite(figures["loss"])
    assert any(k.startswith("val/") for k in figures)
    assert (Path(recipe.run.output) / "weights" / "net-ema.safetensors").is_file()
    if name != "features":
        assert list((Path(recipe.run.output) / "pictures").glob("*.webp"))
