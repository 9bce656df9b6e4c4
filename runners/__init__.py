"""How a cell is planned, run, measured and recorded: by the commands in this folder, or by `Sweep` from Python."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runners.jobs.sweep import Sweep as Sweep

if lacking := [name for name in ("pandas", "submitit", "rich") if find_spec(name) is None]:
    raise ModuleNotFoundError(f"sweeps need {', '.join(lacking)}: pip install 'attention-zoo[sweeps]'", name=lacking[0])


def __getattr__(name: str) -> Any:
    """Import `Sweep` when it is asked for: with torch that takes seconds, which `--help` must not."""
    if name == "Sweep":
        from runners.jobs.sweep import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
