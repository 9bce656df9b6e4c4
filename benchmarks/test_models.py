"""Whole models, and how many times as fast as timm's Swin-Tiny each is: `pytest benchmarks --benchmark-enable`.

The statistics of a benchmark are those of the model alone. Its `extra_info`, in --benchmark-json, has the interleaved
comparison with the peer: samples of both in ms, and median and quartiles of their ratio.
"""

from dataclasses import asdict

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from attention_zoo import names
from benchmarks.claims import MIN_ROUNDS
from benchmarks.models import FORWARD_1, FORWARD_8, OUR_SWIN, OURS, PAPER, TIMM_MAXVIT, TIMM_SWIN, TRAIN_8, Work, build
from benchmarks.pairs import speed, take_turns

MODELS = (OURS, "biformer_small", PAPER, OUR_SWIN, TIMM_SWIN, TIMM_MAXVIT, *(f"stl/{name}" for name in names()))


@pytest.mark.parametrize("work", [FORWARD_1, FORWARD_8, TRAIN_8], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_model(benchmark: BenchmarkFixture, name: str, work: Work) -> None:
    if benchmark.disabled:
        pytest.skip("whole models are for --benchmark-enable")
    benchmark.group = str(work)
    run = work.prepare(build(name))
    if name != TIMM_SWIN:
        samples = take_turns({name: run, TIMM_SWIN: work.prepare(build(TIMM_SWIN))}, MIN_ROUNDS)
        benchmark.extra_info |= {"samples_ms": samples, "times_as_fast": asdict(speed(samples, name, TIMM_SWIN))}
    benchmark.pedantic(run, rounds=MIN_ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
