"""How a command ends: silent where nobody reads on, and with its output spelled out where a terminal cannot show it."""

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

CLOSED = 141
"""Exit code of a program whose reader has gone, as the shell reports SIGPIPE."""


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a command as a program and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # an ASCII terminal, or names of files that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code: object = main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    raise SystemExit(code)
