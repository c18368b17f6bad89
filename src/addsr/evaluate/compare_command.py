"""`addsr compare` as the command line calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from addsr.terminal import USUAL_TALK, Talk, say


def compare(
    pictures: Annotated[list[Path], Parameter(name="IMAGE", negative="")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("compare.html"),
    titles: Annotated[
        tuple[str, ...],
        Parameter(name="--title", negative="", consume_multiple=False, show_default=False),
    ] = (),
    talk: Talk = USUAL_TALK,
) -> int:
    """Put pictures of the same scene under one slider, as a page of one file.

    The page needs no network and no other file; zoom and place are the same for all pictures.

    Parameters
    ----------
    pictures
        2 to 8 picture files of the same scene, of any sizes.
    output
        The page.
    titles
        Name of a picture on the page; once for each, in their order. [default: the files' names]
    """
    talk.set_up()
    from .compare import write_compare_page

    done = write_compare_page(pictures, output, titles=titles or None)
    if not talk.quiet:
        say(f"{output} ({done.size_bytes / 1e6:.1f} MB, {done.packing})")
    return 0
