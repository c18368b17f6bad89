"""A progress bar with ETA for training on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Report = Callable[[int, int, "dict[str, float]", float], None]


@contextmanager
def bar(name: str, steps: int) -> Generator[Report]:
    """Gives a callback `(step, steps, figures, eta_seconds)` that moves the bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=steps, note="")

        def report(step: int, total: int, figures: dict[str, float], eta: float) -> None:
            minutes, seconds = divmod(int(eta), 60)
            loss = figures.get("loss", float("nan"))
            rate = figures["crops_per_second"]
            note = f"loss {loss:.4g}  {rate:.0f} crops/s  ETA {minutes}:{seconds:02d}"
            progress.update(task, completed=step, total=total, note=note)

        yield report
