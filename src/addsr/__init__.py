"""addsr: photos four times larger, by few-step diffusion.

>>> import addsr
>>> addsr.upscale("in.jpg", "out.png")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipelines import StableSRPipeline
    from .restorers import load_model
    from .target import Target
    from .upscaler import Upscaler, upscale

    __version__: str

__all__ = ["StableSRPipeline", "Target", "Upscaler", "__version__", "load_model", "upscale"]

# name -> module; loaded on first use, because torch takes seconds to import
_LAZY = {
    "StableSRPipeline": ".pipelines",
    "Target": ".target",
    "Upscaler": ".upscaler",
    "upscale": ".upscaler",
    "load_model": ".restorers",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("addsr")
        except PackageNotFoundError:
            return "0+uninstalled"
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
