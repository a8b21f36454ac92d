"""The front door: `apply` puts a pipeline into the state that settings ask for, whatever state it was in.

Each step knows its own original state and is undone by itself, so that applying A and then B is applying B. Steps whose
settings did not change do nothing. Loading, quantizing and LoRA come before all this, in `pipelines/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..callbacks import SILENT, Callbacks
from ..fallback import Signals
from ..memory import GIB, MemoryProbe, Need, device_memory, shortage
from ..report import OptimizationRecord, OptimizationReport
from . import attention, compile, offload, precision, projections, vae_memory
from .caching import step_cache
from .components import VaeOnly, denoisers, device_and_dtype, vae_of
from .quantization import sdnq
from .settings import OptimizationSettings, Workload

__all__ = ["active", "apply", "apply_to_vae", "revert", "switch_compile"]


def apply(
    pipeline: Any,
    settings: OptimizationSettings,
    *,
    device: torch.device | str | None = None,
    workload: Workload | None = None,
    callbacks: Callbacks = SILENT,
    memory: MemoryProbe | None = None,
) -> OptimizationReport:
    """Optimize a loaded pipeline in place. Idempotent, reversible, and quick: nothing is reloaded or compiled here.

    Args:
        pipeline: a diffusers pipeline.
        settings: what is asked for. What cannot be had is left out, and the report says why.
        device: where it computes; None takes the pipeline's own device.
        workload: what will be run, for the decisions behind "auto".
        callbacks: told about compilation, block by block, during the first run; may cancel it.
        memory: looks at the device's memory; None asks torch.

    Returns:
        One record per optimization, in the order of application.

    Raises:
        torch.OutOfMemoryError: the weights do not fit where the memory mode wants them.
    """
    device = _device(pipeline, device)
    workload = workload or Workload()
    look = memory or device_memory
    report = OptimizationReport()

    # In the order in which they build on each other. A new step gets its line here and its undoing in `revert`.
    matmul = sdnq.set_quantized_matmul(pipeline, settings.quantized_matmul, before_change=_free_layers)
    if matmul is not None:
        report.set(matmul)
    report.set(attention.use(pipeline, settings.attention, device))
    report.set(step_cache.enable(pipeline, settings.step_cache, workload.steps, settings, workload.controlled))
    _apply_memory_and_precision(pipeline, settings, report, device, workload, look)
    report.set(projections.use(pipeline, settings.fused_projections))
    report.set(
        switch_compile(pipeline, settings, report, device=device, workload=workload, callbacks=callbacks, memory=look)
    )
    return report


def apply_to_vae(
    pipeline: Any,
    settings: OptimizationSettings,
    *,
    device: torch.device | str | None = None,
    workload: Workload | None = None,
    callbacks: Callbacks = SILENT,
    memory: MemoryProbe | None = None,
) -> OptimizationReport:
    """The part of `apply` that a decode or an encode by itself needs; the denoisers stay as they are.

    What they were given (another attention, compiled code, a step cache) is there again at the next denoising run,
    and so is what is known of its failures. The decoder is compiled where `torch_compile` is "on" for it; otherwise it
    stays as it is. Arguments and errors are those of `apply`.
    """
    device, workload, look = _device(pipeline, device), workload or Workload(), memory or device_memory
    report = OptimizationReport()
    _apply_memory_and_precision(pipeline, settings, report, device, workload, look)
    if settings.torch_compile == "on" and settings.compile.compile_vae:
        decoder = VaeOnly(pipeline)
        refusal = _refuse_compile(pipeline, decoder, settings, device, workload, look, report)
        report.set(compile.use(decoder, settings, breaks="", refusal=refusal, signals=Signals(callbacks)))
    return report


def _apply_memory_and_precision(
    pipeline: Any,
    settings: OptimizationSettings,
    report: OptimizationReport,
    device: torch.device,
    workload: Workload,
    look: MemoryProbe,
) -> None:
    working = working_memory(pipeline, workload)
    report.set(offload.use(pipeline, settings.memory_mode, device, look(device), working, before_hooks=_own_weights))
    # The weights that the memory mode keeps on the device are there by now, so what is free is what a decode can have.
    for record in vae_memory.use(pipeline, settings.vae_tiling, workload, look(device)):
        report.set(record)
    for record in precision.records(pipeline, settings.precision, device):
        report.set(record)


def switch_compile(
    pipeline: Any,
    settings: OptimizationSettings,
    report: OptimizationReport,
    *,
    device: torch.device,
    workload: Workload,
    callbacks: Callbacks = SILENT,
    memory: MemoryProbe | None = None,
) -> OptimizationRecord:
    """The last step of `apply` by itself: compile, or undo it, also between two steps of a run.

    Args:
        report: of the other optimizations, which are in force already.
        pipeline, settings, device, workload, callbacks, memory: as for `apply`.
    """
    breaks, refusal = _what_breaks_graphs(settings, report), ""
    if settings.torch_compile != "off":
        look = memory or device_memory
        refusal = _refuse_compile(pipeline, pipeline, settings, device, workload, look, report, breaks)
    return compile.use(pipeline, settings, breaks=breaks, refusal=refusal, signals=Signals(callbacks))


@contextmanager
def active(
    pipeline: Any, settings: OptimizationSettings, report: OptimizationReport, *, vae_only: bool = False
) -> Iterator[None]:
    """Hold this around a run: switches that are global in torch are set, and put back however the run ends.

    Args:
        vae_only: the report is that of `apply_to_vae`.

    Afterwards `report` tells what really was active: compilation and attention can fail at their first use.
    """
    device = _device(pipeline, None)
    with ExitStack() as stack:
        stack.enter_context(precision.active(settings.precision, device))
        stack.enter_context(step_cache.running(pipeline, report))
        compiled = VaeOnly(pipeline) if vae_only else pipeline
        if compile.is_compiled(compiled):
            stack.enter_context(compile.environment(compiled, settings.compile))
        stack.enter_context(sdnq.sdnq_limits(pipeline))
        try:
            yield
        finally:
            compile.silence(compiled)
            _learn(compiled, settings, report)


def revert(pipeline: Any) -> None:
    """Undo everything: the pipeline is as it was loaded, and its weights are where the memory mode left them."""
    compile.restore(pipeline)
    precision.restore(pipeline)
    vae_memory.restore(pipeline)
    _free_layers(pipeline)
    step_cache.disable(pipeline)
    attention.restore(pipeline)
    sdnq.set_quantized_matmul(pipeline, "auto")


def _free_layers(pipeline: Any) -> None:
    """Undo what stands in the way of laying a layer's weights out anew."""
    offload.restore(pipeline)
    projections.restore(pipeline)


def _own_weights(pipeline: Any) -> None:
    """Undo what has laid weights out anew: hooks that move layers know the weights of when they were put on."""
    projections.restore(pipeline)
    precision.restore(pipeline)


def _learn(pipeline: Any, settings: OptimizationSettings, report: OptimizationReport) -> None:
    if attention.NAME in report:
        report.set(attention.record(pipeline, report[attention.NAME]))
    if compile.NAME in report:
        breaks = _what_breaks_graphs(settings, report)
        report.set(compile.record(pipeline, report[compile.NAME], settings.compile, breaks))


def _what_breaks_graphs(settings: OptimizationSettings, report: OptimizationReport) -> str:
    """What of all that is active keeps a module from being one graph, or ""."""
    if "step_cache" not in report:
        return ""  # a decode by itself
    if not report["step_cache"].applied.startswith("off"):
        return "step caching decides at run time what to compute"
    return offload.breaks_graphs(report["memory_mode"].applied, settings.compile.scope)


def _refuse_compile(
    pipeline: Any,
    compiled: Any,
    settings: OptimizationSettings,
    device: torch.device,
    workload: Workload,
    look: MemoryProbe,
    report: OptimizationReport,
    breaks: str = "",
) -> str:
    """Why not to compile `compiled`, which is the pipeline or its VAE alone; "" to go on.

    Either "auto" decided so, or compiled code would push the model out of memory. Who chose "on" and turned the memory
    check off has the last word on memory, and the report says so.
    """
    if settings.torch_compile == "auto":
        refusal = compile.auto_refusal(device.type, workload)
        if refusal:
            return refusal
    if compile.is_warm(compiled, settings.compile, breaks):
        return ""  # its memory is taken already
    mode = offload.mode_of(pipeline)
    needs = [
        Need("of weights still to come", offload.bytes_to_come(pipeline, mode, device)),
        Need("assumed for compiled code", compile.ASSUMED_OVERHEAD)
        if workload.compile_overhead is None
        else Need("measured for compiled code", workload.compile_overhead),
    ]
    short = shortage(look(device), needs, keep=int(settings.compile.headroom_gib * GIB))
    if short and settings.torch_compile == "on" and not settings.compile.memory_check:
        report.note(f"compiled against the memory check, which is off as asked: {short}")
        return ""
    return f"it would push the model out of memory: {short}" if short else ""


def working_memory(pipeline: Any, workload: Workload) -> int:
    """Bytes that a run needs beside the pipeline's weights: those of models that come beside it, and the decode's, at
    most what is assumed, because tiles shrink it."""
    vae = vae_of(pipeline)
    if vae is None or not workload.width:
        return offload.WORKING_MEMORY + workload.further_weights
    decode = vae_memory.estimate(vae, workload) or 0  # not known: what is assumed for a run
    return max(offload.WORKING_MEMORY, min(decode, 2 * offload.WORKING_MEMORY)) + workload.further_weights


def _device(pipeline: Any, device: torch.device | str | None) -> torch.device:
    """The device asked for, the one a memory mode has the pipeline compute on, or that of its denoiser's weights."""
    if device is not None:
        return torch.device(device)
    placed = offload.device_of(pipeline)
    if placed is not None:
        return placed
    models = list(denoisers(pipeline).values())
    return device_and_dtype(models[0])[0] if models else torch.device("cpu")
