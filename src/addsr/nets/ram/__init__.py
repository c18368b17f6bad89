"""The prompt extractor: RAM (arXiv 2306.03514), and SeeSR's DAPE (arXiv 2311.16518), a LoRA on it.

A Swin transformer sees the picture; its tokens are the image tokens that steer SeeSR and AddSR, and
a tag head says from them which of 4,585 words fit. Pictures come in at the trained side, normalised
as `prepare` does it. Only what is used at inference is here: the published files' text modules,
more than half of their numbers, have no part in either output.

The layers are our own on purpose. transformers' Swin has other names for its tensors in each major
version and no room for an update of q and v in one matrix; its BERT layer takes no keys of another
width than the queries, and has a self-attention that the published head deletes.
"""

from .head import HeadConfig, TagHead
from .inputs import prepare
from .lora import LoraConfig, LoraLinear, add_lora, merge_lora
from .swin import Swin, SwinConfig
from .tagger import Ram, RamConfig, RamOutput

__all__ = [
    "HeadConfig",
    "LoraConfig",
    "LoraLinear",
    "Ram",
    "RamConfig",
    "RamOutput",
    "Swin",
    "SwinConfig",
    "TagHead",
    "add_lora",
    "merge_lora",
    "prepare",
]
