"""DAPE, SeeSR's prompt extractor (arXiv 2311.16518, section 3.2): RAM taught to see through damage.

A copy of RAM with low-rank updates looks at the degraded picture and has to find what the frozen
RAM finds in the clean one: the same image tokens (squared error), and the same probabilities of
tags (cross entropy against the frozen network's, not against its yes and no), 1 to 1.

The published updates lie in the tag encoder too, which shares matrices with the tag head: here
those of encoder and head are all there are, and the importer reads the file all the same.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from addsr.models.tags import FALLBACK_THRESHOLD
from addsr.nets.ram import LoraConfig, LoraLinear, Ram, add_lora, prepare
from addsr.nets.ram.tagger import RamOutput

from .checks import refuse_compile, require
from .config import Recipe
from .flops import counted
from .seesr_config import DapeConfig
from .stablesr import enlarge
from .tagging import load_ram
from .task import Batch, Task


class LoraUpdates(nn.Module):
    """The low-rank updates in a network, held together; they stay parts of that network.

    In state dicts the dots of a layer's name are slashes.
    """

    def __init__(self, ram: Ram, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        for name, module in ram.named_modules():
            if isinstance(module, LoraLinear):
                for part in ("lora_A", "lora_B"):
                    self.register_parameter(
                        f"{name}.{part}".replace(".", "/"), getattr(module, part)
                    )


class Agreement(NamedTuple):
    """How far what is seen of inputs is from what is seen of their targets; scalars."""

    embeds: Tensor
    """Mean squared error of the image tokens."""
    tags: Tensor
    """Mean cross entropy of the tags' probabilities, in nats."""


def agreement(seen: RamOutput, wanted: RamOutput) -> Agreement:
    """The two losses of `seen` against `wanted`, float32; `wanted` gets no gradient."""
    embeds = F.mse_loss(seen.embeds.float(), wanted.embeds.detach().float())
    targets = wanted.logits.detach().float().sigmoid()
    return Agreement(embeds, F.binary_cross_entropy_with_logits(seen.logits.float(), targets))


class DapeTask(Task):
    """The low-rank updates of a prompt extractor."""

    name = "dape"
    licence = "that of RAM's weights and of the training pictures"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        refuse_compile(recipe.run.compile, self.name)
        require(not recipe.net, "net", recipe.net, "none: the network is that of task.tagger")
        c = self.config = recipe.task
        assert isinstance(c, DapeConfig)
        require(bool(c.tagger), "task.tagger", c.tagger, "RAM's file, ram_swin_large_14m.pth")
        self.dtype = torch.bfloat16 if recipe.run.precision == "bf16" else torch.float32
        self.teacher = load_ram(c.tagger).to(device)
        # all numbers but the updates are the same tensors in both
        frozen = {id(x): x for x in (*self.teacher.parameters(), *self.teacher.buffers())}
        self.student: Ram = copy.deepcopy(self.teacher, dict[int, Any](frozen))
        config = LoraConfig(c.rank, c.alpha)
        add_lora(self.student, config)
        self.track("dape", LoraUpdates(self.student, config), recipe.optim)
        for net in (self.teacher, self.student):
            net.to(self.dtype)
        if c.checkpointing:
            for stage in self.student.swin.stages:
                for block in stage:  # type: ignore[attr-defined]
                    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.side = self.teacher.config.swin.side
        self._flops = 0.0

    def step(self, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        with torch.no_grad():
            wanted = self.teacher(self._prepared(batch.hr))
        found = agreement(self.student(self._prepared(enlarge(batch))), wanted)
        loss = c.embeds_weight * found.embeds + c.tags_weight * found.tags
        loss.backward()
        return {
            "loss": loss.detach(),
            "embeds": found.embeds.detach(),
            "tags": found.tags.detach(),
            "grad": self.trained["dape"].step(),
        }

    def _prepared(self, picture: Tensor) -> Tensor:
        return prepare(picture, self.side, interpolation="bicubic").to(self.dtype)

    @torch.no_grad()
    def validate(self, pairs: list[Batch]) -> tuple[dict[str, float], Tensor | None]:
        """Losses, and the F1 score of tags of inputs against those of targets; all of them for the
        frozen RAM too (`ram_...`), which is what is to be surpassed. There is no picture."""
        sums: dict[str, float] = {}
        with self.trained["dape"].averaged():
            for pair in pairs:
                pair = Batch(pair.hr.to(self.device), pair.lr.to(self.device))
                wanted: RamOutput = self.teacher(self._prepared(pair.hr))
                low = self._prepared(enlarge(pair))
                for prefix, net in (("", self.student), ("ram_", self.teacher)):
                    seen: RamOutput = net(low)
                    found = agreement(seen, wanted)
                    figures = {
                        "embeds": float(found.embeds),
                        "tags": float(found.tags),
                        "f1": f1_score(seen.logits, wanted.logits),
                    }
                    for key, value in figures.items():
                        sums[prefix + key] = sums.get(prefix + key, 0.0) + value / len(pairs)
        return sums, None

    def flops_per_sample(self) -> float:
        """Useful work: what checkpointing repeats is not counted."""
        if not self._flops:
            ram = Ram(self.teacher.config).to("meta")  # its tables too
            one = counted(ram, torch.empty(1, 3, self.side, self.side, device="meta"))
            # both look, and the gradient goes back through all of the frozen layers
            self._flops = 3 * one
        return self._flops


def f1_score(logits: Tensor, wanted: Tensor, threshold: float = FALLBACK_THRESHOLD) -> float:
    """Of the tags that are said by `logits` against those by `wanted`; 1 where neither says any."""
    said, right = (x.float().sigmoid() > threshold for x in (logits, wanted))
    total = int(said.sum() + right.sum())
    return 2 * int((said & right).sum()) / total if total else 1.0
