"""Which files make up a pipeline's folder: known without loading any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from addsr.errors import ModelError

INDEX = "model_index.json"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"


def weights_name(variant: str | None) -> str:
    """The file of a part's weights.

    >>> weights_name("fp16")
    'diffusion_pytorch_model.fp16.safetensors'
    """
    return f"diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"


def read_object(path: Path, remedy: str = "fetch the model again") -> dict[str, Any]:
    """The JSON object in `path`; `remedy` ends what is said of a file that cannot be read.

    Raises:
        ModelError: it is missing, unreadable, nested too deeply, or holds something else.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no JSON object; fetch the model again")
    return cast("dict[str, Any]", found)


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
    found = [path for path in folder.glob("*/*.safetensors") if path.name == name]
    text = folder / TEXT_ENCODER / "model.safetensors"
    return sorted([*found, text] if text.is_file() else found)


def find_files(folder: Path) -> list[Path]:
    """Everything that is read from `folder` and has a say in results."""
    words = sorted((folder / TOKENIZER).glob("*.txt"))
    return [folder / INDEX, *sorted(folder.glob("*/*.json")), *words, *find_weights(folder)]
