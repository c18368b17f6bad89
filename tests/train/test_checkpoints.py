"""Checkpoints that cannot be written, hold what is no number, or do not fit in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import ConfigError, MemoryLimitError, ModelError, OutputError, TrainingError
from addsr.models.files import load_weights, save_weights
from addsr.train import cfw_samples, checkpoint
from addsr.train.base import main as base_main
from addsr.train.base import write_tiny_base
from addsr.train.config import Recipe, load_recipe
from addsr.train.features import FeaturesTask
from addsr.train.latent_config import CfwTaskConfig
from addsr.train.loop import fit
from addsr.train.perceptual import make_perceptual
from addsr.train.run import make_task, train_recipe
from addsr.train.task import Batch

pytest.importorskip("accelerate", reason="the train extra is not installed")
RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")


class Pictures:
    """Random pictures; from the `poison_at`-th call on they hold NaN."""

    def __init__(self, poison_at: int = 99) -> None:
        self.generator, self.calls = torch.Generator().manual_seed(0), 0
        self.poison_at = poison_at

    def get(self, batch: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        hr = torch.rand(batch, 3, 64, 64, generator=self.generator)
        if self.calls >= self.poison_at:
            hr = hr * float("nan")
        return hr, torch.nn.functional.avg_pool2d(hr, 4)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is not counted: counting takes longer than these runs."""
    monkeypatch.setattr(FeaturesTask, "flops_per_sample", lambda self: 1.0)


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(**run: Any) -> Recipe:
        recipe = load_recipe("features", RECIPES / "features-smoke.toml")
        usual = {"output": str(tmp_path / "run"), "batch": 2, "log_every": 50}
        changed = dataclasses.replace(recipe.run, **{**usual, **run})
        return dataclasses.replace(recipe, run=changed)

    return make


def written(recipe: Recipe) -> list[str]:
    return sorted(p.name for p in (Path(recipe.run.output) / "checkpoints").iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("short")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(
    error: Exception, recipe_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saves = torch.save, []

    def full(state: Any, path: Path) -> None:
        saves.append(path)
        if len(saves) > 1:
            Path(path).write_bytes(b"half of it")
            raise error
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    recipe = recipe_of(steps=3, checkpoint_every=1)
    with pytest.raises(OutputError, match=r"step-00000002: checkpoint cannot be written .* kept"):
        fit(make_task(recipe, CPU), Pictures(), recipe, [])
    assert written(recipe) == ["step-00000001"]  # and no half of the other
    task = make_task(recipe, CPU)
    found = checkpoint.find("latest", Path(recipe.run.output) / "checkpoints")
    assert found is not None and checkpoint.load(found, task, CPU)["step"] == 1


def test_a_place_for_checkpoints_that_is_a_file_is_told(recipe_of: Any, tmp_path: Path) -> None:
    recipe = recipe_of(steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(OutputError, match=r"checkpoint cannot be written .*another run\.output"):
        fit(make_task(recipe, CPU), Pictures(), recipe, [])
    task = make_task(recipe, CPU)
    with pytest.raises(OutputError, match=r"cannot be made .*another run\.output"):
        checkpoint.save_light(tmp_path / "run" / "checkpoints", task, step=1, run="a")


@pytest.mark.parametrize("every", [{"checkpoint_every": 2}, {"validate_every": 2}, {"steps": 2}])
def test_no_checkpoint_holds_nan(every: dict[str, int], recipe_of: Any) -> None:
    # nothing is logged when the loss has become NaN: the checkpoint itself has to look
    recipe = recipe_of(**{"steps": 9, "checkpoint_every": 9, **every})
    with pytest.raises(TrainingError, match=r"NaN or infinite before step 2"):
        fit(make_task(recipe, CPU), Pictures(poison_at=2), recipe, [])
    folder = Path(recipe.run.output) / "checkpoints"
    assert not folder.exists() or not any(folder.iterdir())


def test_a_step_is_written_once(recipe_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda *a, step, **k: saved.append(step))
    recipe = recipe_of(steps=4, checkpoint_every=2)
    fit(make_task(recipe, CPU), Pictures(), recipe, [])
    assert saved == [2, 4]


def test_the_last_step_is_validated_once(recipe_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def validate(self: FeaturesTask, pairs: list[Batch]) -> tuple[dict[str, float], None]:
        asked.append(len(pairs))
        return {"psnr": 30.0 + len(asked)}, None

    monkeypatch.setattr(FeaturesTask, "validate", validate)
    recipe = recipe_of(steps=4, validate_every=2)
    pairs = [Batch(*Pictures().get(1))]
    figures = fit(make_task(recipe, CPU), Pictures(), recipe, pairs)
    assert asked == [1, 1] and figures["val/psnr"] == 32.0


def test_too_little_memory_is_told_with_the_batch(
    recipe_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "a.png")

    def greedy(self: FeaturesTask, batch: Batch) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(FeaturesTask, "step", greedy)
    recipe = recipe_of(steps=1, tensorboard=False)
    data = dataclasses.replace(recipe.data, train=(str(tmp_path / "pictures"),), val="")
    with pytest.raises(MemoryLimitError, match=r"run\.batch = 2 pictures of .*9 GiB\.\).*smaller"):
        train_recipe(dataclasses.replace(recipe, data=data))


def test_too_little_memory_for_samples_is_told_with_their_number(
    latent_recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def greedy(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    class Pipe:
        def to(self, device: Any) -> None: ...

    monkeypatch.setattr(cfw_samples, "sample_shard", greedy)
    monkeypatch.setattr(cfw_samples, "facts", lambda *_: {})
    monkeypatch.setattr(cfw_samples, "_pools", lambda *_: lambda number: None)
    monkeypatch.setattr(cfw_samples.StableSRPipeline, "from_pretrained", lambda *_, **__: Pipe())
    recipe = latent_recipe("cfw", task={"samples": str(tmp_path / "samples")})
    with pytest.raises(MemoryLimitError, match=r"task\.sample_batch = \d+ pictures of .* smaller"):
        cfw_samples.make_samples(recipe, CPU)


def test_a_discriminator_deeper_than_its_pictures_is_refused(latent_recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"discriminator_layers = 5.*at most 4 .*crop_px = 64"):
        make_task(latent_recipe("cfw", task={"discriminator_layers": 5}), CPU)
    make_task(latent_recipe("cfw", task={"discriminator_layers": 4}), CPU)


def test_a_tiny_base_is_never_written_over_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"base: is not empty; give another folder"):
        write_tiny_base(folder)
    assert base_main([str(folder)]) == 1 and "is not empty" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match=r"cannot be made"):
        write_tiny_base(folder / "notes.txt")


def test_a_teacher_whose_weights_do_not_fit_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    state, about = load_weights(tiny_teacher)
    path = tmp_path / "t.safetensors"
    for config, tensors in (
        (about["config"], dict(list(state.items())[1:])),
        ({**about["config"], "widths": [1]}, state),
    ):
        save_weights(path, tensors, {"kind": "compact", "config": config})
        with pytest.raises(ModelError, match=r"task\.teacher = .* do not fit their config"):
            make_perceptual(CfwTaskConfig(teacher=str(path)), CPU)
    save_weights(path, state, {"kind": "compact"})
    with pytest.raises(ModelError, match=r"task\.teacher = .* do not fit their config"):
        make_perceptual(CfwTaskConfig(teacher=str(path)), CPU)
