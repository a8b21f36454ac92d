"""Step caching: where a denoising step changes little against the one before, most of its blocks are not run again.

Two engines do the work, in this order: the package cache-dit (optional, most model families), and diffusers' own hooks
(always there, few families). Both work on the denoiser, so that every pipeline that shares it is served, both are
removed without a trace, and neither keeps anything from one run to the next, however the run ended.

The result is an approximation: that is what is traded for the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import check_choice
from ...report import OptimizationRecord, OptimizationReport
from ..components import denoisers
from ..settings import STEP_CACHE_CHOICES, OptimizationSettings
from .cachedit import CacheDitEngine
from .diffusers_hooks import DiffusersHooksEngine
from .engine import LEVELS, MIN_STEPS, Level, StepCacheEngine, StepCacheUnavailable

__all__ = ["LEVELS", "MIN_STEPS", "Level", "disable", "enable", "incompatibility", "running"]

ENGINES: tuple[type[StepCacheEngine], ...] = (CacheDitEngine, DiffusersHooksEngine)
_ATTRIBUTE = "_fastdiffusers_step_cache"
"""On the first denoiser: the engine that is at work on it. Pipelines that share the denoiser find it there."""


def enable(
    pipeline: Any,
    choice: str,
    steps: int = 0,
    settings: OptimizationSettings | None = None,
    controlled: bool = False,
) -> OptimizationRecord:
    """Switch step caching on a pipeline's denoisers to `choice`: in place, idempotent, reversible with `disable`.

    Args:
        pipeline: a diffusers pipeline.
        choice: "off", "balanced" or "fast".
        steps: denoising steps of the next run, 0 when not known yet; `running` is told again.
        settings: what else is asked for, to say what cannot be combined; None checks nothing.
        controlled: a control model adds to what the blocks of the denoiser give.

    Returns:
        The record for the report. When nothing can be cached it says why, and the pipeline is as without caching.
    """
    check_choice("step_cache", choice, STEP_CACHE_CHOICES)
    current = _engine(pipeline)
    reason = "" if choice == "off" or settings is None else incompatibility(settings)
    if current is not None and (current.choice != choice or current.controlled != controlled or reason):
        disable(pipeline)
        current = None
    if choice == "off":
        return OptimizationRecord("step_cache", choice, "off")
    if reason:
        return OptimizationRecord("step_cache", choice, "off", reason, failed=True)
    if current is not None:
        current.steps = steps
        return _active_record(current)
    refusals = []
    for engine_class in ENGINES:
        try:
            engine = engine_class(pipeline, choice, LEVELS[choice], steps)
        except StepCacheUnavailable as refusal:
            refusals.append(str(refusal))
            continue
        if controlled and engine.against_control:
            engine.remove()
            refusals.append(engine.against_control)
            continue
        engine.steps, engine.controlled = steps, controlled
        setattr(_holder(pipeline), _ATTRIBUTE, engine)
        return _active_record(engine)
    return OptimizationRecord("step_cache", choice, "off", "; ".join(refusals), failed=True)


def disable(pipeline: Any) -> None:
    """Take step caching off again: the denoisers are exactly as before `enable`. Does nothing when it is not on."""
    engine = _engine(pipeline)
    if engine is not None:
        delattr(_holder(pipeline), _ATTRIBUTE)
        engine.remove()


def incompatibility(settings: OptimizationSettings) -> str:
    """Why step caching cannot run together with the other settings, "" when it can."""
    if settings.torch_compile != "off" and settings.compile.scope == "model":
        return "a denoiser compiled as a whole cannot skip blocks: set the compile scope to 'blocks'"
    return ""


@contextmanager
def running(pipeline: Any, report: OptimizationReport, steps: int = 0) -> Iterator[None]:
    """Hold this around one run of the pipeline: it starts the run from an empty cache and leaves none behind.

    The "step_cache" record of `report` is completed with the number of steps that were skipped. A run that raises
    (cancel, out of memory) leaves the caching ready for the next one.

    Args:
        pipeline: the pipeline that runs, or the one it shares its denoiser with.
        report: the report that `enable`'s record is in; nothing is added where it has none.
        steps: denoising steps of this run; 0 takes what `enable` was told.
    """
    engine = _engine(pipeline)
    if engine is not None and not engine.intact():
        disable(pipeline)
        report.set(enable(pipeline, engine.choice, engine.steps, controlled=engine.controlled))
        engine = _engine(pipeline)
    if engine is None:
        yield
        return
    steps = steps or engine.steps
    engine.begin(steps)
    try:
        yield
    except BaseException:
        engine.end()
        raise
    counts = engine.end()
    if counts.unfit and "step_cache" in report:
        report.set(OptimizationRecord("step_cache", engine.choice, "off", counts.unfit, failed=True))
    elif "step_cache" in report:
        text = f"{engine.choice}, {engine.name}: {counts.skipped} of {counts.steps} steps skipped"
        reason = counts.note
        if 0 < steps < MIN_STEPS:
            reason = f"{steps} steps are too few to skip any: it takes {MIN_STEPS}"
        elif not counts.skipped and not reason:
            reason = "no step was enough like the one before it at this level"
        report.update("step_cache", applied=text, reason=reason, cost=counts.saved and f"saved {counts.saved}")


def _active_record(engine: StepCacheEngine) -> OptimizationRecord:
    return OptimizationRecord("step_cache", engine.choice, f"{engine.choice}, {engine.name}")


def _engine(pipeline: Any) -> StepCacheEngine | None:
    return getattr(_holder(pipeline), _ATTRIBUTE, None)


def _holder(pipeline: Any) -> Any:
    """The denoiser that the engine is kept at: pipelines that share it share the engine."""
    return next(iter(denoisers(pipeline).values()), None)
