"""Times models of one source tree on request; a process of its own for benchmarks/versus.py.

    PYTHONPATH=TREE python -P benchmarks/model_server.py TREE

Reads one JSON object a line and answers each with one line: `{"build": ...}` makes a model ready to run, `{"time": n}`
runs it once and then n times more, and gives the milliseconds of one of these.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import attention_zoo

CLASSES = 1000


def build(
    name: str, attn: str | None, batch: int, training: bool, threads: int, saved: str, load: bool
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Make what runs a model once, and the answer: a few logits, and the seconds of a warm call.

    `saved` is a file for the weights: written here, or loaded if `load`, so that both trees compute the same.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = attention_zoo.create_model(name, attn=attn)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(CLASSES, (batch,))
    if load:
        model.load_state_dict(torch.load(saved))
    else:
        torch.save(model.state_dict(), saved)
    with torch.inference_mode():
        logits = model.eval()(images)[0, :8].tolist()
    model.train(training)
    # a learning rate of 0 leaves the weights where they are
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    run = step if training else infer
    run()
    return run, {"logits": logits, "seconds": timed(run, 1) / 1e3}


def timed(run: Callable[[], object], calls: int) -> float:
    """Milliseconds of one of `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return 1e3 * (time.perf_counter() - start) / calls


def serve() -> None:
    """Answer requests until there are no more."""
    here = Path(sys.argv[1]).resolve()
    if not Path(attention_zoo.__file__).is_relative_to(here):
        raise SystemExit(f"attention_zoo was imported from {attention_zoo.__file__}, not from {here}")
    run: Callable[[], object] = list  # until something is built
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            run, answer = build(**request["build"])
        else:
            run()
            answer = {"ms": timed(run, request["time"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
