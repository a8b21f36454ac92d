"""What a step cache engine is, and how much each level lets it skip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

MIN_STEPS = 6
"""Fewer denoising steps than this are too different from each other: every one of them is computed."""
UNKNOWN_STEPS = 28


@dataclass(frozen=True)
class Level:
    """How much is skipped.

    Attributes:
        threshold: relative change of what the first blocks add, mean absolute against the last computed step, below
            which the other blocks are skipped.
        probe: share of the blocks that every step computes to measure that change; always at least one block.
        max_probe: upper limit for it, in blocks.
        warmup: share of the steps that are computed in full before anything is skipped, 2..8 steps.
        in_a_row: most steps that are skipped one after another.
        forecast: extrapolate what the skipped blocks would add (first-order Taylor) instead of repeating it.
    """

    threshold: float
    probe: float
    max_probe: int
    warmup: float
    in_a_row: int
    forecast: bool

    def warmup_steps(self, steps: int) -> int:
        """Steps computed in full at the beginning of a run of `steps` (0: not known)."""
        steps = steps or UNKNOWN_STEPS
        return steps if steps < MIN_STEPS else min(8, max(2, round(steps * self.warmup)))

    def probe_blocks(self, blocks: int) -> int:
        """Blocks that are always computed, out of the `blocks` of the shortest block list."""
        return max(1, min(self.max_probe, int(blocks * self.probe)))


LEVELS = {
    "balanced": Level(threshold=0.08, probe=0.25, max_probe=8, warmup=0.2, in_a_row=2, forecast=False),
    "fast": Level(threshold=0.16, probe=0.0, max_probe=1, warmup=0.15, in_a_row=4, forecast=True),
}


@dataclass(frozen=True)
class Counts:
    """What one run skipped.

    Attributes:
        steps: denoising steps that were run.
        skipped: those of them that reused the work of others.
        saved: what that saved, for a person: "61% of the block runs"; "" when nothing.
        note: what was out of the ordinary, or "".
        unfit: why nothing was skipped, although steps were alike, or "".
    """

    steps: int
    skipped: int
    saved: str = ""
    note: str = ""
    unfit: str = ""


class StepCacheUnavailable(Exception):  # noqa: N818 - not an error: the next engine is asked
    """An engine cannot serve this pipeline; the message says why in one sentence for the report."""


class StepCacheEngine(ABC):
    """One engine at work on the denoisers of one pipeline, from construction until `remove`.

    Constructing it puts it to work or raises StepCacheUnavailable with the pipeline untouched.

    Attributes:
        name: for the report.
        choice: the level's name.
        steps: of the next run, 0 when not known.
        against_control: why it must not run where a control model adds to what the blocks give, or "".
        controlled: whether that is how it runs.
    """

    name: str
    against_control: str = ""
    controlled: bool = False
    choice: str
    steps: int = 0

    @abstractmethod
    def __init__(self, pipeline: Any, choice: str, level: Level, steps: int) -> None: ...

    @abstractmethod
    def begin(self, steps: int) -> None:
        """Start a run of `steps` denoising steps (0: not known) from an empty cache."""

    @abstractmethod
    def end(self) -> Counts:
        """The run is over, well or badly: count what was skipped and drop every tensor that was kept."""

    def intact(self) -> bool:
        """Whether it is still at work: False when hooks were changed underneath it, and it has to be put on again."""
        return True

    @abstractmethod
    def remove(self) -> None:
        """Leave the denoisers exactly as they were found."""


def same_timestep(first: Any, second: Any) -> bool:
    """Whether two calls of a denoiser belong to one denoising step."""
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.shape == second.shape and bool(torch.equal(first, second))
    return bool(first == second)


def timestep_of(kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
    """The timestep that a denoiser is called with, None when the call does not name it."""
    for name in ("timestep", "timesteps", "t"):
        if kwargs.get(name) is not None:
            return kwargs[name]
    return args[1] if len(args) > 1 else None
