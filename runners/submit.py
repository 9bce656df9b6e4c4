"""Jobs through submitit, which enters the project here alone.

One job at a time is started, since submitit's local executor starts whatever it is given at once. Its own time limit
(two minutes by default) is kept out of the way: the sweep watches the time, so that a limit becomes a row.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from submitit import JobEnvironment, LocalExecutor

if TYPE_CHECKING:
    from runners.execute import Job

NEVER_MIN = 60 * 24 * 365.0


@dataclass
class Running:
    """A job that was started; its log is what it printed."""

    log: Path
    _handle: Any

    def is_done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return bool(self._handle.done())

    def kill(self) -> None:
        """End the job and everything it started, at once; what it recorded stays."""
        with contextlib.suppress(psutil.NoSuchProcess):
            controller = psutil.Process(int(self._handle.job_id))  # of local jobs, the controller's pid
            family = [*controller.children(recursive=True), controller]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=5)


def start_local(job: "Job", folder: Path) -> Running:
    """Start a job in a process of its own on this machine; `folder` takes submitit's files and the log."""
    executor = LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=NEVER_MIN, stderr_to_stdout=True)
    # blocked, not ignored: Ctrl-C must reach the sweep, which then ends the job, and never the job itself
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        handle = executor.submit(_payload, job, os.environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return Running(handle.paths.stdout, handle)


def _payload(job: "Job", visible_gpus: str | None) -> None:
    # submitit's local controller numbers the GPUs anew, whatever the user had made visible
    if visible_gpus is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    from runners.execute import run_job

    run_job(job, JobEnvironment().paths.stdout)
