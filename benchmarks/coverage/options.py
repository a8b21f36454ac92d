"""Every optimization on a pipeline that equals bare diffusers without: does it run, how far is it off, is it undone."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch

from ...callbacks import Callbacks
from ...errors import first_line
from ...fallback import all_finite, largest_difference
from ...optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from ...pipelines.types import SampleResult
from .subject import Subject

TOLERANCE = 1e-3
"""Largest difference of a picture in 0..1 that an exact way of computing may make in float32."""
INEXACT = ("vae_tiling", "step_cache")
"""What changes the picture on purpose: only that it is finite and repeated bit for bit is asked of it."""


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
    if name in INEXACT:
        return found if all_finite(result.outcome) else {"state": "fails", "reason": "it ends in NaN"}
    return found if apart <= TOLERANCE else found | {"state": "fails", "reason": f"differs by {apart:.3g}"}


def _cancelled(subject: Subject, plain: SampleResult) -> dict[str, Any]:
    """Stop after the first step, and run again."""

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
