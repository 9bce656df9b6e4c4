"""What the tests of the zoo share: settings of every mechanism, small float64 instances, and a per-token second road.

A test that takes `mechanism` runs for every registered name in every setting of the table.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import hypothesis
import pytest
import torch
from golden import SKIPPED
from torch import Tensor

import attention_zoo
from attention_zoo import registry
from attention_zoo.check import subject
from attention_zoo.check.oracle import spy
from attention_zoo.check.subject import Subject

hypothesis.settings.register_profile("zoo", derandomize=True, deadline=None, print_blob=False)
hypothesis.settings.load_profile("zoo")

# what a failing assert of theirs compared is told as in a test
pytest.register_assert_rewrite("ordinary_cases", "resume_cells", "training_ranks")

HEADS = Subject.num_heads

if "PYTEST_XDIST_WORKER" in os.environ:
    # workers share the processors; threads that wait for each other would take most of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def slow_but(*quick: Any, of: Iterable[Any]) -> list[Any]:
    """Values of a parameter, `slow` but for the named ones."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow, id=_id(value)) for value in of]


def _id(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Mechanism(NamedTuple):
    name: str
    config: dict[str, Any]

    def __str__(self) -> str:
        values = (f"{key}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in self.config.items())
        return ",".join((self.name, *values))


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "vanilla": [
        {},
        {"lepe": True, "qkv_bias": True},
        {"qk_scale": 0.3, "lepe": True, "lepe_kernel": 3},
        {"lepe": True, "lepe_input": "x"},
    ],
    "swin": [
        {"window": 3},
        {"window": 3, "shift": 1},
        {"window": (2, 3), "shift": 1},
        {"window": 7, "shift": 3},  # clamped on most maps of the tests
        {"window": 3, "shift": 2, "lepe": True, "qkv_bias": False},
        {"window": 7, "shift": 3, "shift_whole": True},
    ],
    "maxvit": [
        {"window": 3, "kind": "block"},
        {"window": 3, "kind": "grid"},
        {"window": (2, 3), "kind": "grid", "lepe": True},
        {"window": 7, "kind": "grid", "pad_side": "center"},
        {"window": 3, "kind": "grid", "padding": "official"},
        {"window": (3, 2), "kind": "block", "padding": "official", "pad_side": "center", "pad_moment": "projected"},
    ],
    "cswin": [
        {"stripe": 1},
        {"stripe": 2},
        {"stripe": 3, "lepe": False},
        {"stripe": 7, "lepe_kernel": 5, "clip_stripe": True},
        {"stripe": 3, "pad_side": "center"},
        {"stripe": 2, "padding": "official"},
        {"stripe": 9, "padding": "official"},  # longer than most sides of the tests, and filled up
    ],
    "crossformer": [
        {"group": 3, "kind": "short"},
        {"group": 2, "interval": 3, "kind": "long"},
        {"group": 2, "interval": 2, "kind": "long", "padding": "official", "pad_side": "center", "lepe": True},
        {"group": 7, "interval": 2, "kind": "long", "qkv_bias": False},
    ],
    "bra": [
        {"regions": 3, "topk": 1},
        {"regions": 3, "topk": 4, "lepe": False},
        {"regions": 3, "topk": 9, "clip_topk": True},
        {"region_size": 2, "topk": 3, "qk_scale": 0.2, "lepe_kernel": 3},
        {"region_size": "auto", "topk": 3},
        {"regions": 2, "topk": 2, "qk_dim": 8, "qkv_bias": False},
        {"regions": 3, "topk": 2, "head_routing": True},
        {"regions": 3, "topk": 3, "padding": "official"},
        {"regions": 3, "topk": 3, "padding": "official", "variant": "nchw"},
        {"regions": 3, "topk": 3, "rounding": "floor", "pad_side": "center"},
        {"regions": 3, "topk": 3, "soft_routing": True, "diff_routing": True, "param_routing": True},
        {"regions": 2, "topk": 2, "soft_routing": True, "head_routing": True, "padding": "official"},
        {"regions": 2, "topk": 2, "kv_pool": "avg", "kv_per_side": 2},
        {"regions": 2, "topk": 3, "kv_pool": "max", "kv_ratio": 2},
    ],
    "dat": [
        {"map_size": (6, 12)},  # the first map of the tests: read as published there, by displacement on the others
        {"groups": 2, "stride": 2, "kernel": 3, "offset_range": 3.0, "map_size": 5, "qkv_bias": False},
        {"groups": 2, "stride": 2, "position": "dwc", "offset_range": "unbounded", "qk_scale": 0.3},
        {"variant": "2023", "groups": 2, "stride": 2, "map_size": (5, 7)},
        {"variant": "2023", "stride": 2, "kernel": 2, "offset_range": 2.0, "position": "none"},
        {"variant": "2023", "stride": 3, "kernel": 4, "position": "fixed", "map_size": (5, 7)},
        {"variant": "2023", "groups": 2, "stride": 2, "position": "log", "offset_range": 1.0},
        {"variant": "2023", "stride": 2, "offsets": False, "position": "none"},
        {"variant": "2023", "stride": 2, "kernel": 2, "offsets": False, "position": "none"},
        {"stride": 2, "offset_range": "free", "position": "none"},
        {"variant": "2023", "stride": 2, "offset_range": 0.0, "position": "none"},
    ],
    "sliding": [
        {"kernel": 3},
        {"kernel": 3, "dilation": 2, "bias": False},
        {"kernel": 5, "dilation": 3, "lepe": True},  # most sequences are shorter than a window
        {"kernel": 7, "qkv_bias": False},  # clamped on most
        {"kernel": (2, 5), "lepe": True},
        {"kernel": (4, 3), "stride": (3, 2), "dilation": (1, 2), "bias": False},
        {"kernel": (3, 4), "stride": 2, "dilation": 2, "causal": "both", "qk_scale": 0.3},
        {"kernel": 3, "dilation": (2, 1), "padding": "official", "lepe": True},  # 5 rows are filled up to 6
    ],
    "axial": [
        {},
        {"lepe": True, "qkv_bias": False, "qk_scale": 0.3},
        {"layers": "sum", "head_dim": 5},
        {"layers": "sequence", "qkv_bias": False},
    ],
    "axial_deeplab": [{}, {"axes": "width", "map_size": (3, 12), "qkv_bias": True}],
    "crisscross": [
        {},
        {"lepe": True, "qkv_bias": False, "qk_scale": 0.3},
        {"recurrence": 2, "qk_reduction": 3, "qk_scale": 1.0, "residual": True, "lepe": True},
    ],
    "pvt": [
        {"reduction": 2},
        {"reduction": 3, "qkv_bias": False},
        {"reduction": 1, "qk_scale": 0.3},
        {"reduction": 2, "padding": "official"},
        {"linear": True},
    ],
    "sep": [
        {"window": 3, "kind": "local"},
        {"window": (2, 3), "kind": "local", "lepe": True, "qkv_bias": False},
        {"window": 3, "kind": "local", "padding": "official"},
        {"window": 3, "kind": "local", "padding": "official", "variant": "segmentation", "lepe": True},
        {"reduction": 2, "kind": "global"},
        {"reduction": 3, "kind": "global", "padding": "official"},
    ],
}


def settings_of(name: str) -> list[dict[str, Any]]:
    """Settings that tests try of a mechanism: those of the table, else its defaults and its own examples."""
    return SETTINGS.get(name) or [{}, *(example.config for example in attention_zoo.resolve(name).examples)]


SHARE = 8
"""Of the slow variants of one test, `.ci/run` takes about one in this many."""
FEW = 8
"""A test with at most so many slow variants keeps them all, but for those that carry the mark themselves."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rest as `exhaustive`: for each test others, so that together they meet every mechanism and setting."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    variants = Counter(item.nodeid.partition("[")[0] for item in slow)
    for item in slow:
        if variants[item.nodeid.partition("[")[0]] > FEW and crc32(item.nodeid.encode()) % SHARE:
            item.add_marker(pytest.mark.exhaustive)


QUICK = 2
"""Settings of a mechanism that the default tests try, in each implementation: the first of the table."""


def mechanisms() -> list[Mechanism]:
    """Every registered mechanism in its settings, in each implementation where that is quick."""
    return [
        Mechanism(name, {**config, **impl})
        for name in attention_zoo.names()
        for index, config in enumerate(settings_of(name))
        for impl in (implementations(name, config) if index < QUICK else [{}])
    ]


def with_marks(settings: Iterable[Mechanism]) -> list[Any]:
    """The same as parameters of a test, `slow` beyond the quick ones of each mechanism."""
    chosen = ("impl", "lepe")  # of one setting there are several implementations, and tests switch LePE off
    quick = [
        (name, {key: value for key, value in config.items() if key not in chosen})
        for name in attention_zoo.names()
        for config in settings_of(name)[:QUICK]
    ]

    def is_quick(setting: Mechanism) -> bool:
        return (setting.name, {k: v for k, v in setting.config.items() if k not in chosen}) in quick

    return [pytest.param(one, id=str(one), marks=() if is_quick(one) else pytest.mark.slow) for one in settings]


def implementations(name: str, config: dict[str, Any]) -> list[dict[str, str]]:
    """How a mechanism can be told to compute, as configurations.

    Flex, which computes in 32 bits and is compiled for each shape, has tests of its own.
    """
    usable = subject_of(Mechanism(name, config)).build().usable_impls()
    impls = [impl for impl in usable if impl != "flex"]
    return [{"impl": impl} for impl in impls] if len(impls) > 1 else [{}]


def subject_of(mechanism: Mechanism, **more: Any) -> Subject:
    """What the checks of `attention_zoo.check` take."""
    cls = attention_zoo.resolve(mechanism.name)
    return Subject(cls, cls.Config(**mechanism.config), **more)


def reads_padding(mechanism: Mechanism) -> bool:
    """Whether padded tokens are read, as in the published code."""
    return subject_of(mechanism).reads_padding


def reads_tokens(attention: attention_zoo.Attention, x: Tensor) -> bool:
    """Whether its reference asks `connectivity` which tokens to read; others make keys of their own."""
    with spy(attention, "connectivity") as asked, torch.no_grad():
        attention.reference(x)
    return bool(asked.called)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what a clone without the stored results of the published codes could not check."""
    skipped = sum(SKIPPED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if skipped:
        terminalreporter.write_line(f"{skipped} proofs against the published codes were skipped: {SKIPPED}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread, with which sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def registered_as_before(monkeypatch):
    """Let what a test registers be forgotten after it."""
    monkeypatch.setattr(registry, "_MECHANISMS", dict(registry._MECHANISMS))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mechanism" in metafunc.fixturenames:
        metafunc.parametrize("mechanism", with_marks(mechanisms()))


def _small(name: str, height: int, width: int, **config: Any) -> tuple[attention_zoo.Attention, Tensor]:
    small = subject_of(Mechanism(name, config))
    return small.build(), small.images((height, width))


def _evaluate(attention: attention_zoo.Attention, x: Tensor, method: str = "forward") -> dict[str, Tensor]:
    return subject.evaluate(attention, x, getattr(attention, method))


@pytest.fixture(scope="session")
def small():
    """small(name, height, width, **config) -> attention of 12 channels and 2 heads, x of two images, in float64."""
    return _small


@pytest.fixture(scope="session")
def evaluate():
    """evaluate(attention, x, method="forward") -> its output, and the gradients of a probe to x and all parameters."""
    return _evaluate


@pytest.fixture(scope="session")
def lepe_by_token():
    """lepe_by_token(attention, v) -> depth-wise convolution of one map of values, (H, W, C), token by token."""

    def lepe(attention: attention_zoo.Attention, v: Tensor) -> Tensor:
        kernel = attention.lepe.weight[:, 0]  # (C, side, side)
        reach = kernel.shape[-1] // 2
        height, width, _ = v.shape
        y = torch.zeros_like(v)
        for row in range(height):
            for col in range(width):
                y[row, col] = attention.lepe.bias
                for dy in range(-reach, reach + 1):
                    for dx in range(-reach, reach + 1):
                        if 0 <= row + dy < height and 0 <= col + dx < width:
                            y[row, col] += kernel[:, reach + dy, reach + dx] * v[row + dy, col + dx]
        return y

    return lepe


@pytest.fixture(scope="session")
def output_by_token(lepe_by_token):
    """output_by_token(attention, image, reads, scale, bias=None) -> the mechanism on (H, W, C), query by query.

    reads: for each query the keys it reads; bias(head, query, key): what is added to a logit.
    """

    def output(attention, image, reads, scale, bias=lambda head, query, key: 0.0):
        height, width, channels = image.shape
        tokens = image.reshape(-1, channels)
        q, k, v = (tokens @ attention.qkv.weight.T + (0 if attention.qkv.bias is None else attention.qkv.bias)).split(
            (attention.qk_dim, attention.qk_dim, channels), dim=-1
        )
        narrow, wide = attention.qk_dim // HEADS, channels // HEADS
        y = torch.zeros_like(tokens)
        for query, keys in enumerate(reads):
            for head in range(HEADS):
                qk, vs = slice(head * narrow, (head + 1) * narrow), slice(head * wide, (head + 1) * wide)
                logits = [(q[query, qk] * k[key, qk]).sum() * scale + bias(head, query, key) for key in keys]
                powers = [logit.exp() for logit in logits]
                for key, power in zip(keys, powers, strict=True):
                    y[query, vs] += power / sum(powers) * v[key, vs]
        if attention.lepe is not None:
            y += lepe_by_token(attention, v.reshape(height, width, channels)).reshape(-1, channels)
        return (y @ attention.proj.weight.T + attention.proj.bias).reshape(height, width, channels)

    return output
