"""Low-rank updates of linear layers (LoRA, arXiv 2106.09685), as DAPE has them on RAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from addsr.errors import ConfigError

from .tagger import Ram


@dataclass(frozen=True)
class LoraConfig:
    """Size of the updates; the defaults are DAPE's."""

    rank: int = 8
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: {self.rank} is no rank; use 1 or more")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """`W x + b` with `scale * B A x` added, in some of the equal groups of output rows.

    `lora_A` is `(rank * updated groups, inputs)` and `lora_B` `(rows of the updated groups, rank)`,
    group after group. `B` starts at zero, so that a fresh update changes nothing.
    """

    index: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: Sequence[bool] = (True,),
        config: LoraConfig | None = None,
    ) -> None:
        """`groups` says which of as many groups of rows are updated: q, k and v of one matrix."""
        super().__init__(inputs, outputs)
        config = config or LoraConfig()
        if not any(groups) or outputs % len(groups):
            raise ConfigError(f"groups: {tuple(groups)} do not divide {outputs} rows, or are none")
        self.groups = tuple(groups)
        self.scale = config.scale
        count = sum(groups)
        self.lora_A = nn.Parameter(torch.empty(config.rank * count, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs // len(groups) * count, config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        chosen = torch.tensor([k for k, has in enumerate(groups) if has], device="cpu")
        self.register_buffer("index", chosen, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        plain = super().forward(input).unflatten(-1, (len(self.groups), -1))
        low = linear(input, self.lora_A).unflatten(-1, (len(self.index), -1))
        up = self.lora_B.unflatten(0, (len(self.index), -1))  # (updated groups, rows, rank)
        added = torch.einsum("...gr,gor->...go", low, up) * self.scale
        return plain.index_add(-2, self.index, added).flatten(-2)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that does the same."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        weight = self.weight + update(self.lora_A, self.lora_B, self.groups, self.scale)
        plain.weight = nn.Parameter(weight)
        plain.bias = nn.Parameter(self.bias.clone())
        return plain


def update(down: Tensor, up: Tensor, groups: Sequence[bool], scale: float) -> Tensor:
    """`scale * B A` as `(rows, inputs)`, zero in the rows of groups that are not updated."""
    count = sum(groups)
    rank = up.shape[1]
    parts = iter(up.unflatten(0, (count, -1)) @ down.unflatten(0, (count, rank)))
    rows = len(up) // count
    zero = down.new_zeros(rows, down.shape[1])
    return torch.cat([next(parts) * scale if has else zero for has in groups])


QKV = (True, False, True)
"""DAPE updates queries and values of the encoder, which keeps q, k and v in one matrix."""


def lora_layers(ram: Ram) -> dict[str, tuple[bool, ...]]:
    """The layers that DAPE updates, with the groups of rows: the encoder's qkv, the head's q and k.

    The published files hold updates of the text modules too, which nothing here uses.
    """
    found: dict[str, tuple[bool, ...]] = {}
    for name, module in ram.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last in ("qkv", "query", "key"):
            found[name] = QKV if last == "qkv" else (True,)
    return found


def add_lora(ram: Ram, config: LoraConfig | None = None) -> list[nn.Parameter]:
    """Puts fresh updates into `ram`, freezes all else, and gives the parameters to train.

    Raises:
        ConfigError: it has some already.
    """
    if any(isinstance(module, LoraLinear) for module in ram.modules()):
        raise ConfigError("ram: has low-rank updates already; merge them first with merge_lora")
    ram.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name, groups in lora_layers(ram).items():
        old = ram.get_submodule(name)
        assert isinstance(old, nn.Linear)
        with torch.device(old.weight.device):
            new = LoraLinear(old.in_features, old.out_features, groups, config)
        new.weight, new.bias = old.weight, old.bias
        new.to(old.weight.device, old.weight.dtype)
        _replace(ram, name, new)
        trained += [new.lora_A, new.lora_B]
    return trained


def merge_lora(ram: Ram) -> Ram:
    """`ram` itself, its updates added to its weights: same outputs, no cost at inference."""
    for name, module in list(ram.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(ram, name, module.merged())
    return ram


def _replace(ram: Ram, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(ram.get_submodule(parent), last, module)
