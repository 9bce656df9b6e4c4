"""The largest batch that fits, and the fastest: the measure `max_batch`.

Protocol 1. A fresh process doubles the batch from 1 on until memory runs out, gives back what it holds, and halves the
gap between the largest that fitted and the smallest that did not three times. Each batch is run once, and then three
times against the clock. The search ends too at a batch whose forward takes 5 s, or of 65,536 images; `max_batch_reason`
says which. On a CPU the process may have `--memory-limit`, or 80 % of what is free, so that the machine does not swap.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch

from runners.machine.failures import OutOfMemory, is_out_of_memory
from runners.machine.hardware import give_back
from runners.measure.children import child
from runners.measure.rounds import Work

RUNS = 3
LONG_S = 5.0
MOST = 65_536
HALVINGS = 3
FREE_SHARE = 0.8


def measure_max_batch(work: Work) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Columns of the search, and the batches and images per second that it met.

    Raises:
        OutOfMemory: not even one image fits.
        ChildFailed: the process failed otherwise; carries its traceback and its status.
    """
    with child(partial(find_max_batch, work)) as process:
        process.begin()
        answer = process.answer()
    tried = answer.pop("tried")
    return answer, {"batches": [size for size, _ in tried], "samples_per_sec": [rate for _, rate in tried]}


def search(seconds: Callable[[int], float | None], most: int = MOST) -> tuple[list[tuple[int, float]], str]:
    """Batches that fitted with their images per second, smallest first, and why there is no larger one.

    `seconds` runs a batch, and returns the time of a forward or None if memory ran out. Where a kernel refuses a batch
    for another reason, such as indices of 32 bits, the search ends there.

    Raises:
        OutOfMemory: not even one image fits.
        RuntimeError: not even one image can be computed.
    """
    tried: dict[int, float] = {}
    batch, low, high = 1, 0, 0
    while batch <= most and not high:
        try:
            taken = seconds(batch)
        except RuntimeError as error:
            if not tried:
                raise
            said = str(error).partition("\n")[0]
            return sorted(tried.items()), f"{batch} images: {said}"
        if taken is None:
            high = batch
        else:
            tried[batch], low = batch / taken, batch
            if taken >= LONG_S:
                return sorted(tried.items()), f"a forward of {batch} images took {taken:.1f} s"
            batch *= 2
    if not low:
        raise OutOfMemory("not even one image fits")
    if not high:
        return sorted(tried.items()), f"the search ends at {most} images"
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        if middle == low:
            break
        taken = seconds(middle)
        if taken is None:
            high = middle
        else:
            tried[middle], low = middle / taken, middle
    return sorted(tried.items()), f"memory ran out at {high} images"


def find_max_batch(work: Work, most: int = MOST) -> dict[str, Any]:
    """Columns of the search in this process, and what was `tried`: batches and their images per second."""
    if work.memory_limit_mib is None and work.device == "cpu":
        work = replace(work, memory_limit_mib=int(psutil.virtual_memory().available * FREE_SHARE / 2**20))
    with work.at_work() as device:
        tried, reason = search(partial(_seconds, work, work.build(), device), most)
    batch, fastest = max(tried, key=lambda pair: pair[1])
    return {
        "max_batch": tried[-1][0],
        "max_batch_reason": reason,
        "max_infer_samples_per_sec": fastest,
        "fastest_batch": batch,
        "tried": tried,
    }


def _seconds(work: Work, model: torch.nn.Module, device: torch.device, batch: int) -> float | None:
    try:
        images = work.conditions.place_images(torch.randn(batch, *work.input_shape[1:], device=device), device)
        contender = work.contender(model, images, work.targets(batch))
        contender.infer()
        return median(contender.infer()[0] for _ in range(RUNS)) / 1e3
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside of the handler, whose traceback holds the frames, and these the tensors
    give_back(device)
    return None
