"""What a call did: for whoever called, for JSON and for the result's metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What the last call did."""

    source: str
    output: str | None
    input_size: tuple[int, int]
    """Width and height."""
    output_size: tuple[int, int]
    model: str
    licence: str
    """Of the model; some forbid commercial use."""
    steps: int
    fidelity: float
    color: str
    seed: int
    device: str
    dtype: str
    tile: int
    """Side in input pixels for compact, in pixels of the result for StableSR."""
    tiles: int
    """Of the first picture, all passes."""
    expected_bytes: int
    seconds: float
    scale: float
    """By which this picture was enlarged."""
    target: str | None = None
    """The size or part that was asked for, where it was no factor."""
    weights: str | None = None
    """sha256 of the model's weights; None where none is on record."""
    prompt: str = ""
    negative_prompt: str | None = None
    tags: tuple[str, ...] | None = None
    """What a prompt extractor saw in the last picture; None: there is none."""
    refine_decoder: str = "full"

    def account(self) -> dict[str, str]:
        """What a result's XMP says about its making: all that it takes to repeat it."""
        from . import __version__

        told = {
            "Version": __version__, "Model": self.model, "Weights": self.weights or "not recorded",
            "Scale": f"{self.scale:.10g}", "Steps": str(self.steps),
            "Fidelity": f"{self.fidelity:g}", "Color": self.color, "Seed": str(self.seed),
            "Tile": str(self.tile), "Device": self.device, "DType": self.dtype,
        }  # fmt: skip
        more = {
            "Target": self.target,
            "Prompt": self.prompt or None,
            "NegativePrompt": self.negative_prompt,
            "Tags": None if self.tags is None else ", ".join(self.tags),
            "RefineDecoder": None if self.refine_decoder == "full" else self.refine_decoder,
        }
        return told | {name: value for name, value in more.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
