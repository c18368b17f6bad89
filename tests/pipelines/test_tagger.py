"""The tagger on pictures, on the disk and in the store of imported models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from addsr.errors import InputError, ModelError, OptionError, OutputError
from addsr.models.convert_ram import convert_ram
from addsr.models.files import save_weights
from addsr.models.store import Installed, find_installed, recorded
from addsr.models.tags import TagList
from addsr.nets.ram import Ram, add_lora, prepare
from addsr.pipelines.installing import Wish
from addsr.pipelines.installing_ram import install_ram, plan_ram, takes
from addsr.pipelines.tagger import Tagger, misfits

RAM, DAPE = "ram_swin_large_14m.pth", "DAPE.pth"
NAMES = ("river", "dog", "brick wall", "kitten", "tower", "forest")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDSR_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture()
def tagger(ram_state: Any) -> Tagger:
    converted = convert_ram(ram_state)
    net = Ram(converted.config)
    net.load_state_dict(converted.state)
    return Tagger(net, TagList(NAMES, (0.5,) * 6))


def installed(files: list[Path], **options: Any) -> Installed:
    wish = Wish(**{"dtype": "fp32", **options})
    return install_ram(plan_ram(files, wish), wish)


@torch.no_grad()
def test_pictures_of_any_size_become_tokens_and_tags(tagger: Tagger) -> None:
    image = torch.rand(2, 3, 20, 50)
    embeds, tags = tagger(image)
    wanted = tagger.net(prepare(image, 32))
    assert torch.equal(embeds, wanted.embeds)
    said = (wanted.logits.sigmoid() > 0.5).sum(1).tolist()
    assert [len(one) for one in tags] == said and sum(said) > 0
    bicubic = tagger.net.embed(prepare(image, 32, interpolation="bicubic"))
    assert torch.equal(tagger.embed(image), bicubic)


@torch.no_grad()
def test_released_shrinking_can_be_had(tagger: Tagger) -> None:
    image = torch.rand(1, 3, 100, 100)
    tagger.antialias = False
    wanted = tagger.net.embed(prepare(image, 32, antialias=False))
    assert torch.equal(tagger(image).embeds, wanted)


def test_tokens_carry_gradients_to_what_is_trained(tagger: Tagger) -> None:
    trained = add_lora(tagger.net)
    tagger.embed(torch.rand(1, 3, 32, 32)).sum().backward()
    assert trained[1].grad is not None and bool(trained[1].grad.any())


def test_tagger_survives_a_round_trip(tagger: Tagger, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "tagger"
    tagger.save_pretrained(folder)
    again = Tagger.from_pretrained(folder)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(image).embeds, tagger(image).embeds)
    assert again.tags == tagger.tags and misfits(folder) == []
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "Tagger"
    half = Tagger.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.device.type == "cpu"
    torch.testing.assert_close(half(image).embeds.float(), tagger(image).embeds, rtol=0.1, atol=0.1)
    assert half.to("cpu", torch.float32).dtype == torch.float32


def test_updates_apart_are_not_saved(tagger: Tagger, tmp_path: Path) -> None:
    add_lora(tagger.net)
    with pytest.raises(ModelError, match="merge_lora them first"):
        tagger.save_pretrained(tmp_path / "tagger")


def test_list_of_another_network_is_refused(tagger: Tagger) -> None:
    with pytest.raises(ModelError, match="has 1 and the network 6"):
        Tagger(tagger.net, TagList(("a",), (0.5,)))


def test_what_is_no_picture_is_refused(tagger: Tagger) -> None:
    with pytest.raises(InputError, match="no batch of pictures"):
        tagger(torch.zeros(3, 8, 8))


def test_damaged_folders_are_told(tagger: Tagger, tmp_path: Path) -> None:
    folder = tmp_path / "tagger"
    tagger.save_pretrained(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read" in misfits(folder)[0]
    weights = folder / "model.safetensors"
    state = load_file(weights)
    for kind, config, message in (
        ("compact", {}, "of kind 'compact', not 'ram'"),
        ("ram", {"swin": {"frames": 3}, "head": {}}, "unknown shape"),
        ("ram", {"head": {}}, "unknown shape"),
        ("ram", {"swin": {}, "head": {}, "tags": 6}, "does not fit its shape"),
    ):
        save_weights(weights, state, {"kind": kind, "config": config})
        with pytest.raises(ModelError, match=message):
            Tagger.from_pretrained(folder)
        assert len(misfits(folder)) == 1
    (folder / "ram_tag_list.txt").unlink()
    with pytest.raises(ModelError, match="no weights file"):
        Tagger.from_pretrained(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        tagger.save_pretrained(tmp_path / "file")


def test_both_files_become_an_extractor_with_the_updates_merged(
    ram_files: Path, ram_state: Any, dape_state: Any
) -> None:
    files = [ram_files / DAPE, ram_files / RAM]
    assert takes(files)
    model = installed(files)
    assert (model.name, model.kind, model.variant, model.tile) == ("dape", "ram", "dape", 32)
    assert model.licence == "Apache-2.0" and find_installed("dape") == model
    ram, dape = model.sources
    assert ram.name == RAM and "tensors left out" in ram.what
    assert dape.name == DAPE and dape.what.startswith("low-rank updates (8 merged)")
    assert set(recorded()) == {RAM, DAPE}
    assert sorted(model.files) == [
        "config.json",
        "model.safetensors",
        "ram_tag_list.txt",
        "ram_tag_list_threshold.txt",
    ]
    tagger = Tagger.from_pretrained(model.folder)
    wanted = convert_ram(ram_state, dape_state).state
    assert all(torch.equal(v, wanted[k]) for k, v in tagger.net.state_dict().items())
    assert tagger.tags == TagList(NAMES, (0.3, 0.4, 0.5, 0.6, 0.45, 0.55))


def test_ram_alone_is_one_too_in_half_precision_and_under_another_name(ram_files: Path) -> None:
    model = installed([ram_files / RAM], dtype="fp16", name="mine")
    assert (model.name, model.variant, model.dtype) == ("mine", "ram", "fp16")
    assert Tagger.from_pretrained(model.folder).dtype == torch.float16
    assert installed([ram_files / RAM]).name == "ram"


def test_lists_may_lie_elsewhere_and_be_named(ram_files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    lists = [ram_files / "ram_tag_list.txt", ram_files / "ram_tag_list_threshold.txt"]
    moved = [path.rename(other / path.name) for path in lists]
    with pytest.raises(ModelError, match="put it beside the weights"):
        installed([ram_files / RAM])
    assert find_installed("ram") is None
    assert installed([ram_files / RAM, *moved]).name == "ram"
    (ram_files / "ram_tag_list.txt").write_text("a")
    with pytest.raises(ModelError, match="lie in different folders"):
        installed([ram_files / RAM, ram_files / "ram_tag_list.txt", moved[1]], name="b")


def test_safetensors_with_the_same_tensors_will_do(ram_files: Path, ram_state: Any) -> None:
    path = ram_files / "ram.safetensors"
    save_file(ram_state, path)
    assert installed([path]).sources[0].name == "ram.safetensors"
    assert recorded() == {}


def test_files_that_do_not_make_an_extractor_are_refused(
    ram_files: Path, ram_state: Any, tmp_path: Path
) -> None:
    def refused(message: str, *files: Path, **options: Any) -> None:
        with pytest.raises(ModelError, match=message):
            installed(list(files), **options)

    ram, dape = ram_files / RAM, ram_files / DAPE
    refused("holds low-rank updates alone; give ram_swin", dape)
    refused("is a list of tags; give ram_swin", ram_files / "ram_tag_list.txt")
    second = tmp_path / "second.pth"
    second.write_bytes(ram.read_bytes())
    refused("are the same part", ram, second)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    refused("no part of a prompt extractor", ram, tmp_path / "a.safetensors")
    refused("no file there", ram, tmp_path / "absent.pth")
    ram_state = {**ram_state, "visual_encoder.x": torch.zeros(1)}
    torch.save({"model": ram_state}, second)
    refused(r"second\.pth: prompt extractor: 1 unknown tensors", second)
    ram_state["fc.bias"] = torch.tensor([1e9])
    del ram_state["visual_encoder.x"]
    torch.save({"model": ram_state}, second)
    (tmp_path / "ram_tag_list.txt").write_text("\n".join(NAMES))
    refused("too large for float16; use --dtype fp32", second, dtype="fp16")
    for option, value in (("base", "x"), ("tile", 64), ("variant", "stablesr")):
        with pytest.raises(OptionError, match="is not for prompt extractors"):
            installed([ram], **{option: value})
    assert not takes([tmp_path / "a.safetensors", tmp_path / "absent.pth"])


def test_changed_files_are_noticed_and_names_are_not_taken_twice(
    ram_files: Path, ram_state: Any
) -> None:
    installed([ram_files / RAM])
    with pytest.raises(ModelError, match="is imported already"):
        installed([ram_files / RAM])
    changed = {**ram_state, "fc.bias": torch.ones(1)}
    torch.save({"model": changed}, ram_files / RAM)
    with pytest.raises(ModelError, match=r"is not the ram_swin_large_14m\.pth on record"):
        installed([ram_files / RAM], name="other")
    model = installed([ram_files / RAM], force=True)
    assert float(Tagger.from_pretrained(model.folder).net.score.bias) == 1
