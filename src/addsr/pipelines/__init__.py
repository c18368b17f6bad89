"""Pipelines as diffusers' users know them: pictures in, pictures out, folders of safetensors."""

from .addsr import AddSRPipeline
from .results import PipelineOutput
from .seesr import SeeSRPipeline
from .stablesr import StableSRPipeline

__all__ = ["AddSRPipeline", "PipelineOutput", "SeeSRPipeline", "StableSRPipeline"]
