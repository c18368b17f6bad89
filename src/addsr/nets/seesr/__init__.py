"""Networks of SeeSR (arXiv 2311.16518), which AddSR (arXiv 2404.01717) keeps as they are.

Stable Diffusion's U-Net and its ControlNet from diffusers, where each text transformer is followed
by a second one that attends to tokens of the image tagger. State dicts have the published names.
Latents are `(B, 4, H/8, W/8)`, scaled by 0.18215; the ControlNet's picture is in [0, 1]. diffusers
is imported when a network is built.
"""

from .backbones import SeeSRConfig, build_controlnet, build_unet
from .condition import ConditionEncoder, encode_in_strips
from .controlled import ControlledUnet
from .image_attention import add_image_attentions, image_attentions_of

__all__ = [
    "ConditionEncoder",
    "ControlledUnet",
    "SeeSRConfig",
    "add_image_attentions",
    "build_controlnet",
    "build_unet",
    "encode_in_strips",
    "image_attentions_of",
]
