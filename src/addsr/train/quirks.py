"""Where AddSR's released training departs from its paper or its own inference, one by one.

`docs/papers.md` gives the evidence. `Rules.released()` (`train/passes.py`) does what the code does,
for those of them that change what is learnt; the others are named so that nobody looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One departure of the released code."""

    key: str
    """Its letter in `docs/papers.md`."""
    name: str
    released: str
    """What the code does."""
    here: str
    """What this project does instead."""
    switch: str | None
    """The field that `released_quirks` sets, or None where it would change nothing that is learnt
    and only break things."""


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "a",
        "signed condition",
        "refinement passes show the ControlNet and the tagger the decoded picture in [-1, 1]",
        "in [0, 1], as the first pass, the teacher and inference do",
        "signed_condition",
    ),
    Quirk(
        "b",
        "unmixed condition",
        "refinement passes see the prediction alone (w = 1)",
        "w = 0.5 of the prediction, the rest the input, as in inference",
        "refine_weight",
    ),
    Quirk(
        "c",
        "weight of another step",
        "the adaptive weight is that of the pass before: 749, 499 and 249 are trained with 0.5, "
        "1.05 and 2.205, and 999 alone with 4.6305",
        "the weight of the step that is trained: 0.5 at 999 to 4.6305 at 249",
        "weight_of",
    ),
    Quirk(
        "d",
        "two samples",
        "losses of samples 0 and 1 are added by hand: any other batch fails or is cut short",
        "any batch; with two samples the same numbers",
        None,
    ),
    Quirk(
        "e",
        "the teacher is saved",
        "the last save holds the frozen teacher, step checkpoints mix both, and resuming fails",
        "the student and its average are saved; the teacher is read from its own folder",
        None,
    ),
    Quirk(
        "f",
        "import paths and hidden files",
        "the discriminator imports top-level names that exist in one folder alone, and reads DINO "
        "and DINOv2 from fixed places that are not documented",
        "ordinary imports; both files are given as paths, and not needed",
        None,
    ),
    Quirk(
        "g",
        "a patched scheduler",
        "formulas live in a file to be copied over one of the installed diffusers",
        "they are functions here, in float32",
        None,
    ),
    Quirk(
        "h",
        "pairs by chance",
        "pictures and tags are paired by the order in which the file system lists them, never "
        "shuffled",
        "pairs are made from one crop; orders are drawn from the seed",
        None,
    ),
    Quirk(
        "i",
        "inherited leftovers",
        "as in SeeSR prompts are dropped half of the time; a folder that nothing uses must exist",
        "the share of dropped prompts is a field; no unused folder",
        None,
    ),
    Quirk(
        "j",
        "other latents than in sampling",
        "each pass starts from the target's own noised latent and looks back one pass, whose "
        "condition is never refined itself",
        "passes are those of sampling, from the first to the one that is trained",
        "latents",
    ),
    Quirk(
        "k",
        "raw pictures for DINOv2",
        "the discriminator's condition is taken from pictures without ImageNet's normalisation",
        "normalised as DINOv2 was trained",
        "is_normalised",
    ),
)
