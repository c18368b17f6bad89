"""The words a tagger knows, and from which score on each of them is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from addsr.errors import ModelError, OutputError

log = logging.getLogger("addsr")

TAGS = "ram_tag_list.txt"
THRESHOLDS = "ram_tag_list_threshold.txt"
FALLBACK_THRESHOLD = 0.68
"""For all tags, where there is no list of thresholds."""
QUALITY = "clean, high-resolution, 8k, extremely detailed, best quality, sharp"
"""What AddSR's script adds to every prompt."""


@dataclass(frozen=True)
class Tag:
    """A word that fits a picture."""

    name: str
    score: float
    """Probability, above the word's threshold."""


@dataclass(frozen=True)
class TagList:
    """Words with their thresholds, in the order of the network's logits."""

    tags: tuple[str, ...]
    thresholds: tuple[float, ...]
    left_out: frozenset[int] = frozenset()
    """Places of words that are never said."""

    def __post_init__(self) -> None:
        if len(self.tags) != len(self.thresholds):
            raise ModelError(
                f"thresholds: {len(self.thresholds)} for {len(self.tags)} tags; give one a tag"
            )
        wrong = [one for one in self.thresholds if not 0 <= one <= 1]
        if wrong:
            raise ModelError(f"thresholds: {wrong[0]} is no probability; give numbers from 0 to 1")
        if any(not 0 <= k < len(self.tags) for k in self.left_out):
            raise ModelError(f"left_out: {sorted(self.left_out)} is not within {len(self.tags)}")

    def targets(self, logits: Tensor) -> Tensor:
        """Which tags are said, bool `(B, tags)`: those whose probability is above the threshold.

        Raises:
            ModelError: logits of another number of tags.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.tags):
            raise ModelError(
                f"logits: {tuple(logits.shape)} for {len(self.tags)} tags; the tag list belongs "
                "to another network"
            )
        said = logits.float().sigmoid() > torch.tensor(self.thresholds, device=logits.device)
        if self.left_out:
            said[:, sorted(self.left_out)] = False
        return said

    def decode(self, logits: Tensor) -> list[list[Tag]]:
        """The tags of each picture, in the order of the list, from logits `(B, tags)`."""
        said = self.targets(logits).cpu()
        scores = logits.float().sigmoid().cpu()
        return [
            [Tag(self.tags[k], float(row[k])) for k in chosen.nonzero().flatten().tolist()]
            for row, chosen in zip(scores, said, strict=True)
        ]

    @staticmethod
    def join(tags: Sequence[Tag]) -> str:
        """`tags` as the published prompt has them."""
        return ", ".join(tag.name for tag in tags)


def build_prompt(
    tags: Sequence[Tag],
    prompt: str = "",
    quality: str = QUALITY,
    *,
    fits: Callable[[str], bool] | None = None,
    released_quirks: bool = False,
) -> str:
    """The text for the text encoder: tags, the user's words, words of quality; any may be empty.

    The published script joins them with commas even where nothing is between, and lets the text
    encoder cut the end off, which holds the words of quality. Here `fits` is asked whether a text
    is short enough, and the tag with the lowest score is left out until it is.

    Args:
        released_quirks: the text of the published script, stray commas included; `fits` is unused.
    """
    if released_quirks:
        return f"{TagList.join(tags)}, {prompt},{quality}"
    kept = list(tags)
    while True:
        parts = (TagList.join(kept), prompt.strip(" ,"), quality.strip(" ,"))
        text = ", ".join(part for part in parts if part)
        if fits is None or not kept or fits(text):
            return text
        kept.remove(min(kept, key=lambda tag: tag.score))


def read_tags(folder: Path, count: int | None = None) -> TagList:
    """The lists `ram_tag_list.txt` and `ram_tag_list_threshold.txt` of `folder`, a line a tag.

    Args:
        count: how many tags the network has.

    Raises:
        ModelError: the list of tags is missing, or has another length; or a threshold is none.
    """
    path = folder / TAGS
    tags = _lines(path)
    if tags is None:
        raise ModelError(
            f"{path}: no list of tags there; it comes with the code of RAM and SeeSR "
            "(ram/data/ram_tag_list.txt), put it beside the weights"
        )
    if count is not None and len(tags) != count:
        raise ModelError(f"{path}: has {len(tags)} tags and the network {count}; fetch it again")
    path = folder / THRESHOLDS
    lines = _lines(path)
    if lines is None:
        log.warning("%s: is missing; %s is the threshold of all tags", path, FALLBACK_THRESHOLD)
        return TagList(tuple(tags), (FALLBACK_THRESHOLD,) * len(tags))
    try:
        return TagList(tuple(tags), tuple(float(line) for line in lines))
    except (ValueError, ModelError) as error:
        raise ModelError(f"{path}: {error}; fetch it again") from error


def write_tags(tags: TagList, folder: Path) -> None:
    """Writes the two lists into `folder`.

    Raises:
        OutputError: it cannot be written.
    """
    thresholds = [repr(one) for one in tags.thresholds]
    for name, lines in ((TAGS, tags.tags), (THRESHOLDS, thresholds)):
        try:
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{folder / name}: cannot be written ({error})") from error


def _lines(path: Path) -> list[str] | None:
    """The lines of a list, the empty ones at the end left out; None if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch it again") from error
    return [line.strip() for line in text.rstrip().splitlines()]
