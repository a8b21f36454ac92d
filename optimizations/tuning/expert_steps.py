"""The steps of a model with two noise experts, told apart: what a step of each takes, and the change between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class ExpertSteps:
    """One of two noise experts, over all counted runs.

    Attributes:
        name: "high noise" or "low noise".
        steps: that it does in one run.
        seconds: median of its steady steps: the first is left out where there are others.
        begins: median seconds that its first step takes beyond its others: its weights come, those of the expert
            before it go. None where it does one step, in which the two cannot be told apart.
    """

    name: str
    steps: int
    seconds: float
    begins: float | None


def expert_steps(runs: Iterable[tuple[Sequence[float], Sequence[str]]]) -> tuple[ExpertSteps, ...]:
    """Tell the experts of several runs apart.

    Args:
        runs: seconds of each step, and which expert did it.

    Returns:
        One entry per expert in their order; () for a model with one denoiser.
    """
    split = [
        {name: [s for s, who in zip(seconds, experts, strict=False) if who == name] for name in dict.fromkeys(experts)}
        for seconds, experts in runs
    ]
    found = []
    for name in dict.fromkeys(name for run in split for name in run):
        series = [run[name] for run in split if run.get(name)]
        steady = [value for steps in series for value in (steps[1:] or steps)]
        begins = [steps[0] - median(steps[1:]) for steps in series if len(steps) > 1]
        count = round(median([len(steps) for steps in series]))
        found.append(ExpertSteps(name, count, median(steady), median(begins) if begins else None))
    return tuple(found)
