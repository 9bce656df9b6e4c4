"""What the harness costs around a measurement: imports, planning, and reading results back."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.claims import Claim, Measured
from benchmarks.sections import Task

ROOT = Path(__file__).resolve().parents[1]
CELLS = 10_000
MAX_ROUNDS = 3
SUBJECT = "seconds"

_PLAN = """
import time
from ablations import Axes
from runners.cells.plan import make_plan
axes = Axes(attn=("bra",), settings=(("topk", ("1", "4", "8", "16")),), seeds=tuple(range(2500)))
start = time.perf_counter()
plan = make_plan([axes])
print(time.perf_counter() - start, len(plan.cells))
"""

_LOAD = """
import sys, time
from runners.table import load
start = time.perf_counter()
rows = load(sys.argv[1])
print(time.perf_counter() - start, len(rows))
"""

_WRITE = """
import sys
from pathlib import Path
from ablations import Cell
from runners.store.record import Record
from runners.store.store import open_store
store = open_store(Path(sys.argv[1]), create=True)
for seed in range(int(sys.argv[2])):
    key = store.add_cell(Cell(settings=(("topk", 4),), seed=seed), "topk")
    values = {"acc1": 90.0, "params_m": 1.5, "depths": [1, 1, 2, 1]}
    store.write_record(key, Record(measure="accuracy", device_id="cpu", protocol=1, status="ok", values=values))
"""


def harness(rounds: int) -> list[Task]:
    """Seconds of whole commands, and of parts in processes that do nothing else."""
    rounds = min(rounds, MAX_ROUNDS)
    return [
        _task("python runners/sweep.py --help", 4.0, rounds, lambda: _whole("runners/sweep.py", "--help")),
        _task("import attention_zoo", 4.0, rounds, lambda: _whole("-c", "import attention_zoo")),
        _task(f"plan {CELLS} cells", 2.0, rounds, lambda: _part(_PLAN)),
        Task("harness", f"load {CELLS} rows", lambda: _load(rounds)),
    ]


def _task(work: str, wanted: float, rounds: int, seconds: Callable[[], float]) -> Task:
    return Task("harness", work, lambda: _measured(work, wanted, [seconds() for _ in range(rounds)]))


def _measured(work: str, wanted: float, seconds: list[float]) -> Measured:
    claims = (Claim(SUBJECT, wanted=wanted, kind="value"),)
    return Measured(section="harness", work=work, unit="s", samples={SUBJECT: seconds}, claims=claims)


def _load(rounds: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        _output("-c", _WRITE, folder, str(CELLS))
        return _measured(f"load {CELLS} rows", 2.0, [_part(_LOAD, folder) for _ in range(rounds)])


def _whole(*arguments: str) -> float:
    """Seconds of a command, Python's own start included."""
    start = time.perf_counter()
    _output(*arguments)
    return time.perf_counter() - start


def _part(program: str, *arguments: str) -> float:
    """Seconds that a program prints, beside the number of things that it handled."""
    seconds, count = _output("-c", program, *arguments).split()
    assert int(count) == CELLS
    return float(seconds)


def _output(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise RuntimeError(f"a process failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
