"""The arithmetic of paired timings."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiffusers.optimizations.tuning.statistics import CONFIDENCE, compare, interval, separated, spread


def test_a_spread_holds_median_and_quartiles() -> None:
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.low, found.high, found.runs) == (3.0, 2.0, 4.0, 5)
    assert found.relative == pytest.approx(1 / 3)


def test_a_real_gain_is_seen_through_a_drift_that_hits_both_sides() -> None:
    drift = [1.0, 1.3, 1.7, 2.2, 2.9]  # the machine gets slower by far more than the two differ
    found = compare([10 * d for d in drift], [8 * d for d in drift])
    assert found.verdict == "faster"
    assert found.ratio == pytest.approx(0.8)
    assert found.gain == pytest.approx(0.2)


def test_slower_is_seen_and_the_sign_is_right() -> None:
    found = compare([17.4] * 5, [32.8, 32.7, 32.9, 32.8, 32.8])
    assert found.verdict == "slower"
    assert found.gain == pytest.approx(-0.885, abs=1e-3)


@pytest.mark.parametrize(
    ("plain", "candidate"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], [0.995] * 5),  # constant, but under the smallest effect
        ([1.0, 1.1, 0.9, 1.0, 1.05], [0.9, 1.2, 0.95, 0.97, 1.1]),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 1.2]),  # large, but three pairs that scatter so are no evidence
        ([1.0], [0.5]),  # nor is a single pair, whatever it says
        ([], []),
    ],
)
def test_noise_is_called_noise(plain: list[float], candidate: list[float]) -> None:
    assert compare(plain, candidate).verdict == "noise"


def test_no_pairs_give_no_figure() -> None:
    found = compare([], [1.0])
    assert math.isnan(found.ratio)
    assert found.pairs == 0


@pytest.mark.parametrize(("count", "confidence"), [(1, 0.0), (5, 0.9375), (6, 0.96875)])
def test_the_interval_says_how_sure_it_is(count: int, confidence: float) -> None:
    values = [float(i) for i in range(count)]
    low, high, found = interval(values)
    assert (low, high) == (0.0, count - 1)
    assert found == pytest.approx(confidence)


def test_few_values_get_students_interval() -> None:
    low, high, confidence = interval([0.79, 0.80, 0.81])
    half = 2.920 * 0.01 / math.sqrt(3)
    assert (low, high, confidence) == (pytest.approx(0.80 - half), pytest.approx(0.80 + half), 0.9)
    assert compare([10.0] * 3, [7.9, 8.0, 8.1]).verdict == "faster"


def test_students_interval_holds_the_mean_as_often_as_it_says() -> None:
    chance = random.Random(1)
    for count in (2, 3, 4):
        held = 0
        for _ in range(4000):
            low, high, _ = interval(sorted(chance.gauss(0, 1) for _ in range(count)))
            held += low <= 0 <= high
        assert held / 4000 == pytest.approx(0.9, abs=0.02)


def test_the_interval_narrows_with_more_pairs_and_holds_the_median_as_often_as_it_says() -> None:
    chance = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high, confidence = interval(sorted(chance.gauss(0, 1) for _ in range(11)))
        held += low <= 0 <= high
    assert confidence >= CONFIDENCE
    assert (low, high) != (-math.inf, math.inf)
    assert held / 2000 == pytest.approx(confidence, abs=0.02)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_swapping_the_sides_swaps_the_verdict(pairs: list[tuple[float, float]]) -> None:
    there = compare([p for p, _ in pairs], [c for _, c in pairs])
    back = compare([c for _, c in pairs], [p for p, _ in pairs])
    opposite = {"faster": "slower", "slower": "faster", "noise": "noise"}
    if abs(there.ratio - 1) > 0.03 and abs(back.ratio - 1) > 0.03:  # 1% of one side is not 1% of the other
        assert back.verdict == opposite[there.verdict]
    assert there.low <= there.high


def test_steps_of_one_run_differ_only_when_they_do_not_overlap() -> None:
    assert separated([10, 11, 10.5], [8, 9, 8.5]) == "faster"
    assert separated([10, 11, 10.5], [12, 13, 12.5]) == "slower"
    assert separated([10, 11, 10.5], [10.2, 9, 12]) == "noise"
    assert separated([10, 10, 10], [9.95, 9.95, 9.95]) == "noise"
    assert separated([], [1]) == "noise"
