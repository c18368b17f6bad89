"""Tags of training pictures as prompts: made once, kept, and told to the right pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("accelerate", reason="the train extra is not installed")
pytest.importorskip("diffusers", reason="the diffusion extra is not installed")

from addsr.data.pool import PairPool
from addsr.errors import ModelError
from addsr.nets.ram import prepare
from addsr.pipelines.prompts import join_words
from addsr.pipelines.tagger import Tagger
from addsr.train import prompts
from addsr.train.addsr_networks import write_tiny_seesr
from addsr.train.config import Recipe, load_recipe
from addsr.train.passes import Prompted
from addsr.train.prompts import PromptedSource
from addsr.train.run import make_source, make_task
from addsr.train.task import Batch

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    dice = np.random.default_rng(0)
    for k in range(4):
        cells = dice.integers(0, 255, (4 + k, 4 + k, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((128, 128), Image.Resampling.NEAREST).save(
            folder / f"{k}.png"
        )
    return folder


@pytest.fixture
def recipe(tmp_path: Path, text_base: Path, tiny_tagger: Path, pictures: Path) -> Any:
    """Makes the smoke recipe of SeeSR or AddSR with tags as prompts."""

    def make(name: str = "seesr", **task: Any) -> Recipe:
        tables: dict[str, Any] = {
            "run": {"output": str(tmp_path / "run")},
            "data": {"train": [str(pictures)]},
            "task": {
                "base": str(text_base), "tagger": str(tiny_tagger), "prompt_dropout": 0.0, **task
            },
        }  # fmt: skip
        return load_recipe(name, RECIPES / f"{name}-smoke.toml", tables)

    return make


def logits(pool: PairPool, number: int, tagger: Tagger) -> Tensor:
    side = tagger.net.config.swin.side
    seen = prepare(pool.picture(number)[None].float() / 255, side, interpolation="bicubic")
    with torch.no_grad():
        return tagger.net(seen).logits


def test_each_pair_comes_with_the_embedded_words_of_its_picture(
    recipe: Any, tiny_tagger: Path, tmp_path: Path
) -> None:
    pool, _ = make_source(recipe(prompt_dropout=1.0), 0, CPU)
    assert isinstance(pool, PairPool)
    # random networks say nearly the same of all pictures; these thresholds tell them apart
    tagger = Tagger.from_pretrained(tiny_tagger)
    scores = torch.cat([logits(pool, n, tagger) for n in range(4)]).sigmoid()
    middle = scores.sort(0).values[1:3].mean(0).tolist()
    tagger.tags = dataclasses.replace(tagger.tags, thresholds=tuple(middle))
    tagger.save_pretrained(tmp_path / "tagger")
    tagger = Tagger.from_pretrained(tmp_path / "tagger")

    source, _ = make_source(recipe(prompt_tagger=str(tmp_path / "tagger")), 0, CPU)
    assert isinstance(source, PromptedSource)
    encoder = source.prompter.encoder
    said = [tagger.tags.decode(logits(pool, n, tagger))[0] for n in range(4)]
    words = [join_words(encoder, [tag.name for tag in tags], "", "") for tags in said]
    assert len(set(words)) > 1
    for _ in range(3):
        batch = source.get(2)
        hr, lr, numbers = pool.get_numbered(2)
        assert torch.equal(batch.hr, hr) and torch.equal(batch.lr, lr)
        wanted = torch.cat([encoder(words[n]) for n in numbers])
        assert batch.text is not None
        torch.testing.assert_close(batch.text, wanted)


def test_pictures_are_tagged_once_and_their_words_are_kept(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, _ = make_source(recipe(), 0, CPU)
    first = source.get(2)
    cache = tmp_path / "run" / "prompts" / "tags-0.json"
    kept = json.loads(cache.read_text())
    assert len(kept["words"]) == 4

    def refuse(*_: object) -> None:
        raise AssertionError("tagged again")

    with monkeypatch.context() as patch:
        patch.setattr(prompts, "load_ram", refuse)
        again, _ = make_source(recipe(), 0, CPU)
        assert torch.equal(again.get(2).text, first.text)  # type: ignore[union-attr]
        state = source.state_dict()
        more = source.get(2).text  # type: ignore[union-attr]
        again.load_state_dict(state)
        assert torch.equal(again.get(2).text, more)  # type: ignore[union-attr]
        # the words of another extractor do not count, nor does what cannot be read
        cache.write_text(json.dumps({**kept, "tagger": "another"}))
        with pytest.raises(AssertionError, match="tagged again"):
            make_source(recipe(), 0, CPU)[0].get(2)
    cache.write_text("{")
    with caplog.at_level(logging.WARNING):
        make_source(recipe(), 0, CPU)[0].get(2)
    assert "its pictures are tagged again" in caplog.text
    assert json.loads(cache.read_text()) == kept


def test_shards_that_are_held_in_turn_are_tagged_in_turn(recipe: Any, pictures: Path) -> None:
    whole = recipe()
    files = [str(path) for path in sorted(pictures.glob("*.png"))]
    tables = {"train": tuple(files), "held": 2, "held_pairs": 4}
    whole = dataclasses.replace(whole, data=dataclasses.replace(whole.data, **tables))
    source, _ = make_source(whole, 0, CPU)
    assert isinstance(source, PromptedSource)
    known = []
    for _ in range(4):
        source.get(2)
        known.append(len(source.prompter.words))
    assert known == [2, 2, 4, 4]
    source.close()


def test_embeddings_last_used_are_kept(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_KEPT", 2)
    source, _ = make_source(recipe(), 0, CPU)
    assert isinstance(source, PromptedSource)
    prompter, asked = source.prompter, []
    encode = prompter.encoder.__call__

    def count(words: str) -> Tensor:
        asked.append(words)
        return encode(words)

    prompter.encoder = count  # type: ignore[assignment]
    for words in ("dog", "wall", "dog", "river", "dog", "wall"):
        prompter.embed(words)
    assert asked == ["dog", "wall", "river", "wall"]


def test_without_a_tagger_prompts_are_empty_and_it_is_said(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_source(recipe(tagger=""), 0, CPU)[0], PairPool)
    assert "there is no task.tagger: all prompts are empty" in caplog.text


def test_a_base_without_a_text_encoder_or_an_extractor_that_is_not_there_is_refused(
    recipe: Any, tiny_base: Path
) -> None:
    with pytest.raises(ModelError, match=r"text_encoder of .*, or task\.prompt_dropout = 1"):
        make_source(recipe(base=str(tiny_base)), 0, CPU)
    with pytest.raises(ModelError, match=r"absent\.pth: cannot be read"):
        make_source(recipe(prompt_tagger="absent.pth"), 0, CPU)


def test_words_are_those_of_the_extractor_that_is_named_for_them(
    recipe: Any, ram_files: Path
) -> None:
    ram = ram_files / "ram_swin_large_14m.pth"
    source, _ = make_source(recipe(prompt_tagger=str(ram)), 0, CPU)
    assert isinstance(source, PromptedSource)
    source.get(1)
    said = {word for words in source.prompter.words.values() for word in words.split(", ") if word}
    assert said and said <= {"river", "dog", "brick wall", "kitten", "tower", "forest"}
    (ram_files / "ram_tag_list.txt").unlink()
    source.prompter.words.clear()
    source._pool = None
    with pytest.raises(ModelError, match="no list of tags there"):
        source.get(1)


def test_a_network_tells_each_sample_its_own_prompt() -> None:
    heard: list[Tensor] = []

    def net(z_t: Tensor, t: Tensor, picture: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        heard.append(text)
        return z_t

    x, text = torch.zeros(2, 1), torch.arange(4.0).view(4, 1, 1)
    Prompted(net, text).take(torch.tensor([3, 1]))(x, x, x, x)
    assert heard[0].flatten().tolist() == [3.0, 1.0]


@pytest.mark.slow
def test_addsr_is_told_the_tags_of_each_sample(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_seesr(tmp_path / "seesr")
    with pytest.raises(ModelError, match=r"task\.seesr takes 16"):
        make_task(recipe("addsr", seesr=str(tmp_path / "seesr")), CPU)
    whole = recipe("addsr", seesr=str(tmp_path / "seesr"), gan_weight=0.0, first_share=0.0)
    task: Any = make_task(
        dataclasses.replace(whole, task=dataclasses.replace(whole.task, tagger="")), CPU
    )
    heard: list[tuple[Tensor, Tensor]] = []
    forward = task.student.forward

    def spy(z_t: Tensor, t: Tensor, text: Tensor, tokens: Tensor, picture: Tensor) -> Tensor:
        heard.append((text, t))
        return forward(z_t, t, text, tokens, picture)

    monkeypatch.setattr(task.student, "forward", spy)
    told = torch.arange(3.0).view(3, 1, 1).expand(3, *task.text.shape[1:])
    batch = Batch(torch.rand(3, 3, 64, 64), torch.rand(3, 3, 16, 16), text=told)
    task.step(batch)
    assert all(torch.equal(text, told[: len(text)]) for text, t in heard if len(t) == 3)
    fewer = [text for text, t in heard if len(t) < 3]
    assert all(set(text[:, 0, 0].tolist()) <= {0.0, 1.0, 2.0} for text in fewer)
    assert torch.equal(heard[-1][0], told)
