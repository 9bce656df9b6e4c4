"""One odd or closed file in the results folder of a stranger: it costs its own row at most."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from strangers_folder import FOUND, KEY, SUBMITTED, run_all, slurm, store

from ablations.study import Cell
from runners.store.store import Store
from runners.table import load

__all__ = ["slurm", "store"]  # fixtures


def lay(path: Path, kind: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_text({"deep": "[" * 200_000, "list": "[]", "number": "1e999", "bytes": "\x00\x7f"}[kind])


KINDS = ["folder", "pipe", "huge", "loop", "deep", "list", "number", "bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_odd_file_costs_its_own_row_at_most(
    store: Store, slurm: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    names = ["cell.json", "lease.json", "progress.json", "lost.json", "records", "studies", "wanted"]
    for seed, name in enumerate([*names, f"records/{FOUND.name.file}"], start=1):
        key = store.add_cell(Cell(seed=seed), "study", ["flops"])
        store.write_record(key, FOUND)
        lay(store.folder(key) / name, kind)
    run_all(store)
    assert "9 cells" in capsys.readouterr().out
    rows = load(store.out).set_index("cell_key")
    assert len(rows) == 9 and (rows.loc[KEY, "status"], rows.loc[KEY, "gmacs"]) == ("ok", 0.5)
    assert set(rows["gmacs"].dropna()) == {0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_file_of_a_job_costs_no_row(store: Store, slurm: Path, kind: str) -> None:
    for name in ("submission.json", "task-0.json", "7_0_0_log.out", "settled-0", "cancelled-0"):
        folder = store.out / "jobs" / f"odd.{name}"
        folder.mkdir(parents=True)
        (folder / "submission.json").write_text(json.dumps({**asdict(SUBMITTED), "name": folder.name}))
        lay(folder / name, kind)
    run_all(store)
    assert list(load(store.out)["status"]) == ["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
@pytest.mark.parametrize("closed", [".", "records", "lease.json", "cell.json"])
def test_what_another_user_keeps_closed_is_one_row(store: Store, tmp_path: Path, closed: str) -> None:
    whole = store.add_cell(Cell(seed=1), "study", ["flops"])
    store.write_record(whole, FOUND)
    (store.folder(KEY) / "lease.json").write_text("{}")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (store.folder(KEY) / closed).chmod(0o700 if closed in (".", "records") else 0o600)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        rows = load(store.out).set_index("cell_key")
        holder = store.holder(KEY)
    finally:
        os.seteuid(0)
    assert sorted(rows.index) == sorted([KEY, whole]) and rows.loc[whole, "status"] == "ok"
    if closed in (".", "records"):
        assert rows.loc[KEY, "status"] == "lost" and "Permission denied" in rows.loc[KEY, "error_message"]
    if closed == "lease.json":
        assert holder.state == "unknown"
