"""Jobs through submitit, which enters the project here alone.

Locally one job at a time is started, since submitit's local executor starts whatever it is given at once. Its own time
limit (two minutes by default) is kept out of the way: the sweep watches the time, so that a limit becomes a row.

To SLURM goes an array whose tasks find their cells by their index (runners/jobs/task.py). submitit names a task's
pickle after its job, once sbatch has returned; so that a submitter which is killed in between leaves no task without
one, the batch script itself puts a copy of the payload there.
"""

import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from submitit import JobEnvironment, LocalExecutor, SlurmExecutor
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment, clean_env

if TYPE_CHECKING:
    from runners.cells.job import Job

PLACEHOLDERS = ("%j", "%t", "%A", "%a")
"""What submitit replaces by numbers, anywhere in a path."""
NEVER_MIN = 60 * 24 * 365.0
# submitit takes a preemption in a job of up to 20 minutes for a time limit; runners/jobs/task.py tells them apart
NO_TIMEOUT_LIMIT = 10**9
KEPT = ("SLURM_CONF", "SLURM_JWT")
"""How the commands find the controller, which `clean_env` would hide from them too."""


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


def start_local(job: "Job", folder: Path, mechanism: Path | None = None, processes: int = 1) -> Running:
    """Start a job on this machine, in a process of its own or in several; `folder` takes submitit's files and the log.

    `mechanism` is the pipe from which the job takes a mechanism that it cannot import.
    """
    executor = LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=NEVER_MIN, stderr_to_stdout=True)
    # blocked, not ignored: Ctrl-C must reach the sweep, which then ends the job, and never the job itself
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        handle = executor.submit(_payload, job, os.environ.get("CUDA_VISIBLE_DEVICES"), mechanism, processes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return Running(handle.paths.stdout, handle)


def _payload(job: "Job", visible_gpus: str | None, mechanism: Path | None, processes: int) -> None:
    # submitit's local controller numbers the GPUs anew, whatever the user had made visible
    if visible_gpus is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    from runners.cells.registered import take
    from runners.cells.run import run_job
    from runners.store.files import is_gone

    log, packed = JobEnvironment().paths.stdout, take(mechanism)
    try:
        if processes > 1:
            from runners.jobs.processes import run_processes

            run_processes(job, log, processes, packed)
        else:
            run_job(job, log)
    finally:
        if is_gone(job.out):
            # submitit would make the folder anew for its result
            os._exit(1)


def start_array(
    task: Callable[[], None],
    count: int,
    folder: Path,
    *,
    name: str,
    options: Mapping[str, str | int],
    signal_delay_s: int,
    max_parallel: int | None = None,
) -> str:
    """Submit an array of `count` equal tasks and return its number; the environment of an outer job stays behind.

    `signal_delay_s` before its time limit a task gets SIGUSR2.

    Raises:
        RuntimeError: sbatch refuses; its words are the message.
    """
    options = dict(options)
    minutes = int(options.pop("time"))
    payload = folder / "payload.pkl"
    submission = DelayedSubmission(task)
    submission.set_timeout(minutes, NO_TIMEOUT_LIMIT)
    submission.dump(payload)
    executor = SlurmExecutor(folder=folder, max_num_timeout=NO_TIMEOUT_LIMIT)
    named = {key: int(options.pop(key.replace("_", "-"), 1)) for key in ("nodes", "ntasks_per_node")}
    cpus = options.get("cpus-per-task")
    executor.update_parameters(
        job_name=name,
        time=minutes,
        stderr_to_stdout=True,
        signal_delay_s=signal_delay_s,
        array_parallelism=max_parallel or count,
        setup=_copy_payload(folder, payload),
        # srun inside a batch job does not inherit it (SLURM 22.05 and later)
        srun_args=[f"--cpus-per-task={cpus}"] if cpus else None,
        additional_parameters={
            **{key: value if value != "" else True for key, value in options.items()},
            "requeue": True,
        },
        **named,
    )
    kept = {variable: os.environ[variable] for variable in KEPT if variable in os.environ}
    with clean_env():
        os.environ.update(kept)
        with executor.batch():
            jobs = [executor.submit(task) for _ in range(count)]
    return str(jobs[0].job_id).partition("_")[0]


def _copy_payload(folder: Path, payload: Path) -> list[str]:
    """Lines of a batch script that give its task a pickle, unless submitit or an earlier run of the job has."""
    pickle = f"{shlex.quote(str(folder.absolute()))}/${{task}}_submitted.pkl"
    source = shlex.quote(str(payload.absolute()))
    return [
        "task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "task=${task:-$SLURM_JOB_ID}",
        f"[ -e {pickle} ] || {{ cp {source} {pickle}.$$ && mv -n {pickle}.$$ {pickle}; }}",
    ]


def delayed(task: Callable[[], None]) -> Any:
    """What a task's `checkpoint` returns: the task as it is to be when its job runs again."""
    return DelayedSubmission(task)


def job_log() -> Path:
    """Log of the job that this process belongs to."""
    return Path(JobEnvironment().paths.stdout)


def export_distributed() -> None:
    """Set the variables by which the processes of a job find one another, as torchrun does."""
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
