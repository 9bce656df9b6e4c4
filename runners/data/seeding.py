"""Random draws that follow from a few integers alone, whatever was drawn before and in whichever process."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def drawn_from(*words: int) -> Iterator[None]:
    """Context in which Python's, NumPy's and torch's global generators begin anew; they are put back after it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python, numpy, torchs = (int(word) for word in np.random.SeedSequence(words).generate_state(3))
    random.seed(python)
    np.random.seed(numpy)
    # not torch.manual_seed, which seeds accelerators too
    torch.default_generator.manual_seed(torchs)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
