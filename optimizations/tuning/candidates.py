"""What is known about one candidate after some runs: timings, stages, memory, quality. Made by `measure.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from ...report import OptimizationReport
from .meters import PeakMemory
from .quality import Quality
from .statistics import PairedVerdict, Spread, compare, spread

STEP_STAGE = "denoise"
"""The stage of a run, and of its progress, that holds the denoising steps."""


@dataclass(frozen=True)
class Trial:
    """One timed run.

    Attributes:
        seconds: the whole run.
        step_seconds: each denoising step; the first includes whatever came between the text encoding and it.
        stage_seconds: "text encode", "first step", "steps", "decode", ..., "other"; they add up to `seconds`.
        memory: the peaks of this run.
        offloaded_bytes: see `Outcome`.
    """

    seconds: float
    step_seconds: tuple[float, ...]
    stage_seconds: dict[str, float]
    memory: PeakMemory
    offloaded_bytes: int | None


@dataclass
class Measured:
    """Everything known about one candidate.

    Attributes:
        first: its warm-up, with compilation and all other first-time costs; None when that failed.
        trials: its counted runs; `rounds` holds the round of each.
        quality: its result against plain's first; for plain, its second run's result against its first.
        report: what was active in the last run.
        problem: why it was given up, or "".
    """

    name: str
    first: Trial | None = None
    trials: list[Trial] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    quality: Quality | None = None
    report: OptimizationReport | None = None
    problem: str = ""

    @property
    def run(self) -> Spread | None:
        return spread([trial.seconds for trial in self.trials]) if self.trials else None

    @property
    def step(self) -> Spread | None:
        """The steady step: the first of each run is left out where there are others."""
        steps = [s for trial in self.trials for s in (trial.step_seconds[1:] or trial.step_seconds)]
        return spread(steps) if steps else None

    @property
    def stages(self) -> dict[str, float]:
        """Median seconds of each stage."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.stage_seconds)
        return {name: median([trial.stage_seconds.get(name, 0.0) for trial in self.trials]) for name in names}

    @property
    def memory(self) -> PeakMemory:
        """The highest peaks of all runs.

        `reserved` is the warm-up's alone: that one begins with an empty cache, later runs share torch's cache with the
        other candidates. `host` can only grow within a process, so it says little about one candidate.
        """
        runs = [*self.trials, *([self.first] if self.first is not None else [])]
        peak = PeakMemory()
        for trial in runs:
            peak = peak.highest(trial.memory)
        return peak if self.first is None else replace(peak, reserved=self.first.memory.reserved)

    @property
    def offloaded_bytes(self) -> int | None:
        known = [trial.offloaded_bytes for trial in self.trials if trial.offloaded_bytes is not None]
        return max(known) if known else None

    @property
    def first_run_cost(self) -> float:
        """Seconds that the first run took beyond a later one: compilation, mostly."""
        if self.first is None or self.run is None:
            return 0.0
        return max(0.0, self.first.seconds - self.run.median)

    def against(self, plain: Measured) -> PairedVerdict:
        """Compare the rounds in which both ran."""
        mine = dict(zip(self.rounds, self.trials, strict=True))
        theirs = dict(zip(plain.rounds, plain.trials, strict=True))
        common = [number for number in theirs if number in mine]
        return compare([theirs[n].seconds for n in common], [mine[n].seconds for n in common])


def split(seconds: float, steps: Sequence[float], stages: Mapping[str, float]) -> dict[str, float]:
    """The stages of one run so that they add up to it, in the order in which they happen.

    Args:
        seconds: the whole run.
        steps: seconds of each denoising step.
        stages: the run's own split; its "denoise" becomes "first step" and "steps", the remainder "other". Stages
            that are zero are left out.
    """
    known = {name: value for name, value in stages.items() if value > 0}
    denoise = known.pop(STEP_STAGE, sum(steps))
    before = ("load", "text encode")
    result: dict[str, float] = {name: known.pop(name) for name in before if name in known}
    later = sum(steps[1:])
    if denoise > 0:
        result["first step"] = max(0.0, denoise - later)
    if later > 0:
        result["steps"] = later
    result.update(known)
    result["other"] = max(0.0, seconds - sum(result.values()))
    return result
