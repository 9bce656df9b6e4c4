"""Results folders with damaged and hostile files: no traceback, no wait, nothing outside touched, no number made up."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from strangers_folder import SUBMITTED, slurm, untouched, victim

from ablations.study import Cell, cell_key
from runners import cancel, clean, collect, report, retry, status
from runners.jobs import submissions
from runners.jobs.submission import TaskNote, Work
from runners.store.record import Record
from runners.store.store import open_store
from runners.table import load

__all__ = ["slurm", "victim"]  # fixtures

PER_FOLDER = 5
LIMIT_S = 30
YEAR_S = 365 * 86400
CELLS = [Cell(attn="vanilla", seed=seed) for seed in range(4)] + [Cell(attn="theirs_4712:Mine")]
TRUE = {cell_key(cell): {"gmacs": 0.5 + seed, "acc1": 90.25 + seed} for seed, cell in enumerate(CELLS)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind: records, leases, progress, a saved state, jobs that have begun or not."""
    store = open_store(tmp_path_factory.mktemp("whole") / "runs", create=True)
    keys = list(TRUE)
    for cell, (key, values) in zip(CELLS, TRUE.items(), strict=True):
        store.add_cell(cell, "study", ["flops", "accuracy"], "cpu")
        for measure, name in (("flops", "gmacs"), ("accuracy", "acc1")):
            if (key, measure) != (keys[3], "accuracy"):
                found = {"measure": measure, "device_id": "cpu", "protocol": 1, "status": "ok"}
                times = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:00:09+00:00"}
                store.write_record(key, Record(**found, **times, values={name: values[name]}))
    (store.folder(keys[1]) / "lease.json").write_text(json.dumps({"host": "n7", "pid": 1}))
    store.write_progress(keys[1], {"measure": "accuracy", "step": 1, "steps": 2, "loss": 0.5})
    store.write_lost(keys[3], {"error_type": "JobLost", "error_message": "why", "log_path": None})
    (store.folder(keys[2]) / "training.cpu").write_bytes(b"{}\nstate")
    (store.folder(keys[2]) / "logs").mkdir()
    (store.folder(keys[2]) / "logs" / "1_0_log.out").write_text("log")
    (store.out / "sweeps").mkdir()
    (store.out / "sweeps" / "sweep.12345678.json").write_text(json.dumps({"host": "n7", "pid": 1}))
    works = tuple((Work(key=key, measures=("flops", "accuracy")),) for key in keys)
    submissions.write(store, replace(SUBMITTED, tasks=works))
    attempts = {keys[0]: {"flops": 1, "accuracy": 1}}
    note = TaskNote(
        job="7_0",
        restarts=0,
        environment={},
        device_ids={keys[0]: "cpu"},
        attempts=attempts,
        protocols={"flops": 1, "accuracy": 1},
        started_at="2026-01-01T00:00:00+00:00",
    )
    submissions.write_note(store, SUBMITTED.name, 0, note)
    (store.out / "jobs" / SUBMITTED.name / "7_0_0_log.out").write_text("log")
    return store.out


def leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))


VALUES = [None, True, -1, 10**400, 1e308, "", "../../victim", "=1+2", "theirs_4712:Mine", "\x1b[2J", [], {}, [[1]]]
TIMES = ["2999-01-01T00:00:00+00:00", "2026-01-01T00:00:00", "yesterday"]


def other_type(path: Path, chance: random.Random) -> None:
    """Replace some value of a JSON file."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        path.write_text("null")
        return
    *parents, last = chance.choice([found for found in leaves(content) if found] or [(None,)])
    place = content
    for step in parents:
        place = place[step]
    if isinstance(place, dict | list) and last is not None:
        place[last] = chance.choice([*VALUES, *TIMES])
    path.write_text(json.dumps(content))


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"x")
    for _ in range(chance.choice([1, 1, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def renamed(path: Path, chance: random.Random) -> None:
    names = [
        "=1+1",
        "\x1b[2J",
        "a b",
        "-rf",
        "x" * 200,
        os.fsdecode(b"\xff"),
        f"{path.name}.json",
        "accuracy.cpu.v1.a9.json",
    ]
    target = path.with_name(chance.choice(names))
    if not target.exists():
        path.rename(target)


def replaced(make: Callable[[Path, Path], object]) -> Callable[[Path, random.Random], None]:
    def change(path: Path, chance: random.Random) -> None:
        path.unlink()
        make(path, path.parents[len(path.parts) - 1 - path.parts.index("runs")].parent / "victim")

    return change


def huge(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def of_another(path: Path, chance: random.Random) -> None:
    others = [other for other in path.parent.parent.rglob("*") if other.is_file() and not other.is_symlink()]
    small = sorted(other for other in others if other.stat().st_size < 1 << 20 and other != path)
    if small:
        shutil.copy(chance.choice(small), path)


MUTATIONS: dict[str, Callable[[Path, random.Random], object]] = {
    "cut off": lambda path, chance: os.truncate(path, chance.randrange(path.stat().st_size + 1)),
    "flipped": flip,
    "other type": other_type,
    "deep": lambda path, chance: path.write_text(chance.choice(['{"a":', "["]) * chance.choice([100, 100_000])),
    "huge": huge,
    "pipe": replaced(lambda path, victim: os.mkfifo(path)),
    "folder": replaced(lambda path, victim: path.mkdir()),
    "link to a file": replaced(lambda path, victim: path.symlink_to(victim / "thesis.tex")),
    "link to a folder": replaced(lambda path, victim: path.symlink_to(victim)),
    "link to itself": replaced(lambda path, victim: path.symlink_to(path)),
    "gone": lambda path, chance: path.unlink(),
    "renamed": renamed,
    "of the future": lambda path, chance: os.utime(path, (time.time() + YEAR_S,) * 2),
    "of another": of_another,
}


@pytest.fixture
def clock() -> Iterator[None]:
    """End a test that waits for something."""

    def ring(*_: object) -> None:
        raise AssertionError(f"no end within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def mutate(out: Path, chance: random.Random) -> list[str]:
    done = []
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "table.csv")
    for path in chance.sample(files, PER_FOLDER):
        name = chance.choice(sorted(MUTATIONS))
        MUTATIONS[name](path, chance)
        done.append(f"{path.relative_to(out)}: {name}")
    return done


def check(out: Path, victim: Path, with_retry: bool) -> None:
    table = None
    verbs = [status, collect, clean, cancel, *([retry] if with_retry else [])]
    for run in [*(lambda verb=verb: verb.main(["--results", str(out)]) for verb in verbs), lambda: load(out)]:
        try:
            table = run()
        except ValueError as error:  # one line, as a command prints it
            assert "store.json" in str(error) or "schema version" in str(error)
    report.main(["--results", str(out), "--format", "csv"])
    assert untouched(victim) and "theirs_4712" not in sys.modules
    if isinstance(table, pd.DataFrame):
        for row in table.to_dict("records"):
            true = TRUE.get(row["cell_key"], {})
            for name in ("gmacs", "acc1"):
                assert pd.isna(row[name]) or row[name] == true.get(name), row["cell_key"]
            if not pd.isna(row["attention"]):
                assert row["cell_key"] in TRUE


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 200))])
def test_a_mutated_folder(
    whole: Path,
    victim: Path,
    slurm: Path,
    tmp_path: Path,
    clock: None,
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    chance = random.Random(seed)
    shutil.copytree(whole, tmp_path / "runs")
    print("\n".join(mutate(tmp_path / "runs", chance)))  # shown if it fails
    check(tmp_path / "runs", victim, with_retry=seed % 6 == 0)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err and "\x1b[2J" not in said.out + said.err
