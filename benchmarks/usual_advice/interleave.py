"""Several ways to do one thing, in turn, round after round: times against the first one's, memory, differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from ...memory import LiveBytes

Way = Callable[[], torch.Tensor]
"""Does it once and gives the result, which is compared with the first way's."""


def measure(ways: Mapping[str, Way], rounds: int, uncounted: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """One row per way; the first is the one that the others are held against.

    Times are those of the processor, on one thread: what else the machine has to do hardly counts.

    Args:
        ways: name of the row -> the way.
        rounds: timed runs of each, one of every way per round. One more, untimed, comes first.
        uncounted: ways whose tensors cannot be counted, because they run out of sight of PyTorch's dispatcher.

    Returns:
        "times_faster" is the median of the ratios within a round, "slowest" and "fastest" the smallest and the largest
        of them. "peak_mib": of live tensors, the result among them. "max_difference": from the first way's result,
        in standard deviations of that.
    """
    rows: dict[str, dict[str, Any]] = {}
    reference = torch.empty(0)
    with torch.no_grad():
        for name, way in ways.items():
            peak, result = _counted(way) if name not in uncounted else ("", way())
            reference = result if not rows else reference
            difference = float((result.float() - reference.float()).abs().max() / reference.float().std())
            rows[name] = {"peak_mib": peak, "max_difference": float(f"{difference:.2g}")}
            del result
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                before = time.process_time()
                way()
                seconds[name].append(time.process_time() - before)
    plain = seconds[next(iter(ways))]
    return [{"row": name, **_times(plain, seconds[name]), **row} for name, row in rows.items()]


def _counted(way: Way) -> tuple[float, torch.Tensor]:
    with LiveBytes() as live:
        result = way()
    return round(live.peak / 2**20, 2), result


def _times(plain: list[float], own: list[float]) -> dict[str, float]:
    ratios = [p / s for p, s in zip(plain, own, strict=True)]
    return {
        "milliseconds": float(f"{1000 * median(own):.4g}"),
        "times_faster": round(median(ratios), 3),
        "slowest": round(min(ratios), 3),
        "fastest": round(max(ratios), 3),
    }
