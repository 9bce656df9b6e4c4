"""Checks of what a mechanism computes: as its slow reference does, whose mistakes are noticed, padding or not."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self
from unittest import mock

import torch
from torch import Tensor

from attention_zoo.base import Attention
from attention_zoo.check.subject import (
    MORE_SIZES,
    Failed,
    NotApplicable,
    Size,
    Subject,
    evaluate,
    on,
    require_close,
    require_connectivity,
)
from attention_zoo.regions import Partition


def equals_its_reference(subject: Subject) -> None:
    """Forward and reference agree in float64, the gradients of x and of every parameter included."""
    for size in subject.sizes:
        attention, x = subject.build(), subject.images(size)
        has_same_output(attention, x, size)
        expected, found = (evaluate(attention, x, way) for way in (attention.reference, attention))
        require_close(found, expected, f"gradients of forward and reference differ {on(size)}")


def has_same_output(attention: Attention, x: Tensor, size: Size, *, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    """Compare forward with the reference, without gradients."""
    with torch.no_grad():
        found, expected = {"output": attention(x)}, {"output": attention.reference(x)}
    what, hint = f"forward and reference differ {on(size)}", _explanation(type(attention))
    require_close(found, expected, what, hint, rtol=rtol, atol=atol)


def _explanation(cls: type[Attention]) -> str:
    """Say where the reference comes from, if its author did not write it."""
    methods = ("reference", "weights")
    owners = [next(base for base in cls.__mro__ if method in vars(base)) for method in methods]
    if cls in owners or any(not owner.__module__.startswith("attention_zoo.") for owner in owners):
        return ""
    return (
        "; its reference is the inherited masked softmax (of `project`, `scale`, `logit_bias`, `connectivity` and "
        "`value_term`), which forward does not compute: write `reference` (plain loops) or `weights`, or mend it"
    )


def require_agreement(attention: Attention, x: Tensor) -> None:
    """Leave out a check that means something only where forward equals the reference.

    Raises:
        NotApplicable: they differ.
    """
    with torch.no_grad():
        if not torch.allclose(attention(x), attention.reference(x), rtol=1e-9, atol=1e-10):
            raise NotApplicable("forward and reference differ as they are")


def fits_any_size(subject: Subject) -> None:
    """Forward and reference agree on further maps, narrow and tiny ones among them."""
    require_agreement(subject.build(), subject.images(subject.sizes[0]))
    fitting = [size for size in MORE_SIZES if size not in subject.sizes and subject.fits(size)]
    if not fitting:
        raise NotApplicable("geometry(height, width) refuses every further map")
    for size in fitting:
        has_same_output(subject.build(), subject.images(size), size)


def agrees_by_each_impl(subject: Subject) -> None:
    """Every way to compute that the configuration has gives what the reference gives."""
    # flex is compiled for each shape, and computes in 32 bits
    impls = [impl for impl in subject.build().usable_impls() if impl != "flex"]
    if len(impls) < 2:
        raise NotApplicable("it has one way to compute")
    for size in subject.sizes:
        for impl in impls:
            has_same_output(subject.build(impl=impl), subject.images(size), size)


def reference_stands_alone(subject: Subject) -> None:
    """The reference never calls the forward that it judges."""
    attention, x = subject.build(), subject.images(subject.sizes[0])

    def refuse(*_: object) -> Tensor:
        raise Failed("reference calls forward, which it must judge; write it with plain loops or a dense softmax")

    with mock.patch.object(attention, "forward", refuse), mock.patch.object(attention, "fast", refuse, create=True):
        attention.reference(x)


def spy(attention: Attention, method: str) -> AbstractContextManager[mock.Mock]:
    """Note whether a method is called, which works as before."""
    return mock.patch.object(attention, method, side_effect=getattr(attention, method))


def _pair(attention: Attention, x: Tensor) -> tuple[int, int]:
    """A query of the first image and one of several keys that it reads, so that the key has a share to change."""
    tokens = x.shape[1] * x.shape[2]
    reads = attention.connectivity(x[:1]).expand(1, attention.num_heads, tokens, tokens)[0, 0]
    several = (reads.sum(1) > 1).nonzero()
    if not len(several):
        raise NotApplicable(f"every query reads one key {on((x.shape[1], x.shape[2]))}")
    query = int(several[0])
    return query, int(reads[query].nonzero()[-1])


def drop_one_key(attention: Attention, x: Tensor) -> str:
    """Let one query of the first image read one key less."""
    query, key = _pair(attention, x)
    connectivity, tokens = attention.connectivity, x.shape[1] * x.shape[2]

    def mutated(x: Tensor, queries: Tensor | None = None) -> Tensor:
        allowed = connectivity(x).expand(len(x), attention.num_heads, tokens, tokens).clone()
        allowed[0, 0, query, key] = False
        return allowed if queries is None else allowed[:, :, queries]

    attention.connectivity = mutated  # type: ignore[method-assign]
    return "connectivity"


def shift_one_bias(attention: Attention, x: Tensor) -> str:
    """Add 0.1 to the logit of one pair."""
    query, key = _pair(attention, x)
    logit_bias, tokens = attention.logit_bias, x.shape[1] * x.shape[2]

    def mutated(height: int, width: int) -> Tensor:
        bias = logit_bias(height, width)
        bias = x.new_zeros(attention.num_heads, tokens, tokens) if bias is None else bias.clone()
        bias[0, query, key] += 0.1
        return bias

    attention.logit_bias = mutated  # type: ignore[method-assign]
    return "logit_bias"


def roll_one_query(attention: Attention, x: Tensor) -> str:
    """Roll the channels of one query of the first image."""
    query, _ = _pair(attention, x)
    project = attention.project

    def mutated(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = project(x)
        q = q.clone()
        q[0, 0, query] = q[0, 0, query].roll(1)
        return q, k, v

    attention.project = mutated  # type: ignore[method-assign]
    return "project"


def notices(mutate: Callable[[Attention, Tensor], str], subject: Subject) -> None:
    """A reference with one small mistake disagrees with forward.

    Raises:
        Failed: it still agrees.
        NotApplicable: the mistake is in a method that this reference does not call.
    """
    require_connectivity(subject)
    # where padding is read, connectivity is not asked about the map itself
    size = subject.unpadded_size() if subject.reads_padding else subject.sizes[-1]
    attention, x = subject.build(), subject.images(size)
    require_agreement(attention, x)
    mutant = copy.deepcopy(attention)
    method = mutate(mutant, x)
    with spy(mutant, method) as asked, torch.no_grad():
        expected = mutant.reference(x)
        found = attention(x)
    if not asked.called:
        raise NotApplicable(f"its reference does not call {method}")
    if torch.allclose(found, expected, rtol=1e-9, atol=1e-10):
        raise Failed(f"a mistake in {method} changes nothing {on(size)}: the reference does not judge what it says")


def notices_a_dropped_key(subject: Subject) -> None:
    """A reference that drops one key is noticed."""
    notices(drop_one_key, subject)


def notices_a_shifted_bias(subject: Subject) -> None:
    """A reference that shifts one logit is noticed."""
    notices(shift_one_bias, subject)


def notices_a_rolled_query(subject: Subject) -> None:
    """A reference that rolls one query is noticed."""
    notices(roll_one_query, subject)


class Junk:
    """While it is on, `Partition.split` leaves junk in tokens that the map does not have, as the first to touch them.

    With NaN any step of a backward pass that meets it raises. `tokens` counts those that got junk.
    """

    def __init__(self, value: float) -> None:
        """Keep the junk for later."""
        self.value, self.tokens = value, 0

    def __enter__(self) -> Self:
        """Put junk into padding from here on."""
        split = Partition.split

        def with_junk(cut: Partition, x: Tensor) -> Tensor:
            regions = split(cut, x)
            # one channel is geometry, not content: the map of what is valid, the sides of a seam
            valid = None if x.shape[-1] == 1 else cut.valid(x.device)
            if valid is None:
                return regions
            self.tokens += int((~valid).sum())
            return torch.where(valid[..., None], regions, self.value)

        self.patch = mock.patch.object(Partition, "split", with_junk)
        self.patch.start()
        torch.autograd.set_detect_anomaly(True)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave padding as it is."""
        torch.autograd.set_detect_anomaly(False)
        self.patch.stop()


def ignores_padding(subject: Subject) -> None:
    """Padded tokens may hold anything, NaN too: output and gradients stay the same to the last bit."""
    if subject.reads_padding:
        raise NotApplicable("its configuration reads padding, as the published code does")
    poisoned = 0
    for size in (*subject.sizes, (5, 11)):
        if not subject.fits(size):
            continue
        attention, x = subject.build(), subject.images(size)
        clean = evaluate(attention, x, attention)
        for value in (torch.nan, torch.inf, 1e4, -1e4):
            with Junk(value) as junk:
                found = evaluate(attention, x, attention)
            poisoned += junk.tokens
            require_close(found, clean, f"with {value:g} in the padding {on(size)}", rtol=0, atol=0)
    if not poisoned:
        raise NotApplicable("it pads nothing by attention_zoo.regions.Partition")
