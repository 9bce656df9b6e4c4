"""One cell's training by several processes of this machine, without SLURM: torchrun's agent starts and watches them.

Rank 0 runs the job, the others help it to train, as in a job of SLURM. When a process is killed the agent ends the
others and starts all of them again, at most `MAX_RESTARTS` times, and the training goes on from its saved state. What
a process raises is no reason for that: it is a record.
"""

import contextlib
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from runners.cells.job import Job
from runners.cells.registered import unpack
from runners.cells.run import died, follow, place, run_job
from runners.machine.environment import apply_threads, pick_device
from runners.machine.failures import ChildFailed, exit_status, oom_kills, was_oom_killed
from runners.measure.children import die_with_parent
from runners.store.lease import Lease, acquire
from runners.store.store import open_store
from runners.train.distributed import setup

MAX_RESTARTS = 3


def run_processes(job: Job, log: Path, count: int, mechanism: bytes | None = None) -> None:
    """Run a job by `count` processes until they have ended; `mechanism` is one that they cannot import.

    Raises:
        ChildFailed: rank 0 could not use the results folder; carries its traceback.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=MAX_RESTARTS,
    )
    kills = oom_kills()
    try:
        with _hangup_as_it_is():
            failure = elastic_launch(config, _run_rank)(os.getpid(), job, log, count, mechanism)[0]
    except ChildFailedError as error:
        _record_death(job, log, count, *error.get_first_failure(), kills)
        return
    if failure:
        raise ChildFailed(failure)


@contextlib.contextmanager
def _hangup_as_it_is() -> Iterator[None]:
    """Keep SIGHUP ignored where it is, as under nohup: torchrun's agent would end at it."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_rank(parent: int, job: Job, log: Path, count: int, mechanism: bytes | None) -> str | None:
    """Do what a process of the job does; return the traceback of an error after which another attempt is no use."""
    die_with_parent(parent)
    # the log of all of them is a file, and a process that is killed does not come to write what it holds back
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if mechanism is not None:
        unpack(mechanism)
    with setup(count) as group:
        if group.rank:
            follow(job.out, {job.key: job.cell}, job.device, group, job.workers, job.memory_limit_mib)
            return None
        try:
            run_job(job, log, group=group)
        except Exception:
            return traceback.format_exc()
    return None


def _record_death(job: Job, log: Path, count: int, rank: int, failure: ProcessFailure, kills: int | None) -> None:
    """Record the measure that the processes were at, unless another process has the cell or has recorded it."""
    status = "oom" if was_oom_killed(failure.exitcode, kills) else exit_status(failure.exitcode)
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
    reason = f"rank {rank} of {count} {how}; all were started {MAX_RESTARTS + 1} times"
    print(reason, flush=True)
    store = open_store(job.out, create=False)
    apply_threads(job.cell.threads)
    here = place(pick_device(job.device), job.cell.threads)
    lease = acquire(store.lease_path(job.key, job.part))
    if isinstance(lease, Lease):
        with lease:
            for measure, attempt in job.attempts.items():
                record = died(job, measure, here, log, status=status, reason=reason)
                if store.next_attempt(job.key, measure, here.device_id, record.protocol) == attempt:
                    store.write_record(job.key, record)
