"""The [task] tables of SeeSR's two trainings."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import require, require_least, require_shares


@dataclass(frozen=True)
class SeeSRTaskConfig:
    """ControlNet and image attention on a frozen Stable Diffusion (arXiv 2311.16518)."""

    base: str = ""
    """Folder of Stable Diffusion 2-base in diffusers' layout."""
    seesr: str = ""
    """Folder with unet/ and controlnet/ to start from; without it both are made of the base."""
    tagger: str = ""
    """File of RAM, or folder of an imported extractor; without it networks get one image token of
    zeros, and prompts are empty."""
    dape: str = ""
    """File of the update of RAM that sees the inputs."""
    prompt_tagger: str = ""
    """File of RAM or folder of an extractor whose words for the targets are the prompts; empty:
    `tagger` without `dape`, as published."""
    prompt_dropout: float = 0.5
    """Samples whose prompt is empty; 1: all, and no text encoder is needed."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: about a third more work, far less memory."""
    latent_reuse: int = 1
    """How often what is made of a pair (latent, image tokens, prompt) is used on average, each time
    with a new draw of the latent, a new timestep and new noise; a divisor of run.batch."""
    latent_pool: int = 1024
    """Pairs that are kept where latent_reuse is above 1."""
    val_steps: int = 20
    """Sampling steps of validation pictures."""

    def __post_init__(self) -> None:
        require_shares(self, "prompt_dropout")
        require_least(self, 1, "latent_reuse", "latent_pool", "val_steps")
        require(bool(self.tagger) or not self.dape, "task.dape", self.dape, "task.tagger with it")


@dataclass(frozen=True)
class DapeConfig:
    """The degradation-aware prompt extractor: low-rank updates of RAM (arXiv 2311.16518, 3.2)."""

    tagger: str = ""
    """File of RAM, or folder of an imported extractor."""
    rank: int = 8
    alpha: float = 1.0
    """The updates are multiplied by alpha / rank."""
    embeds_weight: float = 1.0
    """Of the squared error of the image tokens."""
    tags_weight: float = 1.0
    """Of the cross entropy of the tags' probabilities."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more work, far less memory."""

    def __post_init__(self) -> None:
        require_least(self, 1, "rank")
        require_least(self, 0, "embeds_weight", "tags_weight")
        ok = self.alpha > 0
        require(ok, "task.alpha", self.alpha, "a number above 0")
        ok = self.embeds_weight > 0 or self.tags_weight > 0
        require(ok, "task.tags_weight", self.tags_weight, "one of the two weights above 0")
