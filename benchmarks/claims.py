"""What was measured, what it should show, and whether it does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.pairs import Samples, Spread, share, speed

MIN_ROUNDS = 7
"""Fewer rounds of timing than this show that the benchmark runs, and no more."""


@dataclass(frozen=True)
class Claim:
    """A number that a measurement should reach.

    `speed` is how many times as fast as its peer the subject is, wanted at least; `share` its part of the peer's time
    or memory, and `value` the subject's own number, both wanted at most. `within` is the range that a stand-in must lie
    in: outside of it, a number beside it stands for nothing.
    """

    subject: str
    against: str = ""
    wanted: float | None = None
    within: tuple[float, float] | None = None
    kind: Literal["speed", "share", "value"] = "speed"

    def spread(self, samples: Samples) -> Spread:
        """The number itself."""
        if self.kind == "value":
            return Spread.of(samples[self.subject])
        return (speed if self.kind == "speed" else share)(samples, self.subject, self.against)

    def is_met(self, value: float) -> bool | None:
        """Whether a value will do; None where nothing is wanted."""
        if self.within is not None:
            return self.within[0] <= value <= self.within[1]
        if self.wanted is None:
            return None
        return value >= self.wanted if self.kind == "speed" else value <= self.wanted

    @property
    def wish(self) -> str:
        """What is wanted, in words."""
        if self.within is not None:
            return f"{self.within[0]:g} to {self.within[1]:g}"
        if self.wanted is None:
            return ""
        return f"at {'least' if self.kind == 'speed' else 'most'} {self.wanted:g}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Samples of one work: of each contender, in `unit`, one number a round; or why there are none.

    `tokens` are those of the map where the samples are points of a curve.
    """

    section: str
    work: str
    unit: Literal["ms", "MiB", "s"] = "ms"
    samples: Samples = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    tokens: int | None = None
    failed: str | None = None

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Measured":
        """Read one of a saved file.

        Raises:
            TypeError: it has other fields.
        """
        claims = (
            Claim(**{**claim, "within": tuple(claim["within"]) if claim["within"] else None})
            for claim in content["claims"]
        )
        return Measured(**{**content, "claims": tuple(claims)})


@dataclass(frozen=True)
class Row:
    """A claim and what became of it; no spread where it was not measured."""

    section: str
    work: str
    subject: str
    against: str
    spread: Spread | None
    wanted: str
    verdict: str


def judge(measured: Measured) -> list[Row]:
    """Compare samples with claims; one beside a stand-in that ran outside its own range is a number without verdict."""
    section, work, samples = measured.section, measured.work, measured.samples
    if measured.failed is not None:
        return [Row(section, work, "", "", None, "", f"NOT MEASURED: {measured.failed}")]
    spreads = [claim.spread(samples) for claim in measured.claims]
    invalid = {
        claim.subject: f"not valid: {claim.subject} ran outside its range beside {claim.against}"
        for claim, spread in zip(measured.claims, spreads, strict=True)
        if claim.within is not None and not claim.is_met(spread.median)
    }
    return [
        Row(
            section,
            work,
            claim.subject,
            claim.against,
            spread,
            claim.wish,
            invalid.get(claim.against) or _verdict(claim, spread),
        )
        for claim, spread in zip(measured.claims, spreads, strict=True)
    ]


def _verdict(claim: Claim, spread: Spread) -> str:
    met = claim.is_met(spread.median)
    if met is None:
        return ""
    words = ("OUT OF RANGE", "in range") if claim.within is not None else ("SHORT", "met")
    few = f", but n < {MIN_ROUNDS}" if claim.kind == "speed" and spread.n < MIN_ROUNDS else ""
    return words[met] + few
