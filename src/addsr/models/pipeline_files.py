"""Which files make up a pipeline's folder: known without loading any of them."""

from __future__ import annotations

from pathlib import Path

INDEX = "model_index.json"


def weights_name(variant: str | None) -> str:
    """The file of a part's weights.

    >>> weights_name("fp16")
    'diffusion_pytorch_model.fp16.safetensors'
    """
    return f"diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"


def find_variant(folder: Path) -> str | None:
    """The variant whose files `folder` holds; None for the plain ones, or if there are none."""
    part = folder / "unet"
    if (part / weights_name(None)).is_file():
        return None
    found = sorted(part.glob("diffusion_pytorch_model.*.safetensors"))
    return found[0].name.split(".")[1] if found else None


def find_weights(folder: Path) -> list[Path]:
    """The weights that are loaded from `folder`: those of one variant, whatever else lies there."""
    name = weights_name(find_variant(folder))
    return sorted(path for path in folder.glob("*/*.safetensors") if path.name == name)


def find_files(folder: Path) -> list[Path]:
    """Everything that is read from `folder` and has a say in results."""
    return [folder / INDEX, *sorted(folder.glob("*/*.json")), *find_weights(folder)]
