"""Processes that measure: what they answer, how they fail, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from runners.machine import failures
from runners.machine.failures import ChildFailed, OutOfMemory
from runners.measure import children
from runners.measure.children import child

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")


def answer_with(value):
    print("libraries print, too")
    return {"value": value, "variable": os.environ.get("OF_THE_CHILD")}


def fail():
    raise ValueError("no such model")


def work_endlessly(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def loaded(module):
    return {"loaded": module in sys.modules}


def answer(task, variables=None):
    with child(task, variables) as process:
        process.begin()
        return process.answer()


def test_the_answer_is_what_the_task_returns():
    assert answer(partial(answer_with, 1.5), {"OF_THE_CHILD": "x"}) == {"value": 1.5, "variable": "x"}


def test_an_exception_of_the_child_is_raised_with_its_traceback():
    with pytest.raises(ChildFailed, match=r"(?s)Traceback.*in fail.*ValueError: no such model") as caught:
        answer(fail)
    assert caught.value.status == "error"


def test_a_child_waits_for_its_turn_with_everything_imported(tmp_path):
    with (
        child(partial(work_endlessly, tmp_path)) as waiting,
        child(partial(loaded, "colorsys"), imports=["colorsys"]) as other,
    ):
        for process in (waiting, other):
            process.wait_until_ready()
        other.begin()
        assert other.answer() == {"loaded": True}
        assert not started(tmp_path)
        waiting.begin()
        wait_until(lambda: started(tmp_path))
    assert answer(partial(loaded, "colorsys")) == {"loaded": False}


def test_a_child_that_cannot_import_says_so_when_it_is_asked():
    with child(fail, imports=["no_such_module"]) as process:
        process.wait_until_ready()
        process.begin()
        with pytest.raises(ChildFailed, match="No module named 'no_such_module'"):
            process.answer()


def test_a_child_that_waits_ends_when_its_parent_closes_the_pipe(tmp_path):
    with child(partial(work_endlessly, tmp_path)) as waiting:
        waiting.wait_until_ready()
        waiting.process.stdin.close()
        assert waiting.process.wait(timeout=5) == 1
    assert not started(tmp_path)


@pytest.mark.parametrize(
    ("end", "message", "status"),
    [("os._exit(3)", "exit code 3", "error"), ("os.kill(os.getpid(), 9)", "exit code -9", "killed")],
)
def test_a_child_that_dies_without_an_answer_leaves_its_last_words(end, message, status, monkeypatch):
    monkeypatch.setattr(children, "PROGRAM", f"import os; os.write(2, b'last words'); {end}")
    with pytest.raises(ChildFailed, match=f"(?s){message}:.*last words") as caught:
        answer(fail)
    assert caught.value.status == status


def test_a_child_that_the_kernel_killed_is_out_of_memory(monkeypatch):
    kills = iter([3, 4])
    for module in (children, failures):
        monkeypatch.setattr(module, "oom_kills", lambda: next(kills))
    monkeypatch.setattr(children, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(OutOfMemory, match="out-of-memory killer"):
        answer(fail)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started(folder):
    return [int(path.name) for path in folder.iterdir()]


@linux
def test_a_killed_parent_leaves_no_child(tmp_path):
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from functools import partial\n"
        "from test_children import answer, work_endlessly\n"
        f"answer(partial(work_endlessly, {str(tmp_path)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: started(tmp_path))
        assert is_alive(*started(tmp_path))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_alive(*started(tmp_path)), seconds=5)


def test_where_the_kernel_does_not_tell_a_closed_pipe_alone_ends_the_child(tmp_path):
    with child(partial(work_endlessly, tmp_path)) as running:
        running.begin()
        wait_until(lambda: started(tmp_path))
        # Ctrl-C is the parent's to judge
        running.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(timeout=0.5)
        running.process.stdin.close()
        assert running.process.wait(timeout=5) == 1


def test_a_child_asks_to_die_with_its_parent_and_ends_if_that_is_gone_already(monkeypatch):
    wishes = []
    monkeypatch.setattr(children.ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *args: wishes.append(args)))
    children.die_with_parent(os.getppid())
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    with pytest.raises(pytest.fail.Exception, match="ended with 1"):
        children.die_with_parent(os.getppid() + 1)
    assert wishes == ([(1, signal.SIGKILL)] * 2 if sys.platform == "linux" else [])


def test_an_interrupted_measurement_ends_its_child(monkeypatch):
    monkeypatch.setattr(children, "PROGRAM", "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt), child(fail) as running:
        raise KeyboardInterrupt
    assert running.process.returncode == -signal.SIGKILL
