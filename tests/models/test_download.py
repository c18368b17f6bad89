"""Downloads with a stand-in for the hub: mirrors in turn, caches first, messages that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from addsr.errors import ModelError, OptionError
from addsr.models import download as module
from addsr.models.download import download, find_base, has_parts, stated_sha256
from addsr.models.published import (
    PUBLISHED,
    SD_21_BASE,
    STABLESR,
    by_file_name,
    file_by_name,
    find_published,
)

FILE = STABLESR.files[0]


class Hub:
    """Some repositories, and what was asked of them."""

    def __init__(self, there: dict[str, Path]) -> None:
        self.there = there
        self.asked: list[tuple[str, str]] = []
        self.cached: set[str] = set()

    def file(self, repository: str, name: str) -> str:
        self.asked.append((repository, name))
        if repository not in self.there:
            raise RuntimeError(f"404 for {repository}\nlong story")
        return str(self.there[repository] / name)

    def snapshot(self, repository: str, **options: Any) -> str:
        is_local = options.get("local_files_only", False)
        self.asked.append((repository, "cache" if is_local else "network"))
        if repository not in self.there or (is_local and repository not in self.cached):
            raise FileNotFoundError(f"no {repository}.")
        return str(self.there[repository])


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub({})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "hf_hub_download", hub.file)
    monkeypatch.setattr(module, "snapshot_download", hub.snapshot)
    return hub


def layout(folder: Path, *parts: str) -> Path:
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
             "text_encoder": "model"}  # fmt: skip
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "tokenizer_config.json").write_text("{}")
        (folder / part / f"{names.get(part, 'vocab')}.safetensors").write_text("")
    return folder


def test_the_first_mirror_is_enough(hub: Hub, tmp_path: Path) -> None:
    hub.there = dict.fromkeys(FILE.mirrors, tmp_path)
    assert download(FILE) == tmp_path / "stablesr_000117.ckpt"
    assert hub.asked == [("Iceclear/StableSR", "stablesr_000117.ckpt")]


def test_the_next_mirror_is_asked_where_one_fails(hub: Hub, tmp_path: Path) -> None:
    hub.there = {"camenduru/StableSR": tmp_path}
    assert download(FILE) == tmp_path / "stablesr_000117.ckpt"
    assert [repository for repository, _ in hub.asked] == list(FILE.mirrors)


def test_no_mirror_at_all_ends_in_a_way_by_hand(hub: Hub) -> None:
    with pytest.raises(ModelError) as caught:
        download(FILE)
    text = str(caught.value)
    for mirror in FILE.mirrors:
        assert f"{mirror}: 404 for {mirror}" in text
        assert f"https://huggingface.co/{mirror}/resolve/main/stablesr_000117.ckpt" in text
    assert "addsr models import stablesr_000117.ckpt" in text and "long story" not in text


def test_offline_mode_is_obeyed_and_told() -> None:
    with pytest.raises(
        ModelError, match=r"no mirror gave it .*cache, and HF_HUB_OFFLINE forbids to ask"
    ):
        download(FILE)


def test_the_sum_that_the_hub_stated_is_read_off_its_cache(tmp_path: Path) -> None:
    blob = tmp_path / ("0a" * 32)
    blob.write_text("x")
    (tmp_path / "file.ckpt").symlink_to(blob)
    assert stated_sha256(tmp_path / "file.ckpt") == "0a" * 32
    (tmp_path / "plain.ckpt").write_text("x")
    assert stated_sha256(tmp_path / "plain.ckpt") is None


def test_a_cached_base_under_any_of_its_names_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    last = SD_21_BASE.mirrors[-1]
    hub.there, hub.cached = {last: layout(tmp_path, "unet", "vae")}, {last}
    assert find_base(SD_21_BASE, ("unet", "vae")) == tmp_path
    assert {how for _, how in hub.asked} == {"cache"}


def test_a_cached_base_that_lacks_a_part_is_not_enough(hub: Hub, tmp_path: Path) -> None:
    first, second, _ = SD_21_BASE.mirrors
    hub.there = {
        first: layout(tmp_path / "a", "unet"),
        second: layout(tmp_path / "b", "unet", "text_encoder", "tokenizer"),
    }
    hub.cached = {first}
    assert find_base(SD_21_BASE, ("unet", "text_encoder", "tokenizer")) == tmp_path / "b"
    assert hub.asked[-2:] == [(first, "network"), (second, "network")]


def test_a_base_that_is_nowhere_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.there = {SD_21_BASE.mirrors[1]: tmp_path}
    with pytest.raises(ModelError) as caught:
        find_base(SD_21_BASE, ("vae",))
    first, second, _ = SD_21_BASE.mirrors
    assert f"({first}: no {first}; {second}: lacks some of them; " in str(caught.value)
    assert f"hf download {first} --local-dir FOLDER; then give --base FOLDER" in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_parts_are_whole_only_with_weights_and_configuration(tmp_path: Path, part: str) -> None:
    assert not has_parts(tmp_path, [part])
    assert has_parts(layout(tmp_path, part), [part, "scheduler"])
    for file in (tmp_path / part).iterdir():
        if file.suffix == ".json":
            file.unlink()
    assert not has_parts(tmp_path, [part])


def test_published_models_state_what_is_needed() -> None:
    for name, model in PUBLISHED.items():
        assert find_published(name) is model and model.name == name
        assert [file.role for file in model.files] == ["checkpoint", "cfw"]
        assert model.is_non_commercial and "non-commercial" in model.full_licence
        assert model.base.mirrors and model.base.licence in model.full_licence
        assert model.prediction == ("v" if name == "stablesr-768" else "eps")
        assert model.tile == (768 if name == "stablesr-768" else 512)
        assert (model.kind == "stablesr-turbo") == (model.steps == 4) == (name == "stablesr-turbo")
        for file in model.files:
            assert model in by_file_name(file.name)
            assert file_by_name(file.name) == file
    assert file_by_name("other.ckpt") is None and by_file_name("other.ckpt") == ()
    with pytest.raises(OptionError, match="'sd' is no published model; use one of stablesr, "):
        find_published("sd")
