"""What two interleaved series of timings say about each other: faster, slower, or noise.

Pure arithmetic, no torch. Runs are paired round by round, so that whatever changes slowly (temperature, clocks, other
programs) hits both sides of a pair; the ratio within a pair is what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

SMALLEST_EFFECT = 0.01
"""A difference below 1% is never called one: it is not worth a setting."""
CONFIDENCE = 0.9
"""The probability, at least, with which an interval must hold the true median."""


@dataclass(frozen=True)
class Spread:
    """A series of timings in seconds, summed up. `low` and `high` hold its middle half (the quartiles)."""

    median: float
    low: float
    high: float
    runs: int

    @property
    def relative(self) -> float:
        """Half the width of the middle half, as a fraction of the median: 0.02 reads "plus or minus 2%"."""
        return 0.0 if self.median == 0 else (self.high - self.low) / 2 / self.median


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles of at least one timing."""
    ordered = sorted(seconds)
    return Spread(median(ordered), _quantile(ordered, 0.25), _quantile(ordered, 0.75), len(ordered))


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class PairedVerdict:
    """How a candidate compares with plain.

    Attributes:
        verdict: "faster", "slower" or "noise".
        ratio: median of candidate / plain over the pairs; 0.8 is 20% less time. NaN without a pair.
        low, high: interval of that ratio.
        confidence: probability that the interval holds the true median; 0 without a pair.
        pairs: how many pairs there were.
    """

    verdict: str
    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def gain(self) -> float:
        """Fraction of the plain time that is saved; negative when slower."""
        return 1 - self.ratio

    @property
    def half_width(self) -> float:
        """Half the width of the interval: the uncertainty of `ratio`."""
        return (self.high - self.low) / 2


def compare(plain: Sequence[float], candidate: Sequence[float]) -> PairedVerdict:
    """Compare timings taken in the same rounds; pair i is (plain[i], candidate[i]), surplus timings are left out.

    A difference counts when the interval of the ratio (see `interval`) excludes 1 with `CONFIDENCE` and the ratio is at
    least `SMALLEST_EFFECT` away from it.
    """
    pairs = [(p, c) for p, c in zip(plain, candidate, strict=False) if p > 0 and c > 0]
    if not pairs:
        return PairedVerdict("noise", math.nan, math.nan, math.nan, 0.0, 0)
    # Logarithms: twice as long and half as long are then equally far from no difference.
    logarithms = sorted(math.log(c / p) for p, c in pairs)
    low, high, confidence = interval(logarithms)
    low, high, ratio = math.exp(low), math.exp(high), math.exp(median(logarithms))
    counts = confidence >= CONFIDENCE and abs(ratio - 1) >= SMALLEST_EFFECT
    if counts and high < 1:
        verdict = "faster"
    elif counts and low > 1:
        verdict = "slower"
    else:
        verdict = "noise"
    return PairedVerdict(verdict, ratio, low, high, confidence, len(pairs))


_STUDENT = {2: 6.314, 3: 2.920, 4: 2.353}
"""95% points of Student's t distribution for as many values: what a two-sided interval of 90% takes."""


def interval(ordered: Sequence[float]) -> tuple[float, float, float]:
    """An interval that holds the true middle of sorted values, and the probability that it does.

    From 5 values on it is the narrowest symmetric pair of order statistics that reaches `CONFIDENCE`, which assumes
    nothing about the noise: smallest and largest of n hold the median with probability 1 - 2**(1 - n). With 2 to 4
    that is out of reach; there it is Student's interval of the mean, which takes the noise as normal. One value alone
    has no interval: its confidence is 0.
    """
    count = len(ordered)
    if count in _STUDENT:
        half = _STUDENT[count] * stdev(ordered) / math.sqrt(count)
        return mean(ordered) - half, mean(ordered) + half, 0.9
    chosen, confidence = 0, _coverage(count, 0)
    for inner in range(1, count // 2):
        narrower = _coverage(count, inner)
        if narrower < CONFIDENCE:
            break
        chosen, confidence = inner, narrower
    return ordered[chosen], ordered[count - 1 - chosen], confidence


def _coverage(count: int, inner: int) -> float:
    """Probability that the median lies between the (inner+1)-th smallest and the (inner+1)-th largest of `count`."""
    outside = sum(math.comb(count, k) for k in range(inner + 1))
    return max(0.0, 1 - 2 * outside / 2**count)


def separated(plain: Sequence[float], candidate: Sequence[float]) -> str:
    """Compare two unpaired series, as they come within one run: "faster", "slower" or "noise".

    They differ when no value of one lies within the other and the medians are at least `SMALLEST_EFFECT` apart. For
    three against three, chance alone separates them that way in 1 of 20 cases in either direction.
    """
    if not plain or not candidate or abs(median(candidate) / median(plain) - 1) < SMALLEST_EFFECT:
        return "noise"
    if max(candidate) < min(plain):
        return "faster"
    if min(candidate) > max(plain):
        return "slower"
    return "noise"
