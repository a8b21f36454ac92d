"""Every optimization on a pipeline that equals bare diffusers without: does it run, how far is it off, is it undone."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch

from ...callbacks import Callbacks
from ...errors import first_line
from ...fallback import all_finite, largest_difference
from ...optimizations.components import denoisers
from ...optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from ...pipelines.types import SampleResult
from .subject import Subject

TOLERANCE = 1e-3
"""Largest difference of a picture in 0..1 that an exact way of computing may make in float32."""
LEVEL = 1 / 255
"""The least difference of pictures that have 8 bits."""
ROUNDING = 2.0**-23
"""Relative change of weights that stands for rounding in float32."""
SENSITIVE = 10.0
"""How many times the difference that rounded weights make another order of sums may make."""
INEXACT = ("vae_tiling", "step_cache")
"""What changes the picture on purpose: only that it is finite and repeated bit for bit is asked of it, and of a step
cache that skipped nothing that it changes nothing."""


class _Cancelled(Exception):  # noqa: N818
    pass


def choices() -> dict[str, OptimizationSettings]:
    """Record of a report -> settings that ask for it alone. Attention is xformers where it is installed (the stand-in
    of the tests, say), else torch's plain kernel."""
    attention = "xformers" if importlib.util.find_spec("xformers") else "math"
    plain = OptimizationSettings.plain(memory_mode="gpu")
    eager = CompileSettings(backend="eager", memory_check=False, keep_artifacts=False)
    return {
        "attention": replace(plain, attention=attention),
        "torch_compile": replace(plain, torch_compile="on", compile=eager),
        "vae_tiling": replace(plain, vae_tiling=TilingSettings(mode="on", slicing="off")),
        "memory_mode": replace(plain, memory_mode="group_offload_leaf"),
        "fused_projections": replace(plain, fused_projections="on"),
        "step_cache": replace(plain, step_cache="fast"),
    }


def try_options(subject: Subject, plain: SampleResult) -> dict[str, Any]:
    """Name -> {"state": "works", "declined" or "fails", "reason", "difference"}, and the same of "cancel".

    After each of them a plain run has to equal the first one bit for bit; "fails" says so where it does not.
    """
    found = {"cancel": _cancelled(subject, plain)}
    for name, settings in choices().items():
        found[name] = _tried(subject, plain, name, settings)
        if found[name]["state"] != "declined" and not _same(again := subject.run(), plain):
            found[name] = {"state": "fails", "reason": f"it leaves a trace: {_difference(again, plain):.3g}"}
    return found


def _tried(subject: Subject, plain: SampleResult, name: str, settings: OptimizationSettings) -> dict[str, Any]:
    try:
        result = subject.run(settings)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the result
        return {"state": "fails", "reason": first_line(error)[:300]}
    record = result.report[name]
    if record.failed or record.declined:
        return {"state": "declined", "reason": record.reason}
    apart = _difference(result, plain)
    found: dict[str, Any] = {"state": "works", "applied": record.applied}
    if apart:
        found["difference"] = float(f"{apart:.3g}")
    if name in INEXACT and ": 0 of " not in record.applied:
        return found if all_finite(result.outcome) else {"state": "fails", "reason": "it ends in NaN"}
    if apart <= TOLERANCE or (apart <= LEVEL + TOLERANCE and _in_levels(plain)):
        return found
    rounded = _difference(_with_rounded_weights(subject), plain)
    if apart <= SENSITIVE * rounded:
        return found | {"reason": f"weights that are rounded otherwise make {rounded:.3g}"}
    return found | {"state": "fails", "reason": f"differs by {apart:.3g}"}


def _in_levels(plain: SampleResult) -> bool:
    """Whether a picture has 8 bits, where rounding decides between two neighbouring levels."""
    levels = _numbers(plain) / LEVEL
    return bool(((levels - levels.round()).abs() < 1e-3).all())


def _with_rounded_weights(subject: Subject) -> SampleResult:
    """A plain run whose denoisers have other weights by about as much as float32 rounds."""
    weights = [each for model in denoisers(subject.loaded.pipeline).values() for each in model.parameters()]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for index, weight in enumerate(weights):
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)).to(weight)
                weight.mul_(1 + ROUNDING * noise)
        return subject.run()
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def _cancelled(subject: Subject, plain: SampleResult) -> dict[str, Any]:
    """Stop after the first step, and run again."""
    if not plain.step_seconds:
        return {"state": "declined", "reason": "it makes no steps"}

    def stop(progress: Any) -> None:
        if progress.stage == "denoise" and progress.done:
            raise _Cancelled

    try:
        subject.run(callbacks=Callbacks(stop))
    except _Cancelled:
        pass
    except Exception as error:  # noqa: BLE001
        return {"state": "fails", "reason": f"{type(error).__name__} instead of a cancel: {first_line(error)[:200]}"}
    else:
        return {"state": "fails", "reason": "it ran to its end"}
    again = subject.run()
    return {"state": "works"} if _same(again, plain) else {"state": "fails", "reason": "the next run differs"}


def _same(result: SampleResult, plain: SampleResult) -> bool:
    return torch.equal(_numbers(result), _numbers(plain))


def _difference(result: SampleResult, plain: SampleResult) -> float:
    ours, theirs = _numbers(result), _numbers(plain)
    return largest_difference(ours, theirs) if ours.shape == theirs.shape else float("inf")


def _numbers(result: SampleResult) -> torch.Tensor:
    return result.outcome.float().nan_to_num(0, 1, 0)
