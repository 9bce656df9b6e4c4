"""What SLURM and a log say of a job, as a status.

The programs squeue and sacct are replaced by ones that print what real ones printed; tests/slurm has the real ones.
"""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from slurm_commands import programs

from runners.jobs import slurm
from runners.jobs.outcomes import judge
from runners.jobs.slurm import JobState, SlurmError

__all__ = ["programs"]  # a fixture

NOW = datetime(2026, 11, 22, tzinfo=UTC)

TIME_LIMIT = "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-22T18:14:22 DUE TO TIME LIMIT ***\n"
NODE = "slurmstepd: error: *** JOB 4 ON n2 CANCELLED AT 2026-11-22T18:14:22 DUE TO NODE FAILURE, SEE LOG ***\n"
CANCELLED = "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-22T18:14:22 ***\n"
MEMORY = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"
KILLED = "srun: error: n1: task 0: Killed\n"
TRACEBACK = (
    "Traceback (most recent call last):\nValueError: no such thing\nsrun: error: n1: task 0: Exited with exit code 1\n"
)


def test_who_is_in_the_queue_lives_whatever_accounting_believes(programs) -> None:
    programs(
        squeue="7_0|a.1|PENDING|BeginTime|\n7_1|a.1|COMPLETED|None|n1\n9|a.2|RUNNING|None|n2",
        sacct="7_0|a.1|NODE_FAIL|0:0|None|n1\n7_1|a.1|COMPLETED|0:0|None|n1\n7_2|a.1|RUNNING|0:0|None|n2",
    )
    states = slurm.poll(["a.1", "a.2"], NOW)
    assert {task: state.state for task, state in states.items()} == {
        ("a.1", 0): "PENDING",
        ("a.1", 1): "COMPLETED",
        ("a.2", 0): "RUNNING",
    }
    assert states["a.1", 0].is_pending and states["a.1", 0].is_alive and not states["a.1", 1].is_alive


def test_tasks_that_never_started_and_steps_out_of_memory_are_told_apart(programs) -> None:
    sacct = "7_[1-2,4%3]|a.1|CANCELLED by 0|0:0|None|None assigned\n7_0|a.1|FAILED|9:0|None|n1"
    programs(squeue="", sacct=f"{sacct}\n7_0.batch|batch|FAILED|9:0||n1\n7_0.0|python|OUT_OF_MEMORY|0:125||n1")
    states = slurm.poll(["a.1"], NOW)
    assert {index: state.state for (_, index), state in states.items()} == {
        **dict.fromkeys((1, 2, 4), "CANCELLED"),
        0: "OUT_OF_MEMORY",
    }


def test_without_accounting_the_queue_alone_speaks_and_without_a_controller_nobody_is_judged(programs) -> None:
    programs(squeue="7_0|a.1|TIMEOUT|TimeLimit|n1")
    assert slurm.poll(["a.1"], NOW)["a.1", 0].state == "TIMEOUT"
    programs(sacct="")
    with pytest.raises(SlurmError, match="not here"):
        slurm.poll(["a.1"], NOW)


@pytest.mark.parametrize(
    ("state", "code", "log", "expected"),
    [
        ("OUT_OF_MEMORY", "0:125", "", "oom OutOfMemory"),
        ("FAILED", "9:0", MEMORY + KILLED, "oom OutOfMemory"),
        ("TIMEOUT", "0:0", "", "timeout TimeLimit"),
        ("NODE_FAIL", "0:0", "", "killed NodeFailure"),
        ("CANCELLED", "0:0", "", "killed Cancelled"),
        ("PREEMPTED", "0:0", "", "killed Preempted"),
        ("FAILED", "0:9", "", "killed Killed"),
        ("FAILED", "9:0", KILLED, "killed Killed"),
        ("FAILED", "1:0", TRACEBACK, "error JobDied"),
        ("FAILED", "127:0", "python: not found\n", "error JobDied"),
        ("COMPLETED", "0:0", "", "lost JobLost"),
        (None, "", "", "lost JobLost"),
        (None, "", TIME_LIMIT, "timeout TimeLimit"),
        (None, "", NODE, "killed NodeFailure"),
        (None, "", CANCELLED, "killed Cancelled"),
        (None, "", MEMORY, "oom OutOfMemory"),
        (None, "", KILLED, "killed Killed"),
        (None, "", TRACEBACK, "error JobDied"),
        # an earlier run of the same job is another story
        ("FAILED", "1:0", f"{MEMORY}Starting with JobEnvironment()\n{TRACEBACK}", "error JobDied"),
    ],
)
def test_a_dead_job_has_a_reason(state: str | None, code: str, log: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    fate = judge(JobState("12_3", state, exit_code=code, nodes="n1") if state else None, path)
    assert f"{fate.status} {fate.error_type}" == expected
    if state:
        assert "12_3" in fate.message and "n1" in fate.message


@pytest.mark.parametrize(("log", "expected"), [(None, "Cancelled"), (TIME_LIMIT, "TimeLimit"), (MEMORY, "OutOfMemory")])
def test_a_task_that_slurm_forgot_was_cancelled_if_it_was_told_to_end(
    log: str | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    if log:
        path.write_text(log)
    assert judge(None, path if log else None, cancelled=True).error_type == expected
    assert judge(JobState("12_3", "NODE_FAIL"), None, cancelled=True).error_type == "NodeFailure"
