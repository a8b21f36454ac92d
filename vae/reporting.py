"""The report of a decode or encode: one record for each optimization that a video VAE can have."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from ..memory import GIB, conv3d_memory_defect
from ..report import OptimizationRecord, OptimizationReport
from .cuda_graphs import GraphedNetwork
from .engine import Job
from .network.convolution import CHOICE
from .network.temporal import CHOICE as TEMPORAL_CHOICE
from .planner import Plan, overlap_refusal
from .processor_layouts import block_frames
from .settings import VaeSettings


def describe(
    report: OptimizationReport, job: Job, asked: VaeSettings, *, budget_origin: str, not_compiled: str
) -> None:
    """Write the records and facts of a finished job into the report.

    Args:
        asked: the caller's settings; the job's own may do without a compiler.
        budget_origin: where the memory budget comes from.
        not_compiled: what went wrong with compiling, or "".
    """
    vae, settings, plan, kernels = job.vae, job.settings, job.plan, job.kernels
    layout = plan.layout
    if plan.tiles:
        applied = f"tiles of {' x '.join(map(str, plan.tiles))}, overlap {settings.tile_overlap}, {settings.blending}"
    elif layout.uncut:
        applied = "whole planes"
    else:
        applied = "exact strips"
    report.set(OptimizationRecord("spatial", settings.mode, applied, plan.reason, _peak(plan, budget_origin)))
    frames = layout.tail_frames or "all"
    size = str(settings.temporal_slice or "auto")
    applied = f"{plan.temporal_slice} latent frame(s) per slice, {frames} frames at a time at full resolution"
    report.set(OptimizationRecord("temporal_slices", size, applied))
    report.set(_overlap_record(settings, plan, vae.device))
    record = _compile_record(settings, asked, plan, not_compiled)
    time = job.compile_time
    record = _judged(record, job)
    report.set(replace(record, cost=_compile_cost(job)))
    if time is not None:
        time.add(job.compilations)
    report.set(OptimizationRecord("precision", "as loaded", str(vae.dtype).removeprefix("torch.")))
    used = ", ".join(f"{operation}: {name}" for operation, name in kernels.used.items())
    reason = "; ".join(f"{name}: {why}" for name, why in kernels.refusals().items())
    report.set(OptimizationRecord("kernels", settings.kernels, used or "PyTorch operations", reason))
    if vae.device.type == "cuda":
        active = conv3d_memory_defect() and vae.dtype != torch.float32
        applied = "cuDNN called directly" if active else "not needed"
        report.set(OptimizationRecord("cudnn_conv3d", "auto", applied, f"cuDNN {torch.backends.cudnn.version()}"))
        report.set(_convolution_record(settings))
    elif vae.device.type == "cpu":
        report.set(_temporal_record(job))
    report.set(_graphs_record(job))
    for note in job.notes:
        report.note(note)
    report.facts["vae"] = "causal 3D video VAE"
    report.facts["stage"] = job.task.stage
    report.facts["device"] = str(vae.device)
    report.facts["torch"] = torch.__version__
    report.facts["estimated_peak_gib"] = round(plan.peak / GIB, 3)


def _peak(plan: Plan, budget_origin: str) -> str:
    allowed = f"{plan.budget / GIB:.2f} GiB allowed ({budget_origin})"
    return f"about {plan.peak / GIB:.2f} GiB above weights and output, of {allowed}"


def _compile_record(settings: VaeSettings, asked: VaeSettings, plan: Plan, not_compiled: str) -> OptimizationRecord:
    if asked.compile is None:
        return OptimizationRecord("torch_compile", "off", "off")
    if settings.compile is None:
        reason = not_compiled or "slices are recorded as they are, without a compiler: see cuda_graphs"
        return OptimizationRecord("torch_compile", "on", "off", reason, failed=bool(not_compiled))
    options = ", ".join(f"{k}={v}" for k, v in settings.compile.items()) or "defaults"
    if settings.compile_scope == "blocks":
        return OptimizationRecord("torch_compile", options, "repeated units, for any size")
    if plan.layout.uncut:
        return OptimizationRecord("torch_compile", options, "one graph per slice")
    reason = "strips would become one huge graph; whole planes compile: mode whole, or scope blocks"
    return OptimizationRecord("torch_compile", options, "off", reason, failed=True)


def _judged(record: OptimizationRecord, job: Job) -> OptimizationRecord:
    """The record of compiled code, with what its speed was found to be; "off" where plain code took its place."""
    if job.watch is None or not job.watch.trials:
        return record
    trials = job.watch.trials
    reason = "; ".join(dict.fromkeys(str(trial) for trial in trials if trial.plain))
    if all(trial.reverted for trial in trials):
        return replace(record, applied="off", reason=reason)
    return replace(record, reason=reason)


def _compile_cost(job: Job) -> str:
    """The seconds that a warm decode does without: of compiling, and of runs to compare with."""
    last = None if job.compile_time is None else job.compile_time.last
    checking = job.compilations.checking
    told = [job.compilations.told(last), f"checking it against plain code took {checking:.1f} s" if checking else ""]
    return "; ".join(text for text in told if text)


def _graphs_record(job: Job) -> OptimizationRecord:
    """The record of the CUDA graphs."""
    network = job.network
    if not job.settings.cuda_graphs:
        return OptimizationRecord("cuda_graphs", "off", "off")
    if not isinstance(network, GraphedNetwork):
        return OptimizationRecord("cuda_graphs", "on", "off", "there is no CUDA device", failed=True)
    if not network.replays:
        reason = network.refused or "the clip has too few slices"
        return OptimizationRecord("cuda_graphs", "on", "off", reason, failed=bool(network.refused))
    held = f"{network.most_bytes / GIB:.2f} GiB held meanwhile"
    return OptimizationRecord("cuda_graphs", "on", f"{network.replays} slices replayed", network.refused, held)


def _overlap_record(settings: VaeSettings, plan: Plan, device: torch.device) -> OptimizationRecord:
    """The record of two tiles at a time."""
    refusal = overlap_refusal(settings, device)
    if not settings.overlap_tiles:
        return OptimizationRecord("overlap_tiles", "off", "off")
    if plan.tiles_at_a_time > 1:
        return OptimizationRecord("overlap_tiles", "on", f"{plan.tiles_at_a_time} tiles at a time")
    if not (plan.tiles or refusal):
        return OptimizationRecord("overlap_tiles", "on", "off", "planes are not cut into tiles")
    reason = refusal or "the clip is one tile, or two do not fit the memory"
    return OptimizationRecord("overlap_tiles", "on", "off", reason, failed=bool(refusal))


def _convolution_record(settings: VaeSettings) -> OptimizationRecord:
    """The record of the convolutions chosen in this process, and why others were not."""
    other = "" if settings.convolution == "auto" else f"{settings.convolution} is for a processor"
    if settings.kernels != "auto":
        return OptimizationRecord("convolution", settings.kernels, "conv3d", other)
    asked = "auto, float16 sums" if settings.fp16_accumulation else "auto"
    applied = ", ".join(f"{name}: {shapes} shapes" for name, shapes in CHOICE.used().items())
    refused = [f"{name}, {where}: {why}" for (name, where), why in CHOICE.refusals.items()]
    return OptimizationRecord("convolution", asked, applied or "conv3d", "; ".join(filter(None, [other, *refused])))


def _why_no_blocks(job: Job) -> str:
    """Why no convolution over time may make several frames at once, or "" where nobody asked for it."""
    settings = job.settings
    if settings.kernels != "auto":
        asked = settings.convolution == "fast"
        return f"kernels {settings.kernels} convolve by PyTorch's conv3d alone" if asked else ""
    if settings.convolution == "auto" and job.vae.dtype != torch.float32:
        return "half precision would round more often: fast allows it"
    return "memory is too short for it" if block_frames(job.vae, settings.kernels, settings.convolution) else ""


def _temporal_record(job: Job) -> OptimizationRecord:
    """The record of how convolutions over time were computed on a processor."""
    settings, temporal = job.settings, job.temporal
    asked = settings.convolution if settings.kernels == "auto" else settings.kernels
    ways = Counter[str]()
    for (_, taps, most), count in temporal.used.items():
        ways[f"temporal Winograd F({most},{taps})" if most else "conv3d where it is as fast"] += count
    if not ways:
        reason = "too few channels, or a single frame at a time" if temporal.most else _why_no_blocks(job)
        return OptimizationRecord("convolution", asked, "conv3d", reason)
    applied = ", ".join(f"{way}: {count} convolutions" for way, count in sorted(ways.items(), reverse=True))
    kept = temporal.kernels.nbytes()
    cost = f"{kept / GIB:.2f} GiB of transformed kernels kept" if kept else "kernels transformed for each use"
    reason = "; ".join(f"{kind}: {why}" for kind, why in TEMPORAL_CHOICE.refusals.items())
    return OptimizationRecord("convolution", asked, applied, reason, cost)
