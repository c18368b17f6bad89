"""A model is made of trained adapters and the base that they were trained on, and of no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from addsr.errors import ConfigError, ModelError, OutputError
from addsr.models.files import load_weights, save_weights
from addsr.pipelines import StableSRPipeline
from addsr.train import checkpoint
from addsr.train.assemble import assemble
from addsr.train.assemble import main as assemble_main
from addsr.train.run import make_task

pytest.importorskip("accelerate", reason="the train extra is not installed")
pytest.importorskip("diffusers", reason="the diffusion extra is not installed")
PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def trained(latent_recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """The weights of a training that has just begun."""

    def make(**task: Any) -> Path:
        made = make_task(latent_recipe("stablesr", task=task), torch.device("cpu"))
        checkpoint.save_light(tmp_path / "weights", made, step=0, run="a")
        return tmp_path / "weights"

    return make


def halved(base: Path, to: Path, *parts: str) -> Path:
    """The base with these parts in fp16 alone, under the variant's name."""
    shutil.copytree(base, to)
    for part in parts:
        state = {k: v.half() for k, v in load_file(to / part / PLAIN).items()}
        save_file(state, to / part / "diffusion_pytorch_model.fp16.safetensors")
        (to / part / PLAIN).unlink()
    return to


def test_tile_and_prediction_are_those_of_the_training(
    trained: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    weights = trained(prediction="v")
    _, facts = load_weights(weights / "encoder-ema.safetensors")
    assert (facts["prediction"], facts["crop_px"]) == ("v", "64")
    made = assemble(tiny_base, tmp_path / "model", stablesr=weights)
    stored = StableSRPipeline.from_pretrained(tmp_path / "model")
    for pipe in (made, stored):
        assert (pipe.config.prediction, pipe.config.tile) == ("v", 64)
    other = assemble(tiny_base, tmp_path / "other", stablesr=weights, tile=96, fidelity=0.25)
    assert (other.config.tile, other.config.fidelity) == (96, 0.25)


def test_adapters_of_another_prediction_than_the_base_are_refused(
    trained: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "v"
    shutil.copytree(tiny_base, base)
    (base / "scheduler").mkdir()
    told = base / "scheduler" / "scheduler_config.json"
    told.write_text('{"prediction_type": "v_prediction"}')
    weights = trained()
    with pytest.raises(ConfigError, match=r"predicts v, and .*trained to predict eps; give the b"):
        assemble(base, tmp_path / "model", stablesr=weights)
    told.write_text('{"prediction_type": "epsilon"}')
    assert assemble(base, tmp_path / "model", stablesr=weights).config.prediction == "eps"


def test_headers_that_say_nothing_usable_leave_the_bases_facts(
    trained: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    weights = trained()
    path = weights / "encoder-ema.safetensors"
    state, facts = load_weights(path)
    kept = {k: v for k, v in facts.items() if k in ("kind", "config")}
    save_weights(path, state, {**kept, "crop_px": "-64", "prediction": "x"})
    pipe = assemble(tiny_base, tmp_path / "model", stablesr=weights)
    assert (pipe.config.prediction, pipe.config.tile) == ("eps", 512)


def test_a_base_in_half_precision_alone_is_taken(
    trained: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    base = halved(tiny_base, tmp_path / "half", "unet", "vae")
    weights = trained()
    assemble(base, tmp_path / "model", stablesr=weights)
    kept = load_file(tmp_path / "model" / "unet" / PLAIN)
    was = load_file(base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert all(torch.equal(kept[k], was[k]) for k in was)
    # and so is a pipeline of which there is a variant alone
    whole = tmp_path / "whole"
    StableSRPipeline.from_pretrained(tmp_path / "model").save_pretrained(whole, variant="fp16")
    again = assemble(whole, tmp_path / "again", stablesr=weights)
    assert torch.equal(again.unet.state_dict()["conv_in.weight"], was["conv_in.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("kind", r"encoder-ema\.safetensors: holds weights of kind 'sft', not 'encoder'"),
        ("config", r"sft-ema\.safetensors: the weights do not fit their config"),
        ("tensor", r"sft-ema\.safetensors: the weights do not fit their config"),
        ("bytes", r"sft-ema\.safetensors: not a readable safetensors file"),
    ],
)
def test_weights_of_another_kind_or_shape_are_refused(
    change: str, words: str, trained: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    weights = trained()
    path = weights / "sft-ema.safetensors"
    state, facts = load_weights(path)
    about = {k: v for k, v in facts.items() if k in ("kind", "config")}
    if change == "kind":
        shutil.copy(path, weights / "encoder-ema.safetensors")
    elif change == "config":
        save_weights(path, state, {**about, "config": {**about["config"], "hidden": 8}})
    elif change == "tensor":
        save_weights(path, dict(list(state.items())[1:]), about)
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=words):
        assemble(tiny_base, tmp_path / "model", stablesr=weights)
    assert not any((tmp_path / "model").iterdir())


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_a_base_with_a_damaged_index_is_told(
    content: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "model_index.json").write_text(content)
    words = ["--base", str(base), "--cfw", str(tmp_path), "-o", str(tmp_path / "model")]
    assert assemble_main(words) == 1
    assert "error: " in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"model_index\.json: "):
        assemble(base, tmp_path / "other", stablesr=_adapters(tmp_path))


def _adapters(folder: Path) -> Path:
    from addsr.nets.stablesr import EncoderConfig, SftConfig, SftLayers, TimeAwareEncoder

    encoder = TimeAwareEncoder(
        EncoderConfig(widths=(32,), blocks=1, attention=(False,), features=32, time_channels=32)
    )
    layers = SftLayers(SftConfig(widths=(32,), blocks=1, features=32, hidden=8))
    for name, net in (("encoder", encoder), ("sft", layers)):
        config = json.loads(json.dumps(vars(net.config)))
        about = {"kind": name, "config": config}
        save_weights(folder / f"{name}-ema.safetensors", net.state_dict(), about)
    return folder


def test_a_model_is_not_written_over_anything(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"model: is not empty"):
        assemble(tiny_base, tmp_path / "model", stablesr=tmp_path)
    with pytest.raises(OutputError, match=r"mine\.txt: cannot be made"):
        assemble(tiny_base, tmp_path / "model" / "mine.txt", stablesr=tmp_path)
