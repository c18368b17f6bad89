"""Tags of the training pictures as prompts, as SeeSR and AddSR are trained.

Each picture is tagged once, before it is first used, by the extractor as it sees the undegraded
one; the words are kept in `run.output/prompts`, so that a resumed run reads them. Of several
processes each tags its own pictures. The extractor is let go then; the text encoder stays, for a
prompt's embedding takes 150 kB, and those last used are kept in main memory.

The released scripts tag each crop of 512 pixels, which they have as files; here it is the square of
up to 640 pixels that crops are cut from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from addsr.data.pool import PairPool
from addsr.errors import ModelError
from addsr.models.store import write_json
from addsr.nets.ram import prepare
from addsr.pipelines.prompts import join_words
from addsr.pipelines.text import PromptEncoder

from .config import Recipe
from .optim import process_rank
from .sources import RotatingPool
from .tagging import load_ram, load_tags, stamp
from .task import Batch

log = logging.getLogger(__name__)

_TOGETHER = 16
"""Pictures that are tagged together."""
_KEPT = 4096
"""Embeddings in main memory."""


class Prompter:
    """Words of pictures from a cache, else from the extractor; embeddings of words."""

    def __init__(
        self, tagger: str, base: Path, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> None:
        """
        Args:
            tagger: file of RAM, or an extractor's folder.
            base: has `text_encoder` and `tokenizer`.
            folder: of the cache.

        Raises:
            ModelError: `base` has no text encoder, or there is no extractor.
            DependencyError: transformers is not installed.
        """
        self.tagger, self.folder, self.device, self.dtype = tagger, folder, device, dtype
        self.stamp = stamp(tagger)
        try:
            self.encoder = PromptEncoder.from_pretrained(
                base, torch_dtype=dtype, local_files_only=True
            )
        except ModelError as error:
            raise ModelError(f"{error}, or task.prompt_dropout = 1 for empty prompts") from error
        self.encoder.encoder.to(device)
        self.words = self._read()
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()

    def learn(self, pool: PairPool) -> list[str]:
        """The words of every picture of `pool`, in their order.

        Raises:
            ModelError: the extractor's files are missing, damaged, or do not fit each other.
            OutputError: the cache cannot be written.
        """
        names = [_digest(pool.picture(n)) for n in range(pool.pictures)]
        new = {name: n for n, name in enumerate(names) if name not in self.words}
        if new:
            log.info("tagging %d pictures with %s", len(new), self.tagger)
            self.words |= self._tag(pool, new)
            self._write()
        return [self.words[name] for name in names]

    def embed(self, words: str) -> Tensor:
        """The embedding `(1, tokens, width)` of a prompt, on the device."""
        if words in self._embeddings:
            self._embeddings.move_to_end(words)
            return self._embeddings[words].to(self.device)
        found = self.encoder(words).to(self.dtype)
        self._embeddings[words] = found.cpu()
        if len(self._embeddings) > _KEPT:
            self._embeddings.popitem(last=False)
        return found

    def _tag(self, pool: PairPool, new: dict[str, int]) -> dict[str, str]:
        ram = load_ram(self.tagger)
        tags, side = load_tags(self.tagger, ram.config.tags), ram.config.swin.side
        ram.to(self.device)  # in float32: a score is compared with a threshold
        words: dict[str, str] = {}
        names = list(new)
        for start in range(0, len(names), _TOGETHER):
            few = names[start : start + _TOGETHER]
            squares = [pool.picture(new[name])[None].float() / 255 for name in few]
            seen = torch.cat([prepare(x, side, interpolation="bicubic") for x in squares])
            with torch.no_grad():
                found = tags.decode(ram(seen).logits)
            for name, said in zip(few, found, strict=True):
                words[name] = join_words(self.encoder, [tag.name for tag in said], "", "")
            if start // _TOGETHER % 64 == 63:
                log.info("tagged %d of %d pictures", start + len(few), len(names))
        return words

    def _read(self) -> dict[str, str]:
        words: dict[str, str] = {}
        for path in sorted(self.folder.glob("tags-*.json")):
            try:
                found: Any = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                log.warning("%s: cannot be read; its pictures are tagged again", path)
                continue
            if isinstance(found, dict) and found.get("tagger") == self.stamp:
                words |= cast("dict[str, str]", found["words"])
        return words

    def _write(self) -> None:
        known = {"tagger": self.stamp, "words": self.words}
        write_json(self.folder / f"tags-{process_rank()}.json", known)


class PromptedSource:
    """A pool whose pairs come with the embedding of their picture's words."""

    def __init__(self, pool: PairPool | RotatingPool, prompter: Prompter) -> None:
        self.source, self.prompter = pool, prompter
        self._pool: PairPool | None = None
        self._words: list[str] = []

    def get(self, batch: int) -> Batch:
        """`batch` pairs with `Batch.text`."""
        hr, lr, numbers = self.source.get_numbered(batch)
        pool = self.source.pool if isinstance(self.source, RotatingPool) else self.source
        if pool is not self._pool:
            self._words, self._pool = self.prompter.learn(pool), pool
        text = torch.cat([self.prompter.embed(self._words[n]) for n in numbers])
        return Batch(hr, lr, text=text)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)

    def close(self) -> None:
        self.source.close()


def with_prompts(
    pool: PairPool | RotatingPool, recipe: Recipe, device: torch.device
) -> PairPool | RotatingPool | PromptedSource:
    """`pool` with prompts, where the recipe of `addsr` or `seesr` has a tagger and uses its words.

    Raises:
        ModelError: the base has no text encoder, or there is no extractor.
        DependencyError: transformers is not installed.
    """
    task = recipe.task
    tagger = str(task.prompt_tagger or task.tagger)
    if not tagger or task.prompt_dropout >= 1:
        why = "task.prompt_dropout is 1" if tagger else "there is no task.tagger"
        log.warning("%s: all prompts are empty", why)
        return pool
    dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
    folder = Path(recipe.run.output) / "prompts"
    return PromptedSource(pool, Prompter(tagger, Path(task.base), folder, dtype, device))


def dropped(text: Tensor | None, empty: Tensor, chances: Tensor, share: float) -> Tensor:
    """Prompts `(B, tokens, width)` of which about `share` are the empty one; all without `text`.

    Args:
        empty: embedding of the empty prompt, `(1, tokens, width)`.
        chances: uniform numbers `(B,)`.
    """
    every = empty.expand(len(chances), -1, -1)
    if text is None:
        return every
    is_kept = (chances >= share).view(-1, 1, 1)
    return torch.where(is_kept, text.to(empty.dtype), every)


def _digest(picture: Tensor) -> str:
    return hashlib.sha256(picture.cpu().contiguous().numpy().tobytes()).hexdigest()
