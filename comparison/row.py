"""One setting of a comparison: what was measured of it, and what that says against plain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..optimizations.settings import OptimizationSettings
from ..optimizations.tuning.candidates import Measured
from ..optimizations.tuning.expert_steps import ExpertSteps
from ..optimizations.tuning.meters import PeakMemory
from ..optimizations.tuning.quality import Quality
from ..optimizations.tuning.statistics import PairedVerdict, Spread
from .words import without_classes

ENOUGH_PAIRS = 3
"""Runs of each side from which an interval is told: of two it is wider than any difference could be."""
UNKNOWN_GAIN = 0.05
"""A difference within the noise is none only where a gain above this is ruled out; else it is not known."""
DENOISING, VAE = ("first step", "steps"), ("encode", "decode")
"""The stages of a run that the steps make up, and those that the VAE does."""


@dataclass(frozen=True)
class ComparisonRow:
    """One setting.

    Attributes:
        name: see `choices.py`.
        settings: what it stands for.
        run: seconds of a whole run; None when nothing was counted.
        step: seconds of a steady denoising step.
        versus: against plain; None for plain itself and for what was given up.
        stages: median seconds by stage, in the order in which they happen.
        first_run_extra: seconds that the first run took beyond a later one, more than plain's first did.
        memory: peaks.
        offloaded_bytes: weights of the denoiser that were off the device after a step; None where that is unknown.
        steps: denoising steps of one run.
        experts: the two noise experts apart, in a model that has them.
        moved: bytes of weights that one run copied (to the device, off it); None where that was not counted.
        quality: against plain's result.
        active: what was really on, "attention sdpa, torch_compile 4 blocks, ...".
        problem: why it was given up, or "".
    """

    name: str
    settings: OptimizationSettings
    run: Spread | None = None
    step: Spread | None = None
    versus: PairedVerdict | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    first_run_extra: float = 0.0
    memory: PeakMemory = field(default_factory=PeakMemory)
    offloaded_bytes: int | None = None
    steps: int = 0
    experts: tuple[ExpertSteps, ...] = ()
    moved: tuple[int, int] | None = None
    quality: Quality | None = None
    active: str = ""
    problem: str = ""

    @classmethod
    def of(cls, measured: Measured, settings: OptimizationSettings, plain: Measured) -> ComparisonRow:
        is_plain = measured is plain
        report = measured.report
        return cls(
            name=measured.name,
            settings=settings,
            run=measured.run,
            step=measured.step,
            versus=None if is_plain or measured.run is None or plain.run is None else measured.against(plain),
            stages=measured.stages,
            first_run_extra=0.0 if is_plain else max(0.0, measured.first_run_cost - plain.first_run_cost),
            memory=measured.memory,
            offloaded_bytes=measured.offloaded_bytes,
            steps=measured.steps,
            experts=measured.experts,
            moved=measured.moved,
            quality=measured.quality,
            active="" if report is None else ", ".join(f"{record.name} {record.applied}" for record in report),
            problem=without_classes(measured.problem),
        )

    @property
    def verdict(self) -> str:
        """ "plain", "faster", "slower", "noise", "failed" or "not measured"."""
        if self.problem:
            return "failed"
        if self.run is None:
            return "not measured"
        return "plain" if self.versus is None else self.versus.verdict

    @property
    def undecided(self) -> bool:
        """Whether the noise is so large that a gain may be hidden in it."""
        return self.verdict == "noise" and self.versus is not None and self.versus.low < 1 - UNKNOWN_GAIN

    @property
    def lossless(self) -> bool | None:
        """Whether the result is plain's as far as anybody can see; None when it was not compared."""
        if self.verdict == "plain":
            return True
        return None if self.quality is None else self.quality.lossless

    @property
    def switching(self) -> float | None:
        """Seconds that changing from the first expert to the second takes in a run; None where that is unknown."""
        begins = self.experts[1].begins if len(self.experts) == 2 else None
        return None if begins is None else max(0.0, begins)

    def seconds_of(self, stages: tuple[str, ...]) -> float:
        """Median seconds of some stages together."""
        return sum(self.stages.get(name, 0.0) for name in stages)

    def share_of(self, stages: tuple[str, ...]) -> float:
        """Their part of the run, 0..1."""
        whole = sum(self.stages.values())
        return self.seconds_of(stages) / whole if whole else 0.0

    @property
    def break_even_runs(self) -> float | None:
        """Runs after which the first one's extra time is earned back; None when it never is."""
        if self.versus is None or self.run is None or self.versus.verdict != "faster":
            return None
        saved = self.run.median / self.versus.ratio - self.run.median
        return max(1.0, math.ceil(self.first_run_extra / saved)) if saved > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible; without the settings' defaults, with everything that was measured."""
        row = {
            "name": self.name,
            "verdict": self.verdict,
            "run": self.run and asdict(self.run),
            "step": self.step and asdict(self.step),
            "versus_plain": self.versus and asdict(self.versus),
            "stages": dict(self.stages),
            "first_run_extra": self.first_run_extra,
            "break_even_runs": self.break_even_runs,
            "memory": asdict(self.memory),
            "offloaded_bytes": self.offloaded_bytes,
            "experts": [asdict(expert) for expert in self.experts],
            "switching": self.switching,
            "vae": {"seconds": self.seconds_of(VAE), "share": self.share_of(VAE)},
            "moved_bytes": None if self.moved is None else {"on": self.moved[0], "off": self.moved[1]},
            "quality": self.quality and asdict(self.quality),
            "lossless": self.lossless,
            "active": self.active,
            "problem": self.problem,
            "settings": asdict(self.settings),
        }
        return _finite(row)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
