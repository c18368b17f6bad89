"""Makes src/addsr/metrics/data/niqe_addsr.npz, the pristine model behind `niqe-addsr`.

    python benchmarks/fit_niqe.py SHARD_OR_FOLDER... [-o FILE]

SHARD_OR_FOLDER are `.tar` shards, folders or pictures of clean photos; they are read one after the
other, so that memory holds one at a time. The result depends on the pictures and their order alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from addsr.data.shards import load_pictures
from addsr.metrics.niqe import BLOCK, OWN_PARAMS, SHARP, fit_niqe, save_niqe_params


def clean_photos(sources: Sequence[Path], counts: list[int]) -> Iterator[Tensor]:
    """The pictures of `sources` as `(1, 3, H, W)` in [0, 1]; adds their number to `counts`."""
    for source in sources:
        for stack in load_pictures(source, smallest=2 * BLOCK):
            counts.append(len(stack))
            for picture in stack:
                yield picture[None].float() / 255


def digest(sources: Sequence[Path]) -> str:
    """sha256 over the bytes of the files, in the order that they are read."""
    total = hashlib.sha256()
    for source in sources:
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                with file.open("rb") as content:
                    while block := content.read(1 << 20):
                        total.update(block)
    return total.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SHARD_OR_FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=OWN_PARAMS)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # sums of many threads would differ in their last digits
    counts: list[int] = []
    params = fit_niqe(clean_photos(options.sources, counts))
    provenance = (
        f"addsr, fitted by benchmarks/fit_niqe.py on {sum(counts)} crops of freely licensed photos "
        f"({', '.join(source.name for source in options.sources)}; sha256 of the files one after "
        f"the other {digest(options.sources)}); luma of BT.601 in 16..235 rounded to integers, "
        f"blocks of {BLOCK}x{BLOCK} over {SHARP} of the sharpest; Apache-2.0"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_niqe_params(options.output, dataclasses.replace(params, provenance=provenance))
    print(f"{options.output}: {provenance}", file=sys.stderr)


if __name__ == "__main__":
    main()
