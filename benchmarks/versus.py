"""How fast this source tree is beside another one, such as an older commit: `python -m benchmarks.versus PATH`.

Each tree is imported in a process of its own; both have the same weights and images and run in turns, ABBA. A ratio is
this tree's time over the other's in the same round: below 1, this tree is faster. Processes are started anew every few
rounds, since where one happens to have its weights moves a ratio by some percent. Variables of the environment, such as
those of the allocator, hold for both.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from attention_zoo import names
from benchmarks.pairs import MIN_SAMPLE_S, Samples, Spread, share

ROOT = Path(__file__).resolve().parents[1]
ROUNDS_PER_PROCESS = 4
SAME_LOGITS = 1e-3
"""Logits that differ by more, over the largest, are not of the same computation."""


class Work(NamedTuple):
    """A model at a batch size, forward or in training."""

    name: str
    attn: str | None
    batch: int
    training: bool = False

    def __str__(self) -> str:
        model = self.name if self.attn is None else f"{self.name}/{self.attn}"
        return f"{model}, {'training step' if self.training else 'forward'}, batch {self.batch}"


WORKS = (
    *(Work("biformer_tiny", None, *rest) for rest in ((8,), (1,), (8, True))),
    *(Work("stl", name, 8, training) for training in (False, True) for name in names()),
)


class Server:
    """A process that times the models of one source tree."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "benchmarks" / "model_server.py"), str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            RuntimeError: the process has ended; why is on stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.tree} cannot run it")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def measure(work: Work, trees: Sequence[Path], rounds: int, threads: int) -> Samples:
    """Time a work in two trees in turns: milliseconds of `this` and of `other`.

    Raises:
        RuntimeError: a tree cannot run it, or they compute different things.
    """
    samples: Samples = {"this": [], "other": []}
    for done in range(0, rounds, ROUNDS_PER_PROCESS):
        with contextlib.ExitStack() as stack:
            saved = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "weights.pt"
            servers = [stack.enter_context(contextlib.closing(Server(tree))) for tree in trees]
            request = {**work._asdict(), "threads": threads, "saved": str(saved)}
            built = [server.ask(build={**request, "load": index > 0}) for index, server in enumerate(servers)]
            ours, theirs = (one["logits"] for one in built)
            error = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(map(abs, theirs))
            if not error <= SAME_LOGITS:
                raise RuntimeError(f"logits differ by {error:.1e} of the largest")
            calls = ceil(MIN_SAMPLE_S / max(built[0]["seconds"], 1e-6))
            order = list(zip(samples.values(), servers, strict=True))
            for _ in range(min(ROUNDS_PER_PROCESS, rounds - done)):
                for milliseconds, server in order:
                    milliseconds.append(server.ask(time=calls)["ms"])
                order.reverse()
    return samples


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each work; 0 if all was measured, 1 if something failed."""
    parser = argparse.ArgumentParser(prog="versus.py", description=__doc__)
    parser.add_argument("path", metavar="PATH", type=Path, help="the other source tree: a folder with attention_zoo/")
    parser.add_argument("--match", metavar="TEXT", default="", help="only works with this in their name, such as bra")
    parser.add_argument("--rounds", metavar="N", type=int, default=12, help="samples of each (default: 12)")
    parser.add_argument("--threads", metavar="N", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(argv)
    if not (options.path / "attention_zoo").is_dir():
        parser.error(f"PATH must be a source tree, a folder with attention_zoo/, got {options.path}")
    works = [work for work in WORKS if options.match in str(work)]
    if not works:
        parser.error(f"--match {options.match}: no work has that in its name; known: {'; '.join(map(str, WORKS))}")
    print(f"{'work':44}  {'this ms':>8}  {'other ms':>8}  {'ratio':>6}  quartiles", flush=True)
    failed = 0
    for work in works:
        try:
            samples = measure(work, (ROOT, options.path.resolve()), options.rounds, options.threads)
        except RuntimeError as error:
            failed, line = 1, f"not measured: {error}"
        else:
            this, other = (Spread.of(values).median for values in samples.values())
            ratio = share(samples, "this", "other")
            line = f"{this:8.1f}  {other:8.1f}  {ratio.median:6.3f}  {ratio.q25:.3f} to {ratio.q75:.3f}"
        print(f"{work!s:44}  {line}", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
