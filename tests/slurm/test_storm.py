"""Many cells while their processes are killed, their jobs requeued, their records cut and a disk is full."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from runners.table import load
from slurm.cluster import Cluster
from slurm.killer import Killer, can_mount, full_folder
from slurm.zoo import MEASURED, key_of, rows, run, submit, tiny, wait_for_queue

pytestmark = pytest.mark.slurm

LEARNED = [name for name in MEASURED if name not in ("gmacs", "params_m")]
MOST_RETRIES = 8


@pytest.mark.parametrize("cells", [15, pytest.param(60, marks=pytest.mark.exhaustive)])
def test_cells_come_through_a_storm(
    cells: int,
    cluster: Cluster,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not can_mount(tmp_path):
        pytest.skip("no file system can be mounted here, so no folder of a cell can be full")
    calm, out = tmp_path / "calm", tmp_path / "out"
    flags = ["--seeds", ",".join(map(str, range(cells))), "--steps", "2", "--measure", "accuracy"]
    run(cluster, "sweep", *tiny(*flags, "--cluster", "debug"), out=calm)
    cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    submit(cluster, *flags, "--cells-per-job", "5", "--name", "storm", out=out)
    killer = Killer(cluster, out, seed=0, pause_s=1.5)
    with full_folder(out / "cells" / key_of(out, 7)):
        cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
        killer.start()
        wait_for_queue(cluster)
        status = run(cluster, "status", "storm", out=out, code=1)
        assert "No space left on device; what became of this cell" in status and "Traceback" not in status
    run(cluster, "retry", out=out)
    wait_for_queue(cluster)
    killer.stop()
    retries = 1
    while f"{cells} cells: {cells} ok" not in run(cluster, "status", "storm", out=out, code=None):
        retries += 1
        assert retries <= MOST_RETRIES, run(cluster, "status", "storm", out=out, code=None)
        run(cluster, "retry", out=out)
        wait_for_queue(cluster)

    table = load(out)
    assert len(table) == table["cell_key"].nunique() == cells
    assert set(table["status"]) == {"ok"}
    pd.testing.assert_frame_equal(rows(out)[LEARNED], rows(calm)[LEARNED], check_exact=True)
    figures = {**killer.done, "retries": retries, "lost": int((table["status"] != "ok").sum())}
    record_property("storm", figures)
    with capsys.disabled():
        first_wave = next(line for line in status.splitlines() if f"{cells} cells:" in line)
        print(f"\nstorm: after the first wave {first_wave}; in all {figures}")
    assert killer.done["kill"] >= cells / 12 and killer.done["requeue"] >= 1 and killer.done["cut"] >= cells / 20
