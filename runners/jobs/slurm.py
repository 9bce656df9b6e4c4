"""SLURM by its commands: who is alive, how the others ended, and what a request is refused for.

`squeue` knows who is alive, `sacct` why the dead died; a cluster without accounting has the first alone, which
forgets a job minutes after its end.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

TIMEOUT_S = 60.0
NAMES_PER_CALL = 100
DEFAULT_ARRAY_SIZE = 1001
# clocks of the login node and of the controller may differ
CLOCK_SLACK = timedelta(hours=1)

PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}


class SlurmError(ValueError):
    """SLURM is not here, does not answer or refuses; its own words are in the message."""


@dataclass(frozen=True)
class JobState:
    """One task of an array; `state` is a word of SLURM, `exit_code` is CODE:SIGNAL where it is known."""

    job: str
    state: str
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""

    @property
    def is_pending(self) -> bool:
        """Whether it waits, be it for the second time."""
        return self.state in PENDING

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in PENDING | RUNNING


Task = tuple[str, int]
"""Name of an array, which is unique, and the index in it."""


def poll(names: Iterable[str], since: datetime) -> dict[Task, JobState]:
    """State of every task of the arrays of these names that SLURM knows; `since` is no later than their submission.

    Raises:
        SlurmError: the controller does not answer.
    """
    names = sorted(set(names))
    states: dict[Task, JobState] = {}
    for start in range(0, len(names), NAMES_PER_CALL):
        part = ",".join(names[start : start + NAMES_PER_CALL])
        states |= _merge(_squeue(part), _sacct(part, since))
    return states


def _merge(queued: Mapping[Task, JobState], accounted: Mapping[Task, JobState]) -> dict[Task, JobState]:
    """Who is in the queue lives; of the dead accounting tells more, and what it believes alive it has not heard of."""
    merged = {task: state for task, state in accounted.items() if not state.is_alive}
    merged |= {task: state for task, state in queued.items() if state.is_alive or task not in merged}
    return merged


def _squeue(names: str) -> dict[Task, JobState]:
    lines = run("squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%i|%j|%T|%r|%N")
    states = {}
    for line in filter(None, lines.splitlines()):
        job, name, state, reason, nodes = line.split("|", 4)
        states[name, _index(job)] = JobState(job, state, reason, nodes=nodes.strip())
    return states


def _sacct(names: str, since: datetime) -> dict[Task, JobState]:
    """What accounting says, nothing where there is none."""
    start = (min(since, datetime.now(UTC)) - CLOCK_SLACK).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    fields = "--format=JobID,JobName,State,ExitCode,Reason,NodeList"
    try:
        lines = run("sacct", f"--name={names}", f"--starttime={start}", "--noheader", "--parsable2", fields)
    except SlurmError:
        return {}
    tasks: dict[str, Task] = {}
    states: dict[Task, JobState] = {}
    for line in filter(None, lines.splitlines()):
        job, name, state, code, reason, nodes = line.split("|", 5)
        job, _, step = job.partition(".")
        word = state.split(" ")[0].rstrip("+")  # as in "CANCELLED by 0"
        if not step:
            for one in _expand(job):
                tasks[one] = name, _index(one)
                states[tasks[one]] = JobState(one, word, reason, code, nodes)
        elif job in tasks and word == "OUT_OF_MEMORY":
            task = tasks[job]
            before = states[task]
            states[task] = JobState(job, before.state if before.is_alive else word, reason, code, nodes)
    return states


def _index(job: str) -> int:
    """Index of `12_3`; a job outside an array is its own first task."""
    return int(job.partition("_")[2] or 0)


def _expand(job: str) -> list[str]:
    """`12_[0-2,5%4]`, tasks that were never started, as the ids of each."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not match:
        return [job]
    found = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        found += [f"{match[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return found


def require() -> None:
    """Make sure that SLURM's commands are here.

    Raises:
        SlurmError: one is not on the PATH.
    """
    for program in ("sbatch", "squeue", "scancel", "scontrol"):
        if shutil.which(program) is None:
            raise SlurmError(
                f"--cluster slurm: no {program} on the PATH; run this on a login node of the cluster, or give "
                "--cluster local"
            )


def check(options: Mapping[str, str | int]) -> None:
    """Ask SLURM whether it would take a job with these options of sbatch; submits nothing.

    Raises:
        SlurmError: it would not, or no controller answers.
    """
    flags = [f"--{name}={value}" if value != "" else f"--{name}" for name, value in options.items()]
    shown = " ".join(flags) or "a job without options"
    try:
        run("sbatch", "--test-only", *flags, "--wrap=true")
    except SlurmError as error:
        raise SlurmError(f"SLURM refuses {shown}: {error}{_known_partitions(str(error))}") from error


def _known_partitions(message: str) -> str:
    if "partition" not in message.lower():
        return ""
    try:
        names = sorted(set(run("sinfo", "--noheader", "--format=%R").split()))
    except SlurmError:
        return ""
    return f"; partitions here: {', '.join(names)}"


def max_array_size() -> int:
    """How many tasks a submission may have: one, which needs no array, where a cluster has switched arrays off."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1])) if found else DEFAULT_ARRAY_SIZE


def node_hosts(partition: str | None) -> set[str]:
    """Machines behind the nodes of a partition, of all of them where it is None."""
    selected = ["--partition", partition] if partition else []
    names = run("sinfo", "--noheader", "--Node", "--format=%N", *selected).split()
    lines = run("scontrol", "--oneliner", "show", "node", ",".join(sorted(set(names))))
    return set(re.findall(r"\bNodeHostName=(\S+)", lines))


def describe(job: str) -> dict[str, str]:
    """What `scontrol` knows of a job, field by field; nothing where it does not answer."""
    try:
        return dict(re.findall(r"(\S+?)=(\S*)", run("scontrol", "--oneliner", "show", "job", job)))
    except SlurmError:
        return {}


def cancel(jobs: Sequence[str]) -> None:
    """End jobs; those that have ended are no error.

    Raises:
        SlurmError: SLURM refuses.
    """
    for start in range(0, len(jobs), NAMES_PER_CALL):
        run("scancel", "--quiet", *jobs[start : start + NAMES_PER_CALL])


def run(*command: str) -> str:
    """Output of a command of SLURM.

    Raises:
        SlurmError: it is missing, fails or does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise SlurmError(f"no {command[0]} on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {TIMEOUT_S:g} s") from error
    if done.returncode:
        lines = [line.split("error: ", 1)[-1].strip() for line in done.stderr.strip().splitlines()]
        raise SlurmError("; ".join(dict.fromkeys(filter(None, lines))) or f"{command[0]} failed ({done.returncode})")
    return done.stdout
