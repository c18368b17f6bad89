"""The text encoder of a Stable Diffusion folder: a prompt in, its embedding out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from addsr.engines.device import send
from addsr.errors import DependencyError, ModelError, OutputError
from addsr.models.pipeline_files import TEXT_ENCODER, TOKENIZER

from .compiled import Compiled, CompileMode

log = logging.getLogger(__name__)


class PromptEncoder:
    """Tokenizer and CLIP text encoder; called with a prompt it gives `(1, tokens, width)`."""

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        """Both as transformers has them.

        Raises:
            ModelError: the tokenizer's vocabulary is not the encoder's.
        """
        network: Any = encoder.eval().requires_grad_(False)
        if len(tokenizer) != network.config.vocab_size:
            # transformers makes a tokenizer of no words where the files are missing
            raise ModelError(
                f"tokenizer: has {len(tokenizer)} words and the text encoder "
                f"{network.config.vocab_size}; fetch the base again"
            )
        self.tokenizer, self.encoder = tokenizer, network
        self._compiled = Compiled()

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        local_files_only: bool = False,
    ) -> PromptEncoder:
        """That of a folder or repository with `text_encoder` and `tokenizer`.

        Raises:
            ModelError: one of them is missing or cannot be read.
            DependencyError: transformers is not installed.
        """
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError as error:
            raise DependencyError(
                f"prompts need transformers ({error}): pip install transformers, or pip install "
                "'addsr[diffusion]'"
            ) from error
        tokenizer = _part(CLIPTokenizer, base, "tokenizer", local_files_only)
        encoder = _part(CLIPTextModel, base, "text_encoder", local_files_only)
        try:
            return cls(tokenizer, encoder.to(torch_dtype or torch.float32))
        except ModelError as error:
            raise ModelError(f"base: tokenizer of {str(base)!r} does not fit ({error})") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `text_encoder` and `tokenizer` into `folder`, as Stable Diffusion has them.

        Raises:
            OutputError: they cannot be written.
        """
        folder = Path(folder)
        try:
            with _without_bars():
                self.tokenizer.save_pretrained(folder / TOKENIZER)
                self.encoder.save_pretrained(folder / TEXT_ENCODER)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error})") from error

    def to(self, *where: str | torch.device | torch.dtype) -> PromptEncoder:
        """This encoder itself, moved to a device, a dtype, or both."""
        for one in where:
            self.encoder.to(one)
        return self

    @property
    def tokens(self) -> int:
        """The length of every embedding: what the encoder was trained with."""
        return int(self.encoder.config.max_position_embeddings)

    def fits(self, prompt: str) -> bool:
        """Whether all of `prompt` is heard."""
        return len(self._whole(prompt)) <= self.tokens

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        """The embedding `(1, tokens, width)`; shorter prompts are padded.

        Words beyond that length are cut off, with a warning in the log.
        """
        whole = self._whole(prompt)
        if len(whole) > self.tokens:
            lost = self.tokenizer.decode(whole[self.tokens - 1 : -1])
            log.warning("prompt: %d tokens are too many; cut off: %s", len(whole), lost)
        cut = self.tokenizer(
            prompt, padding="max_length", max_length=self.tokens, truncation=True
        ).input_ids
        ids = send(torch.tensor([cut]), self.encoder.device)
        return self._compiled(
            "text", self._embed, of=[self.encoder], has_one_shape=True, has_breaks=True
        )(ids)

    def compile(self, mode: CompileMode | None = "default") -> None:
        """Has the encoder compiled by torch.compile when it runs next; None: no more.

        Raises:
            OptionError: a mode that is unknown.
        """
        self._compiled = Compiled(mode)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.encoder(ids)[0]

    def _whole(self, prompt: str) -> list[int]:
        return self.tokenizer(prompt, truncation=False, verbose=False).input_ids


@contextlib.contextmanager
def _without_bars() -> Generator[None]:
    """transformers shows a bar even for what takes no time, in whoever's terminal it is."""
    from transformers.utils import logging as bars

    was_shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            bars.enable_progress_bar()


def _part(kind: Any, base: str | Path, part: str, local_files_only: bool) -> Any:
    # safetensors alone: a pickle is not read
    only = {} if part == "tokenizer" else {"use_safetensors": True}
    try:
        with _without_bars():
            return kind.from_pretrained(
                base, subfolder=part, local_files_only=local_files_only, **only
            )
    except Exception as error:  # no such folder, no network, files missing or damaged
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"base: {part} of {str(base)!r} cannot be loaded ({reason}); give a Stable Diffusion 2 "
            "in diffusers' layout"
        ) from error
