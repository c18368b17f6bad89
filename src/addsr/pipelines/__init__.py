"""Pipelines as diffusers' users know them: pictures in, pictures out, folders of safetensors."""

from .stablesr import StableSROutput, StableSRPipeline

__all__ = ["StableSROutput", "StableSRPipeline"]
