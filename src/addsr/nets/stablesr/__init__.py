"""Networks of StableSR (arXiv 2305.07015), written from the paper and measured numbers.

A frozen Stable Diffusion U-Net and VAE from diffusers, and three parts of our own: the time-aware
encoder and its modulation layers in the U-Net, and feature wrapping in the VAE's decoder. Latents
are `(B, 4, H/8, W/8)`, scaled by 0.18215 everywhere but at the VAE's own border; pictures are in
[-1, 1] there. `backbones` alone imports diffusers, when a network is built.
"""

from .backbones import UnetConfig, VaeConfig, build_unet, build_vae
from .cfw import CfwConfig, FeatureWrapping, WrappedVae
from .encoder import EncoderConfig, TimeAwareEncoder
from .guided import GuidedUnet
from .sft import Guide, SftConfig, SftLayer, SftLayers

__all__ = [
    "CfwConfig",
    "EncoderConfig",
    "FeatureWrapping",
    "Guide",
    "GuidedUnet",
    "SftConfig",
    "SftLayer",
    "SftLayers",
    "TimeAwareEncoder",
    "UnetConfig",
    "VaeConfig",
    "WrappedVae",
    "build_unet",
    "build_vae",
]
