"""The prompt extractor at work on pictures: tags for the prompt, tokens for image attention."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from addsr.errors import AddsrError, ModelError, OutputError
from addsr.models.files import load_weights, save_weights
from addsr.models.pipeline_files import read_object
from addsr.models.store import write_json
from addsr.models.tags import Tag, TagList, read_tags, write_tags
from addsr.nets import tuples
from addsr.nets.limits import check_limits
from addsr.nets.ram import HeadConfig, Ram, RamConfig, SwinConfig, prepare
from addsr.nets.ram.inputs import Interpolation

from .compiled import Compiled, CompileMode

KIND = "ram"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Tagged(NamedTuple):
    """What the extractor sees in a batch of pictures."""

    embeds: Tensor
    """Image tokens `(B, 1 + n, 512)`: 145 of them at 384 px."""
    tags: list[list[Tag]]
    """Of each picture, in the order of the tag list; none is possible."""


@dataclass
class Tagger:
    """RAM or DAPE with its tag list.

    `antialias` is about pictures larger than the network's: the published scripts shrink them
    without a low-pass, which False reproduces.
    """

    net: Ram
    tags: TagList
    antialias: bool = True

    def __post_init__(self) -> None:
        if len(self.tags.tags) != self.net.config.tags:
            raise ModelError(
                f"tags: the list has {len(self.tags.tags)} and the network {self.net.config.tags}; "
                "they do not belong together"
            )
        self.net.eval()
        self._compiled = Compiled()

    @property
    def dtype(self) -> torch.dtype:
        return self.net.label_embed.dtype

    @property
    def device(self) -> torch.device:
        return self.net.label_embed.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Tagger:
        """This tagger itself, moved."""
        self.net.to(device=device, dtype=dtype)
        return self

    def embed(self, image: Tensor, interpolation: Interpolation = "bicubic") -> Tensor:
        """Image tokens `(B, 1 + n, 512)` of pictures `(B, 3, H, W)` in [0, 1].

        Bicubic is what training and the refinement between steps resize by.

        Raises:
            InputError: no batch of colour pictures.
        """
        return self._embed(self._prepare(image, interpolation))

    @torch.no_grad()
    def __call__(self, image: Tensor, interpolation: Interpolation = "bilinear") -> Tagged:
        """Tokens and tags of pictures `(B, 3, H, W)` in [0, 1], from one run of the encoder.

        Bilinear is what the published scripts resize the low-resolution picture by.

        Raises:
            InputError: no batch of colour pictures.
        """
        embeds = self._embed(self._prepare(image, interpolation))
        return Tagged(embeds, self.tags.decode(self.net.classify(embeds)))

    def compile(self, mode: CompileMode | None = "default") -> None:
        """Has the encoder compiled by torch.compile when it runs next; None: no more.

        Raises:
            OptionError: a mode that is unknown.
        """
        self._compiled = Compiled(mode)

    def _embed(self, ready: Tensor) -> Tensor:
        return self._compiled("tagger", self.net.embed, of=[self.net], has_one_shape=True)(ready)

    def _prepare(self, image: Tensor, interpolation: Interpolation) -> Tensor:
        side = self.net.config.swin.side
        # resized in the picture's own numbers: a mean of many loses digits in half precision
        ready = prepare(
            image.to(self.device), side, interpolation=interpolation, antialias=self.antialias
        )
        return ready.to(self.dtype).contiguous()  # another layout would be compiled for

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights, shape and the two lists into `folder`.

        Raises:
            OutputError: it cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error})") from error
        shape = asdict(self.net.config)
        state = self.net.state_dict()
        left = [name for name in state if name.endswith("lora_A")]
        if left:
            raise ModelError(f"net: has {len(left)} low-rank updates apart; merge_lora them first")
        write_tags(self.tags, folder)
        write_json(folder / CONFIG, {"_class_name": "Tagger", **shape})
        save_weights(folder / WEIGHTS, state, {"kind": KIND, "config": shape})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        antialias: bool = True,
    ) -> Tagger:
        """The tagger that `save_pretrained` or an import wrote, on the CPU.

        Raises:
            ModelError: files are missing, damaged, or do not fit each other.
        """
        folder = Path(folder)
        state, metadata = load_weights(folder / WEIGHTS)
        if metadata.get("kind") != KIND:
            raise ModelError(
                f"{folder / WEIGHTS}: is of kind {metadata.get('kind')!r}, not {KIND!r}; give the "
                "folder of a prompt extractor"
            )
        config = read_shape(metadata.get("config"), folder / WEIGHTS)
        tags = read_tags(folder, config.tags)
        if torch_dtype is not None:
            state = {name: tensor.to(torch_dtype) for name, tensor in state.items()}
        net = empty(config)
        fill(net, state, folder / WEIGHTS)
        return cls(net, tags, antialias)


def read_shape(stored: Any, path: Path) -> RamConfig:
    """The shape that is stored beside weights as plain values.

    Raises:
        ModelError: it is none that this version knows.
    """
    try:
        fields = dict(stored)
        for part in ("swin", "head"):
            check_limits(fields[part])
        swin, head = SwinConfig(**tuples(fields.pop("swin"))), HeadConfig(**fields.pop("head"))
        return RamConfig(swin, head, **fields)
    except (TypeError, ValueError, KeyError, AttributeError, AddsrError) as error:
        raise ModelError(f"{path}: unknown shape ({error}); update addsr") from error


def empty(config: RamConfig) -> Ram:
    """The network without memory for its numbers, to be filled."""
    with torch.device("meta"):
        return Ram(config).eval().requires_grad_(False)


def fill(net: Ram, state: dict[str, Tensor], path: Path) -> None:
    """Gives `net`, made by `empty`, its numbers.

    Raises:
        ModelError: they do not fit.
    """
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{path}: does not fit its shape ({first}); import it again") from error
    net.requires_grad_(False)


def misfits(folder: Path) -> list[str]:
    """What is wrong with a tagger's folder, one line for each; empty if nothing is."""
    try:
        Tagger.from_pretrained(folder)
        read_object(folder / CONFIG)
    except ModelError as error:
        return [str(error)]
    return []
