"""Models by name and by path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from addsr.errors import ModelError
from addsr.models import hub
from addsr.models.files import load_weights, save_weights
from addsr.models.hub import find_models, find_pipeline, load_model
from addsr.models.registry import info_for_pipeline
from addsr.nets import CompactConfig, CompactNet

TINY = CompactConfig(
    widths=(32, 32, 32), depths=(1, 1, 1), decoder_widths=(32, 16, 16), decoder_depth=1,
    time_channels=32, lr_channels=8,
)  # fmt: skip


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {k: v.half() for k, v in CompactNet(TINY).state_dict().items()}
    path = tmp_path / "tiny.safetensors"
    save_weights(path, state, {"kind": "compact", "config": TINY.to_dict(), "licence": "CC0-1.0"})
    return path


def test_a_file_is_built_into_the_network_it_describes(weights: Path) -> None:
    model = load_model(weights)
    assert model.info.name == "tiny.safetensors" and model.info.licence == "CC0-1.0"
    assert not model.net.training
    torch.manual_seed(0)
    for name, value in CompactNet(TINY).state_dict().items():
        assert torch.equal(model.net.state_dict()[name], value.half().float())
    assert next(load_model(weights, dtype=torch.bfloat16).net.parameters()).dtype == torch.bfloat16


def test_fp16_weights_can_stay_in_fp16_and_outlive_their_file(weights: Path) -> None:
    stored, _ = load_weights(weights)
    expected = {name: value.clone() for name, value in stored.items()}
    del stored
    net = load_model(weights, dtype=None).net
    weights.write_bytes(bytes(weights.stat().st_size))
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float16 and torch.equal(value, expected[name])
    assert all(p.requires_grad for p in net.parameters())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"model: 'bigger' is neither a known model \(compact.*path"
    ):
        load_model("bigger")
    with pytest.raises(ModelError, match=r"is neither a known model \(compact, stablesr, "):
        load_model("a" * 300)
    assert find_pipeline("a" * 300) is None
    with pytest.raises(ModelError, match=r"not installed; get it with .* pull stablesr-face"):
        find_pipeline("stablesr-face")


def test_weights_of_one_variant_are_counted(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        for variant in ("", ".fp16"):
            path = tmp_path / part / f"diffusion_pytorch_model{variant}.safetensors"
            path.write_bytes(bytes(500_000))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableSRPipeline"}')
    found = find_pipeline(tmp_path)
    assert found is not None and found.info.size_mb == 1.0


def test_missing_embedded_weights_name_the_file_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "embedded", lambda name: tmp_path / f"{name}.safetensors")
    assert find_models()["compact"] is None
    with pytest.raises(ModelError, match=r"compact\.safetensors\) are missing.*reinstall"):
        load_model("compact")


def test_the_embedded_model_keeps_its_published_facts(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "embedded", lambda _name: weights)
    model = load_model("compact")
    assert model.info.name == "compact" and model.info.licence == "Apache-2.0"
    assert find_models()["compact"] == pytest.approx(weights.stat().st_size / 1e6)


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    wrong = {**TINY.to_dict(), "widths": [64, 32, 32]}
    save_weights(path, CompactNet(TINY).state_dict(), {"kind": "compact", "config": wrong})
    with pytest.raises(ModelError, match=r"odd\.safetensors: the weights do not fit"):
        load_model(path)


@pytest.mark.parametrize(
    "wrong",
    [{"widths": [32, 32]}, {"widths": "abc"}, {"widths": [-1, 32, 32]}, {"depths": [1.5, 1, 1]},
     {"colour": 1}],
)  # fmt: skip
def test_a_config_no_network_can_be_built_from_is_told(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    path = tmp_path / "odd.safetensors"
    config = {**TINY.to_dict(), **wrong}
    save_weights(path, CompactNet(TINY).state_dict(), {"kind": "compact", "config": config})
    with pytest.raises(ModelError, match=r"odd\.safetensors: config of .* is not understood"):
        load_model(path)


def test_a_config_that_is_a_list_is_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_weights(path, CompactNet(TINY).state_dict(), {"kind": "compact", "config": [1]})
    with pytest.raises(
        ModelError, match=r"odd\.safetensors: config of .*must be a table of fields"
    ):
        load_model(path)


@pytest.mark.parametrize("place", ["weights/net-ema.safetensors", "net-ema.safetensors"])
def test_a_folder_of_training_names_the_file_in_it(
    weights: Path, tmp_path: Path, place: str
) -> None:
    trained = tmp_path / "runs" / "student" / place
    trained.parent.mkdir(parents=True)
    weights.rename(trained)
    with pytest.raises(ModelError, match=rf"student' is a folder of training; give '.*{place}'"):
        load_model(tmp_path / "runs" / "student")


def test_a_text_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(ModelError, match=r"a\.safetensors: not a readable safetensors file"):
        load_model(tmp_path / "a.safetensors")


def folder_of(tmp_path: Path, **index: object) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"_class_name": "StableSRPipeline", **index})
    (folder / "model_index.json").write_text(text)
    return folder


def test_a_pipeline_is_found_without_reading_its_weights(tmp_path: Path) -> None:
    found = find_pipeline(folder_of(tmp_path, cfw=["addsr", "x"], steps=50, fidelity=0.25))
    assert found is not None and found.info.name == "mine"
    assert (found.info.default_steps, found.info.default_fidelity) == (50, 0.25)
    assert found.info.check_steps(1000) == 1000 and found.info.kind == "stablesr"
    assert find_pipeline("compact") is None and find_pipeline(tmp_path / "gone") is None


def test_a_pipeline_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a pipeline .* load it with addsr\.load_model"):
        load_model(folder_of(tmp_path))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"steps": 0}, "steps = 0 in its index is no number from 1 to 1000"),
        ({"steps": True}, "steps = True in its index"),
        ({"fidelity": 2}, "fidelity = 2 in its index is no number from 0 to 1"),
    ],
)
def test_a_pipeline_with_facts_that_cannot_be_names_them(
    tmp_path: Path, index: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=f"mine: {message}"):
        find_pipeline(folder_of(tmp_path, **index))


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    path = folder_of(tmp_path) / "model_index.json"
    for text, message in (
        ("{", "cannot be read.*import the model again"),
        ("[]", "holds no JSON object"),
        ("{}", "a pipeline of class None"),
        ('{"_class_name": "AddSRPipeline", "steps": 0}', "steps = 0 in its index"),
        ('{"_class_name": "SeeSRPipeline", "guidance": 0.5}', "guidance = 0.5 in its index"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            find_pipeline(path.parent)


def test_a_kind_of_a_later_version_is_told() -> None:
    with pytest.raises(ModelError, match=r"mine: is a model of kind 'supir', unknown .* update"):
        info_for_pipeline("mine", {}, "supir", "x", 1.0)
