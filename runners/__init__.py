"""How a cell is planned, run, measured and recorded: by the commands in this folder, or by `Sweep` from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runners.jobs.sweep import Sweep as Sweep


def __getattr__(name: str) -> Any:
    """Import `Sweep` when it is asked for: with torch that takes seconds, which `--help` must not."""
    if name == "Sweep":
        from runners.jobs.sweep import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
