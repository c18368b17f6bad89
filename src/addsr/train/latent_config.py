"""The [task] tables of the two trainings in Stable Diffusion's latent space."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import require_least, require_one_of, require_shares


@dataclass(frozen=True)
class StableSRConfig:
    """Time-aware encoder and modulation layers on a frozen diffusion model (arXiv 2305.07015)."""

    base: str = ""
    """Folder of the frozen Stable Diffusion in diffusers' layout, or of a StableSR pipeline."""
    prediction: str = "eps"
    """What the base predicts: eps (2.1-base), or v (2.1 of 768 px)."""
    clean_share: float = 0.01
    """Samples whose input is the target itself."""
    lr_dropout: float = 0.0
    """Samples whose input latent is zeros, so that the input's strength can be guided later."""
    sft_init: str = "published"
    """published: PyTorch's own initialisation, whose normalisations disturb the frozen model at
    first. identity: gamma and beta start at 0 and the normalisations undo themselves on average."""
    checkpointing: bool = True
    """Recompute activations in the backward pass: about a third more work, far less memory."""
    latent_reuse: int = 1
    """How often the latents of a pair are used on average, each time with a new draw from their
    distributions, a new timestep and new noise; a divisor of run.batch."""
    latent_pool: int = 1024
    """Pairs whose latents are kept where latent_reuse is above 1."""
    val_steps: int = 20
    """Sampling steps of validation pictures."""

    def __post_init__(self) -> None:
        require_one_of(self, "prediction", "eps", "v")
        require_one_of(self, "sft_init", "published", "identity")
        require_shares(self, "clean_share", "lr_dropout")
        require_least(self, 1, "latent_reuse", "latent_pool", "val_steps")


@dataclass(frozen=True)
class CfwTaskConfig:
    """Feature wrapping of the VAE's decoder, on latents that the trained model has sampled."""

    model: str = ""
    """Folder of the StableSR pipeline: its VAE is wrapped, and it samples the latents."""
    samples: str = ""
    """Folder of the sampled latents and their pictures."""
    sample_count: int = 100_000
    sample_steps: int = 200
    sample_batch: int = 16
    """Latents that are sampled together."""
    shard: int = 64
    """Samples in a file."""
    held_out: int = 8
    """Samples at the start of the first file that validate and are never trained on."""
    perceptual_weight: float = 1.0
    lpips: str = ""
    """Weights file of LPIPS with VGG16; without it the features of `teacher` are compared."""
    lpips_heads: str = ""
    """The linear heads, where they are a file of their own."""
    teacher: str = ""
    """Weights file of a compact teacher; empty: the embedded compact model."""
    teacher_t: float = 0.1
    """Noise level at which the teacher looks at the pictures."""
    adversarial: str = "fixed"
    """fixed: the weight is `adversarial_weight`, as published. adaptive: it is multiplied by the
    ratio of the gradients of reconstruction and discriminator at the last trained layer."""
    adversarial_weight: float = 0.025
    adversarial_start: int = 501
    """Optimiser step from which the discriminator learns and is opposed."""
    discriminator_width: int = 64
    discriminator_layers: int = 3
    checkpointing: bool = False

    def __post_init__(self) -> None:
        require_one_of(self, "adversarial", "fixed", "adaptive")
        require_least(self, 1, "sample_count", "sample_steps", "sample_batch")
        require_least(self, 1, "shard", "held_out")
        require_least(self, 1, "discriminator_width", "discriminator_layers")
        require_least(self, 0, "perceptual_weight", "adversarial_weight", "adversarial_start")
        require_shares(self, "teacher_t")
