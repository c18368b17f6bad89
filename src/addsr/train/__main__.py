"""`python -m addsr.train TASK --config FILE`, for `accelerate launch -m addsr.train` and torchrun.

`addsr train` is the same with more comfort; this entry needs nothing beyond torch and accelerate.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from addsr.errors import AddsrError


def main(arguments: list[str] | None = None) -> int:
    """Exit status of a run: 0, or 1 with the error's message on stderr."""
    parser = argparse.ArgumentParser(prog="addsr.train")
    tasks = ["teacher", "student", "features", "stablesr", "cfw", "addsr", "seesr", "dape"]
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--config", type=Path, required=True, help="recipe, a TOML file")
    parser.add_argument("--init", type=Path, help="weights to start from: file or folder")
    parser.add_argument("--resume", "--resume_from_checkpoint", help="'latest' or a step-* folder")
    parser.add_argument("--output", type=Path, help="replaces run.output")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.FIELD=VALUE", help="one recipe field"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        from .config import parse_overrides
        from .run import train

        train(
            options.task,
            options.config,
            init=options.init,
            resume=options.resume,
            output=options.output,
            overrides=parse_overrides(options.set),
        )
    except AddsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
