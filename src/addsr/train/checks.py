"""How a recipe's field is refused: by its name, its value and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from addsr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .task import Batch


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raises a ConfigError that names the field unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} = {value!r} is not allowed; give {allowed}")


def require_shares(config: Any, *names: str) -> None:
    """Each of these fields of [task] is a number from 0 to 1."""
    for name in names:
        require(0 <= getattr(config, name) <= 1, f"task.{name}", getattr(config, name), "0 to 1")


def require_least(config: Any, least: float, *names: str) -> None:
    """Each of these fields of [task] is a number from `least`."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"task.{name}", value, f"a number from {least:g}")


def require_one_of(config: Any, name: str, *allowed: str) -> None:
    """The field of [task] is one of these texts."""
    value = getattr(config, name)
    require(value in allowed, f"task.{name}", value, " or ".join(allowed))


def refuse_compile(is_compiled: bool, task: str) -> None:
    """Raises a ConfigError where a recipe asks for what the task cannot do."""
    require(
        not is_compiled,
        "run.compile",
        is_compiled,
        f"false: {task} trains layers that are hooked into frozen networks, which is not compiled",
    )


def require_large(pairs: Sequence[Batch], grid: int) -> None:
    """Validation pictures are at least `grid` pixels a side, which the networks need."""
    for height, width in (pair.hr.shape[-2:] for pair in pairs):
        if min(height, width) < grid:
            raise ConfigError(
                f"data.val: a picture of {width} x {height} is too small; give pictures of "
                f"{grid} pixels a side or more"
            )


def require_reuse(reuse: int, pool: int, batch: int) -> None:
    """task.latent_reuse and task.latent_pool go with run.batch."""
    require(batch % reuse == 0, "task.latent_reuse", reuse, f"a divisor of run.batch = {batch}")
    ok = reuse == 1 or pool >= batch
    require(ok, "task.latent_pool", pool, f"as many as run.batch = {batch} or more")
