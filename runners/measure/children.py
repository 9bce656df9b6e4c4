"""Fresh processes that measure one thing when it is their turn, answer once, and die with their parent.

What one process happens to hold (heap, caches, the addresses of its tensors) moves what it measures, so measurements
that must not meet that of another have processes of their own.
"""

import ctypes
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from runners.machine.failures import ChildFailed, OutOfMemory, exit_status, oom_kills, status_of, was_oom_killed

# argv: the parent's import path and its process id
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from runners.measure import children; children.serve()"
)
_PR_SET_PDEATHSIG = 1

Task = Callable[[], dict[str, Any]]
"""What a process computes; it is pickled, so a function of a module or a `functools.partial` of one."""


@dataclass(frozen=True)
class Child:
    """A process with a task. `errors` is what it writes to standard error, `kills` what was killed before it."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    kills: int | None

    def wait_until_ready(self) -> None:
        """Wait until it has imported all that its task needs, and rests; or is dead, which its answer will tell."""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def begin(self) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        # a process that is dead by now has a better story to tell
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for what the task returns.

        Raises:
            OutOfMemory: the process ran out of memory; carries its message.
            ChildFailed: it failed otherwise; carries its traceback and its status.
        """
        assert self.process.stdout is not None
        report, returncode = self.process.stdout.read(), self.process.wait()
        if returncode == 0:
            content: dict[str, Any] = json.loads(report)
            if content["status"] == "ok":
                return dict(content["answer"])
            failure = OutOfMemory(content["message"]) if content["status"] == "oom" else None
            raise failure or ChildFailed(content["traceback"], content["status"])
        if was_oom_killed(returncode, self.kills):
            raise OutOfMemory("the kernel's out-of-memory killer ended the measuring process")
        self.errors.seek(0)
        last_words = self.errors.read()[-4000:].decode(errors="replace")
        raise ChildFailed(
            f"measuring process ended with exit code {returncode}:\n{last_words}", exit_status(returncode)
        )


@contextmanager
def child(task: Task, variables: Mapping[str, str] | None = None, imports: Sequence[str] = ()) -> Iterator[Child]:
    """Start a process that waits for its turn to do a task; at the end of the block it is killed if it still runs.

    Args:
        task: what it computes.
        variables: of its environment, besides those of this process.
        imports: modules that it imports before it is ready, besides those that the task stands in.
    """
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    kills = oom_kills()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, paths, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(variables or {})},
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # as in `begin`
                process.stdin.write(pickle.dumps(tuple(imports)) + pickle.dumps(task))
                process.stdin.flush()
            yield Child(process, errors, kills)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()


def serve() -> None:
    """Answer the one task on standard input, as a child of the process whose id is the second argument."""
    die_with_parent(int(sys.argv[2]))
    # Ctrl-C reaches the whole group; the parent decides what becomes of a measurement
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # what libraries print must not end up in the answer
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        try:
            # from the parent, through a pipe that nobody else has
            for module in pickle.load(sys.stdin.buffer):
                importlib.import_module(module)
            task: Task = pickle.load(sys.stdin.buffer)
        finally:
            print(file=answer, flush=True)  # ready; white space before the JSON
        if not sys.stdin.buffer.read(1):
            os._exit(1)  # the parent is dead
        threading.Thread(target=_die_at_end_of_input, daemon=True).start()
        content: dict[str, Any] = {"status": "ok", "answer": task()}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        content = {"status": status_of(error), "message": message, "traceback": traceback.format_exc()}
    json.dump(content, answer)
    answer.close()
    # the watching thread sits in a read, and there is nothing to tidy up
    os._exit(0)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent, of this number, dies; end at once if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may have died before that
    if os.getppid() != parent:
        os._exit(1)


def _die_at_end_of_input() -> None:
    """Where the kernel does not tell of a parent's death: its end of the pipe is closed by it, and never before."""
    while os.read(0, 1):
        pass
    os._exit(1)
