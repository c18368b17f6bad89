"""The text encoder of a Stable Diffusion folder, in miniature."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from addsr.errors import DependencyError, ModelError, OptionError
from addsr.pipelines import compiled
from addsr.pipelines.text import PromptEncoder

TOKENS = 6


def test_a_prompt_is_embedded_at_the_trained_length(text_base: Path) -> None:
    embed = PromptEncoder.from_pretrained(text_base, local_files_only=True)
    got = embed("a b")
    assert got.shape == (1, TOKENS, 16)
    ids = torch.tensor([[3, 1, 2, 4, 0, 0]])
    with torch.no_grad():
        assert torch.equal(got, embed.encoder(ids)[0])
    assert not torch.equal(got, embed("b a"))
    assert not got.requires_grad
    half = PromptEncoder.from_pretrained(
        text_base, torch_dtype=torch.bfloat16, local_files_only=True
    )
    assert half("").dtype == torch.bfloat16


def test_compiled_it_gives_the_same_without_compiling_for_every_prompt(
    text_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = PromptEncoder.from_pretrained(text_base, local_files_only=True)
    prompts = ("a b", "", "a a b a")
    wanted = [embed(prompt) for prompt in prompts]
    make, shapes = torch.compile, list[tuple[int, ...]]()

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        shapes.append(tuple(inputs[-1].shape))
        return graph.forward

    monkeypatch.setattr(
        compiled.torch, "compile", lambda f, *, dynamic, fullgraph, **_: make(
            f, backend=count, dynamic=dynamic, fullgraph=fullgraph
        )
    )  # fmt: skip
    embed.compile()
    for prompt, one in zip(prompts, wanted, strict=True):
        torch.testing.assert_close(embed(prompt), one)
    torch.compiler.reset()
    assert len(shapes) == 1
    embed.compile(None)
    assert torch.equal(embed("a b"), wanted[0])
    with pytest.raises(OptionError, match="mode: 'fast' is unknown"):
        embed.compile("fast")  # type: ignore[arg-type]


def test_words_that_are_cut_off_are_named(
    text_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed = PromptEncoder.from_pretrained(text_base, local_files_only=True)
    with caplog.at_level(logging.WARNING, logger="addsr.pipelines.text"):
        fits = embed("a a a b")
        assert not caplog.records
        assert torch.equal(embed("a a a b a b"), fits)
    (record,) = caplog.records
    assert record.message == "prompt: 8 tokens are too many; cut off: a b"


def test_it_tells_whether_a_prompt_fits(text_base: Path) -> None:
    embed = PromptEncoder.from_pretrained(text_base, local_files_only=True)
    assert embed.fits("a a a b")
    assert not embed.fits("a a a b a")


def test_folders_without_one_are_refused(text_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"base: tokenizer of .* cannot be loaded"):
        PromptEncoder.from_pretrained(tmp_path / "missing", local_files_only=True)
    (tmp_path / "tokenizer").symlink_to(text_base / "tokenizer")
    with pytest.raises(ModelError, match=r"base: text_encoder of .* cannot be loaded"):
        PromptEncoder.from_pretrained(tmp_path, local_files_only=True)


def test_a_vocabulary_of_another_size_is_refused(text_base: Path) -> None:
    embed = PromptEncoder.from_pretrained(text_base, local_files_only=True)
    embed.tokenizer.add_tokens(["c"])
    with pytest.raises(ModelError, match="has 6 words and the text encoder 5"):
        PromptEncoder(embed.tokenizer, embed.encoder)


def test_a_missing_transformers_is_named_with_its_remedy(
    text_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        DependencyError, match=r"pip install transformers, or .*'addsr\[diffusion\]'"
    ):
        PromptEncoder.from_pretrained(text_base)
