"""The [task] table of AddSR's distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checks import require, require_least, require_one_of, require_shares

if TYPE_CHECKING:
    from .passes import Rules


@dataclass(frozen=True)
class AddSRConfig:
    """SeeSR distilled to one to four steps (arXiv 2404.01717)."""

    base: str = ""
    """Folder of Stable Diffusion 2-base in diffusers' layout: its VAE and text encoder are used."""
    seesr: str = ""
    """Folder with SeeSR's unet/ and controlnet/: the frozen teacher, and what the student starts
    from."""
    tagger: str = ""
    """File of RAM, or folder of an imported extractor; without it networks get one image token of
    zeros, and prompts are empty."""
    dape: str = ""
    """File of SeeSR's update of RAM."""
    prompt_tagger: str = ""
    """File of RAM or folder of an extractor whose words for the targets are the prompts; empty:
    `tagger` without `dape`, as published."""
    prompt_dropout: float = 0.5
    """Samples whose prompt is empty; 1: all, and no text encoder is needed."""
    dino: str = ""
    """File of DINO's ViT-S/16, for the discriminator; without it the teacher's features serve."""
    dinov2: str = ""
    """File of DINOv2's ViT-S/14, for its condition; goes with `dino`."""
    released_quirks: bool = False
    """Train as the released code does, against the paper and inference (docs/papers.md)."""
    levels: int = 4
    """How many of the timesteps 999, 749, 499, 249 are trained."""
    first_share: float = 0.5
    """Samples trained at 999; the others are spread evenly over the rest."""
    refine_weight: float = 0.5
    """Share of the prediction in the condition of later steps."""
    lr_start: float = 1.0
    """Samples whose first latent is the input's, as in sampling; the target's else."""
    teacher_sees: str = "hr"
    """What the teacher is conditioned on: hr, the target, or lr, the input (as in ADD)."""
    teacher_draws: int = 4
    """Teacher answers per sample, each at a timestep of its own."""
    ta_base: float = 0.5
    ta_growth: float = 2.1
    """Timestep-adaptive weight ta_base * ta_growth**(step index); 1 makes it constant."""
    gan_weight: float = 0.02
    """0 leaves the discriminator out."""
    r1_weight: float = 0.0
    discriminator_rate: float = 2e-5
    feature_t: int = 500
    """Timesteps below which latents are noised where the teacher's features are judged."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: about a third more work, far less memory."""
    val_steps: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        require_shares(self, "first_share", "refine_weight", "lr_start", "prompt_dropout")
        require_one_of(self, "teacher_sees", "hr", "lr")
        require(1 <= self.levels <= 4, "task.levels", self.levels, "1 to 4")
        require_least(self, 1, "teacher_draws")
        require_least(self, 0, "gan_weight", "r1_weight", "discriminator_rate", "ta_base")
        require_least(self, 0, "ta_growth")
        require(1 <= self.feature_t <= 1000, "task.feature_t", self.feature_t, "1 to 1000")
        ok = bool(self.dino) == bool(self.dinov2)
        require(ok, "task.dinov2", self.dinov2, "both dino and dinov2, or neither")
        require(bool(self.tagger) or not self.dape, "task.dape", self.dape, "task.tagger with it")
        ok = bool(self.val_steps) and all(1 <= n <= 4 for n in self.val_steps)
        require(ok, "task.val_steps", self.val_steps, "numbers from 1 to 4")

    @property
    def rules(self) -> Rules:
        """What the student is trained on."""
        from .passes import Rules  # with torch, which reading a recipe does not need

        plain = Rules(self.levels, self.first_share, self.refine_weight, self.lr_start)
        return plain.released() if self.released_quirks else plain
