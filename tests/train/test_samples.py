"""Sampled latents on disk: made once, resumed, read in a shuffled order that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from addsr.errors import ConfigError, ModelError, OutputError
from addsr.models.files import load_weights, save_weights
from addsr.nets.stablesr import EncoderConfig, SftConfig, SftLayers, TimeAwareEncoder
from addsr.pipelines import StableSRPipeline
from addsr.train.base import load_base
from addsr.train.cfw_samples import main, make_samples, parse_part
from addsr.train.config import Recipe
from addsr.train.samples import SampleSource, shard_name

pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"widths": (32, 64), "blocks": 1, "features": 32}


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_base(str(tiny_base), "eps", torch.float32, CPU)
    encoder = EncoderConfig(**SHAPE, attention=(True, False), time_channels=32)
    pipe = StableSRPipeline(
        base.unet,
        TimeAwareEncoder(encoder),
        SftLayers(SftConfig(**SHAPE, hidden=16)),
        base.vae,
        base.prompt_embeds,
    )
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    return folder


@pytest.fixture
def recipe(
    latent_recipe: Callable[..., Recipe], model: Path, pictures: Path, tmp_path: Path
) -> Any:
    def make(**task: Any) -> Recipe:
        return latent_recipe(
            "cfw",
            task={
                "model": str(model),
                "samples": str(tmp_path / "samples"),
                "sample_steps": 1,
                "sample_count": 4,
                "shard": 2,
                **task,
            },
            data={"train": (str(pictures),)},
        )

    return make


def contents(folder: Path) -> dict[str, str]:
    """Names of the files and the checksums of their tensors."""
    return {p.name: load_weights(p)[1]["sha256"] for p in folder.glob("samples-*")}


def test_an_interrupted_run_goes_on_and_gives_the_same_files(recipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert make_samples(recipe(), CPU) == 2
    whole = contents(folder)
    assert set(whole) == {shard_name(0), shard_name(1)} and len(set(whole.values())) == 2
    (folder / shard_name(0)).unlink()
    assert make_samples(recipe(), CPU, part=(2, 2)) == 0  # the other part's file is there
    assert make_samples(recipe(), CPU, part=(1, 2)) == 1
    assert contents(folder) == whole
    assert make_samples(recipe(), CPU) == 0
    assert not list(folder.glob(".*"))
    with pytest.raises(OutputError, match=r"task\.samples = .* differ in steps"):
        make_samples(recipe(sample_steps=2), CPU)
    (folder / "samples.json").unlink()
    with pytest.raises(OutputError, match=r"no samples\.json"):
        make_samples(recipe(), CPU)


def test_samples_hold_pictures_and_scaled_latents(recipe: Any) -> None:
    make_samples(recipe(sample_count=2), CPU)
    source = SampleSource.of(recipe(held_out=1), 0, CPU)
    hr, lr, latent = source.get(1)
    assert (hr.shape, lr.shape, latent.shape) == ((1, 3, 64, 64), (1, 3, 16, 16), (1, 4, 16, 16))
    assert 0 <= hr.min() < hr.max() <= 1
    assert hr.dtype == lr.dtype == latent.dtype == torch.float32
    (held,) = source.held_out()
    assert held.latent is not None and not torch.equal(held.hr, hr)


@pytest.mark.parametrize("field", ["model", "samples"])
def test_what_sampling_needs_is_named(field: str, recipe: Any) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{field} = '' is not allowed"):
        make_samples(recipe(**{field: ""}), CPU)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3"])
def test_parts_are_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="give I/N"):
        parse_part(text)


def test_the_command_tells_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.toml")]) == 1
    assert "no such recipe" in capsys.readouterr().err


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Ten samples in two files; each is told by its first pixel."""
    for number in range(2):
        hr = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
        hr[:, 0, 0, 0] = torch.arange(5) + 5 * number
        state = {"hr": hr, "lr": hr[..., :2, :2].clone(), "latent": torch.zeros(5, 4, 2, 2).half()}
        save_weights(tmp_path / shard_name(number), state, {"kind": "cfw-samples"})
    return tmp_path


def numbers(hr: Tensor) -> list[int]:
    return (hr[:, 0, 0, 0] * 255).round().int().tolist()


def test_each_pass_shows_every_sample_once_in_another_order(stored: Path) -> None:
    source = SampleSource(stored, 3, CPU, held_out=2)
    assert len(source) == 8
    first, second = numbers(source.get(8)[0]), numbers(source.get(8)[0])
    assert sorted(first) == sorted(second) == list(range(2, 10)) and first != second
    assert [numbers(pair.hr)[0] for pair in source.held_out()] == [0, 1]
    assert len(source.held_out(1)) == 1
    assert numbers(SampleSource(stored, 4, CPU, held_out=2).get(8)[0]) != first


def test_a_source_goes_on_where_its_state_was_taken(stored: Path) -> None:
    source = SampleSource(stored, 3, CPU)
    source.get(7)
    state, wanted = source.state_dict(), numbers(source.get(9)[0])
    other = SampleSource(stored, 99, CPU)
    other.load_state_dict(state)
    assert numbers(other.get(9)[0]) == wanted


def test_samples_that_cannot_be_used_are_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no samples; make them with"):
        SampleSource(tmp_path / "none", 0, CPU)
    with pytest.raises(ConfigError, match=r"task\.held_out = 10 .*10 samples"):
        SampleSource(stored, 0, CPU, held_out=10)
    with pytest.raises(ConfigError, match=r"data\.crop_px = 64 .*which have 8 pixels"):
        SampleSource(stored, 0, CPU, crop_px=64)
    save_weights(stored / shard_name(2), {"x": torch.zeros(1)}, {"kind": "compact"})
    with pytest.raises(ModelError, match=r"holds no samples \(its kind is 'compact'\)"):
        SampleSource(stored, 0, CPU)
    (stored / shard_name(2)).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="not a readable file of samples"):
        SampleSource(stored, 0, CPU)


def test_validation_pictures_of_another_kind_are_refused(recipe: Any) -> None:
    import dataclasses

    wrong = recipe()
    wrong = dataclasses.replace(wrong, data=dataclasses.replace(wrong.data, val="val"))
    with pytest.raises(ConfigError, match=r"data\.val = 'val' is not used by cfw"):
        SampleSource.of(wrong, 0, CPU)
