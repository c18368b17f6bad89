"""Pipelines as diffusers' users know them: pictures in, pictures out, folders of safetensors."""

from .addsr import AddSRPipeline, SeeSRPipeline
from .stablesr import StableSROutput, StableSRPipeline

__all__ = ["AddSRPipeline", "SeeSRPipeline", "StableSROutput", "StableSRPipeline"]
