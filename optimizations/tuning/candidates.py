"""What is measured and what comes of it: candidates, how often they run, and what is known of each afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from ...callbacks import Callbacks
from ...errors import InputError
from ...report import OptimizationReport
from .expert_steps import ExpertSteps, expert_steps
from .meters import PeakMemory
from .quality import Quality
from .statistics import PairedVerdict, Spread, compare, spread

if TYPE_CHECKING:
    import torch

STEP_STAGE = "denoise"
"""The stage of a run, and of its progress, that holds the denoising steps."""


@dataclass(frozen=True)
class Outcome:
    """What one run of a candidate gives back.

    Attributes:
        result: what is compared with plain: frames [B, T, H, W, 3] in 0..1 on the CPU.
        stage_seconds: the run's own split of its time; "denoise" is replaced by the steps.
        step_seconds: of each denoising step.
        report: what was really active.
        offloaded_bytes: weights of the denoiser that were off the device after a step, or None where unknown.
        step_experts: which of two experts did each step; () for a model with one denoiser.
        moved: bytes of weights copied (to the device, off it); None where that was not counted.
    """

    result: torch.Tensor
    stage_seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: tuple[float, ...] = ()
    report: OptimizationReport | None = None
    offloaded_bytes: int | None = None
    step_experts: tuple[str, ...] = ()
    moved: tuple[int, int] | None = None


@dataclass(frozen=True)
class Candidate:
    """One of the settings to compare: a name for the table, and a function that makes one complete run."""

    name: str
    run: Callable[[Callbacks], Outcome]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        runs: counted runs of each candidate, beside one warm-up.
        precision: stop early, from 3 runs on, when every interval is within plus or minus this fraction; 0: never.
        time_limit: seconds for everything, or None. No run is started that would not fit, and one that outlasts the
            limit is stopped at its next step.
        steps: denoising steps of one run, as far as known; only for the progress.
    """

    runs: int = 5
    precision: float = 0.005
    time_limit: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise InputError("runs", self.runs, "at least one counted run is needed", "use 5 or more")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError("time_limit", self.time_limit, "it must be above 0 seconds", "leave it out for no limit")


@dataclass(frozen=True)
class TimedRun:
    """One timed run.

    Attributes:
        seconds: the whole run.
        step_seconds: each denoising step; the first includes what is done once, compiling say.
        stage_seconds: "text encode", "first step", "steps", "decode", ..., "other"; they add up to `seconds`.
        memory: the peaks of this run.
        offloaded_bytes, step_experts, moved: see `Outcome`.
    """

    seconds: float
    step_seconds: tuple[float, ...]
    stage_seconds: dict[str, float]
    memory: PeakMemory
    offloaded_bytes: int | None
    step_experts: tuple[str, ...] = ()
    moved: tuple[int, int] | None = None


@dataclass
class Measured:
    """Everything known about one candidate.

    Attributes:
        first: its warm-up, with compilation and all other first-time costs; None when that failed.
        runs: its counted runs; `rounds` holds the round of each.
        quality: its result against plain's first; for plain, its second run's result against its first.
        report: what was active in the last run.
        problem: why it was given up, or "".
    """

    name: str
    first: TimedRun | None = None
    runs: list[TimedRun] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    quality: Quality | None = None
    report: OptimizationReport | None = None
    problem: str = ""

    @property
    def run(self) -> Spread | None:
        return spread([timed.seconds for timed in self.runs]) if self.runs else None

    @property
    def step(self) -> Spread | None:
        """The steady step: the first of each run is left out where there are others."""
        steps = [s for timed in self.runs for s in (timed.step_seconds[1:] or timed.step_seconds)]
        return spread(steps) if steps else None

    @property
    def stages(self) -> dict[str, float]:
        """Median seconds of each stage."""
        names = dict.fromkeys(name for timed in self.runs for name in timed.stage_seconds)
        return {name: median([timed.stage_seconds.get(name, 0.0) for timed in self.runs]) for name in names}

    @property
    def memory(self) -> PeakMemory:
        """The highest peaks of all runs.

        `reserved` is the warm-up's alone: that one begins with an empty cache, later runs share torch's cache with the
        other candidates. `host` can only grow within a process, so it says little about one candidate.
        """
        runs = [*self.runs, *([self.first] if self.first is not None else [])]
        peak = PeakMemory()
        for timed in runs:
            peak = peak.highest(timed.memory)
        return peak if self.first is None else replace(peak, reserved=self.first.memory.reserved)

    @property
    def offloaded_bytes(self) -> int | None:
        known = [timed.offloaded_bytes for timed in self.runs if timed.offloaded_bytes is not None]
        return max(known) if known else None

    @property
    def experts(self) -> tuple[ExpertSteps, ...]:
        """The two experts of a model that has them, apart."""
        return expert_steps((timed.step_seconds, timed.step_experts) for timed in self.runs)

    @property
    def steps(self) -> int:
        """Denoising steps of one run."""
        return round(median([len(timed.step_seconds) for timed in self.runs])) if self.runs else 0

    @property
    def moved(self) -> tuple[int, int] | None:
        """The most bytes of weights that a run copied (to the device, off it)."""
        known = [timed.moved for timed in self.runs if timed.moved is not None]
        return (max(on for on, _ in known), max(off for _, off in known)) if known else None

    @property
    def expected_seconds(self) -> float | None:
        """What its next run may take: as long as the last one, or, after the warm-up alone, as that without what its
        first step took beyond a usual one; None before it."""
        if self.runs or self.first is None:
            return self.runs[-1].seconds if self.runs else None
        first, *others = self.first.step_seconds or (0.0,)
        return self.first.seconds - (max(0.0, first - median(others)) if others else 0.0)

    @property
    def first_run_cost(self) -> float:
        """Seconds that the first run took beyond a later one: compilation, mostly."""
        if self.first is None or self.run is None:
            return 0.0
        return max(0.0, self.first.seconds - self.run.median)

    def against(self, plain: Measured) -> PairedVerdict:
        """Compare the rounds in which both ran."""
        mine = dict(zip(self.rounds, self.runs, strict=True))
        theirs = dict(zip(plain.rounds, plain.runs, strict=True))
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
    before = ("load", "text encode", "encode")
    result: dict[str, float] = {name: known.pop(name) for name in before if name in known}
    later = sum(steps[1:])
    if denoise > 0:
        result["first step"] = max(0.0, denoise - later)
    if later > 0:
        result["steps"] = later
    result.update(known)
    result["other"] = max(0.0, seconds - sum(result.values()))
    return result
