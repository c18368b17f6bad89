"""What `addsr upscale` says of a batch: lines for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .errors import OutputError
from .terminal import FAILED, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .batch.events import Outcome, Summary
    from .batch.jobs import Job
    from .batch.planning import Forecast

_MOST_NAMES = 20
"""Of pictures that are left; of a thousand nobody reads the names."""


class Teller:
    """Tells of outcomes as they come, of what is left, and at last of all.

    Where standard output fails, the work goes on; `conclude` says so.

    Args:
        json_lines: JSON in place of lines for people.
        quiet: of what goes well nothing is said.
        json_on_error: JSON goes to standard error, as standard output is taken by a picture.
    """

    def __init__(self, *, json_lines: bool, quiet: bool, json_on_error: bool = False) -> None:
        self.json_lines, self.quiet, self.json_on_error = json_lines, quiet, json_on_error
        self._lost: OutputError | None = None

    def tell(self, outcome: Outcome) -> None:
        """One picture is done, skipped or failed."""
        if self.json_lines:
            self._json(outcome.to_dict())
        if outcome.error is not None:
            if not (self.json_lines and self.json_on_error):  # it says so itself, there
                say(f"error: {outcome.error}", sys.stderr)
        elif outcome.state == "done" and not self.json_lines and not self.quiet:
            width, height = outcome.report["output_size"]
            seconds = outcome.report["seconds"]
            self._say(f"{outcome.source} -> {outcome.target} ({width}x{height}, {seconds:.1f} s)")

    def tell_summary(self, summary: Summary) -> None:
        """The last line of JSON; for people `conclude` has it."""
        if self.json_lines:
            self._json(summary.to_dict())

    def tell_rest(self, summary: Summary, jobs: Sequence[Job], *, is_kept: bool) -> None:
        """After an interruption: what is left, and how to go on.

        Args:
            is_kept: a manifest knows what is done.
        """
        if not summary.left:
            return
        if is_kept:
            how = f"{summary.left} of {len(jobs)} pictures are left; run the same command again "
            say(f"{how}to go on", sys.stderr)
            return
        if len(jobs) == 1:
            say(f"{jobs[0].source} is not done; run the same command again", sys.stderr)
            return
        say(
            f"{summary.left} of {len(jobs)} pictures are left; the same command would do all of "
            "them again, or refuse where a pattern finds results as well: give those left alone, "
            "or -o FOLDER, where the next run goes on",
            sys.stderr,
        )
        reached = {one.target for one in summary.outcomes}
        left = [job.source for job in jobs if job.target not in reached]
        for source in left[:_MOST_NAMES]:
            say(f"  {source}", sys.stderr)
        if len(left) > _MOST_NAMES:
            say(f"  and {len(left) - _MOST_NAMES} more", sys.stderr)

    def conclude(self, summary: Summary) -> int:
        """The end of a batch in words; its exit status.

        Raises:
            OutputError: standard output did not take all that was told.
        """
        failures = [one for one in summary.outcomes if one.state == "failed"]
        if summary.total > 1:
            if failures:
                say(f"{len(failures)} of {summary.total} pictures failed", sys.stderr)
            if len(failures) > 1:  # they scrolled away one by one
                for one in failures:
                    say(f"  {one.source}: {_reason(one)}", sys.stderr)
            if summary.left:
                say(f"{summary.left} were not begun", sys.stderr)
        if (summary.total > 1 or summary.count("skipped")) and not (self.quiet or self.json_lines):
            self._say(_words(summary))
        if self._lost is not None:
            raise self._lost
        return FAILED if failures else 0

    def _json(self, values: dict[str, object]) -> None:
        text = json.dumps(values)
        if self.json_on_error:
            say(text, sys.stderr)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        try:
            say(text)
        except OutputError as error:
            self._lost = error


def tell_plans(forecasts: Iterable[Forecast], *, json_lines: bool, is_one: bool) -> int:
    """What is expected of each picture; the exit status."""
    from .batch.planning import clock

    total, failures, count = 0.0, 0, 0
    for one in forecasts:
        failures += one.state == "failed"
        total, count = total + one.seconds, count + (one.state == "to do")
        if json_lines:
            say(json.dumps(one.to_dict()))
        elif one.error is not None:
            say(f"error: {one.error}", sys.stderr)
        elif one.plan is None or one.size is None or one.result is None:
            say(f"{one.source} -> {one.target}: done already")
        else:
            say(
                f"{one.source} -> {one.target}: {one.size[1]}x{one.size[0]} -> "
                f"{one.result[1]}x{one.result[0]}, passes {len(one.plan.passes)}, tiles {one.tiles}"
                f" of {one.plan.tile}, {one.plan.host_bytes / 2**30:.2f} GiB, "
                f"about {clock(one.seconds)}"
            )
    if not json_lines and not is_one:
        say(f"{count} pictures, about {clock(total)}; nothing was done")
    return FAILED if failures else 0


def _reason(outcome: Outcome) -> str:
    return (outcome.error or "").removeprefix(f"{outcome.source}: ")


def _words(summary: Summary) -> str:
    done, skipped = summary.count("done"), summary.count("skipped")
    known = f", {skipped} done before" if skipped else ""
    if not done:
        return f"0 pictures{known}"
    pace = summary.megapixels / summary.seconds
    return (
        f"{done} picture{'s' if done > 1 else ''}{known}: {summary.megapixels:.1f} megapixels in "
        f"{summary.seconds:.1f} s, {pace:.2f} MP/s"
    )
