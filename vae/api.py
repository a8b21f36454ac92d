"""Decode and encode: checks, plan, run, fallback, report. What nodes and the command line call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ..callbacks import SILENT, Callbacks
from ..compile_clock import Compilations
from ..errors import InputError
from ..memory import GIB, conv3d_memory_defect, release_cache
from ..report import OptimizationReport
from .compiled import CompiledCodeError, with_our_graphs
from .config import VaeConfig
from .engine import HalfPrecisionOverflowError, Job
from .network.model import VideoVAE
from .planner import Task, budget_of, decoding, encoding, make_plan
from .reporting import describe
from .settings import VaeSettings

OVERRULED = "compiled against the memory check, which is off as asked"
RETRIES = 4
"""Attempts after the first, each with half the memory, when the device runs out of it."""


def decode(
    vae: VideoVAE,
    latents: torch.Tensor,
    settings: VaeSettings | None = None,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
    *,
    num_frames: int | None = None,
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode latents to frames.

    Args:
        latents: [B, 16, T', H', W'] as a diffusion model gives them; the VAE's scaling is undone here.
        settings: how; None for the defaults.
        callbacks: told after every slice of every tile, and asked whether to stop.
        output_device: where the frames are put together.
        num_frames: frames to keep, when padding was encoded along; None keeps all 4 (T' - 1) + 1.

    Returns:
        frames, float32 [B, T, 8 H', 8 W', 3] in 0..1, and the report of what was active.

    Raises:
        InputError: bad latents or settings. torch.OutOfMemoryError: even the smallest strips did not fit.
    """
    _check_latents(latents, vae.config)
    config, report = vae.config, OptimizationReport()
    batch, channels, made, height, width = config.decoded_shape(latents.shape)
    if num_frames is not None and not 0 < num_frames <= made:
        raise InputError("num_frames", num_frames, f"these latents hold {made} frames", f"use 1 to {made}")
    frames = torch.empty((batch, made, height, width, channels), device=output_device)
    out = frames.permute(0, 4, 1, 2, 3)
    unscale = lambda z: z / config.scaling_factor + config.shifting_factor
    _run(vae, decoding(config), latents, out, unscale, settings or VaeSettings(), callbacks, report)
    frames.mul_(0.5).add_(0.5).clamp_(0, 1)
    if num_frames is not None and num_frames < made:
        report.note(f"{made - num_frames} padding frames cut off behind frame {num_frames}")
        frames = frames[:, :num_frames]
    report.facts["size"] = f"{width}x{height}x{frames.shape[1]}"
    return frames, report


def decode_raw(
    vae: VideoVAE,
    latents: torch.Tensor,
    settings: VaeSettings | None = None,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, OptimizationReport]:
    """The decoder alone: unscaled latents [B, 16, T', H', W'] to pixels, float32 [B, 3, T, H, W], not clamped."""
    _check_latents(latents, vae.config)
    out = torch.empty(vae.config.decoded_shape(latents.shape), device=output_device)
    report = OptimizationReport()
    _run(vae, decoding(vae.config), latents, out, lambda z: z, settings or VaeSettings(), callbacks, report)
    return out, report


def encode(
    vae: VideoVAE,
    frames: torch.Tensor,
    settings: VaeSettings | None = None,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode frames to latents: the mean of the distribution, scaled as a diffusion model expects it.

    Args:
        frames: [B, T, H, W, 3] in 0..1. A clip of other than 4n + 1 frames is padded with its own last frames,
            mirrored, and the report says so; `frame_rule="strict"` refuses it instead.

    Returns:
        latents, float32 [B, 16, T', H // 8, W // 8], and the report; `report.facts["frames"]` is the unpadded number,
        for `decode(..., num_frames=)`.

    Raises:
        InputError: bad frames or settings. torch.OutOfMemoryError: even the smallest strips did not fit.
    """
    _check_frames(frames, vae.config)
    config, settings, report = vae.config, settings or VaeSettings(), OptimizationReport()
    pixels = _pad_frames(frames.permute(0, 4, 1, 2, 3), vae, settings, report)
    batch, _, length, height, width = pixels.shape
    factor = config.spatial_factor
    for name, size in (("height", height), ("width", width)):
        if size % factor:
            report.note(f"{name} {size}: the last {size % factor} pixels have no latent cell of their own")
    shape = (batch, config.latent_channels, config.latent_frames(length), height // factor, width // factor)
    latents = torch.empty(shape, device=output_device)
    _run(vae, encoding(config), pixels, latents, lambda x: x * 2 - 1, settings, callbacks, report)
    report.facts["frames"] = frames.shape[1]
    report.facts["size"] = f"{width}x{height}x{frames.shape[1]}"
    return latents.sub_(config.shifting_factor).mul_(config.scaling_factor), report


def encode_raw(
    vae: VideoVAE,
    pixels: torch.Tensor,
    settings: VaeSettings | None = None,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, OptimizationReport]:
    """The encoder alone: pixels [B, 3, 4n + 1, H, W] in -1..1 to moments, float32 [B, 32, n + 1, H', W'].

    The first 16 channels are means, the others log variances, not clamped.
    """
    _check_frames(pixels.permute(0, 2, 3, 4, 1) if pixels.ndim == 5 else pixels, vae.config)
    config, report = vae.config, OptimizationReport()
    strict = replace(settings or VaeSettings(), frame_rule="strict")
    pixels = _pad_frames(pixels, vae, strict, report)
    batch, _, length, height, width = pixels.shape
    factor, place = config.spatial_factor, strict.blending == "reference" and strict.mode == "tiles"
    size = (-(-height // factor), -(-width // factor)) if place else (height // factor, width // factor)
    shape = (batch, 2 * config.latent_channels, config.latent_frames(length), *size)
    out = torch.empty(shape, device=output_device)
    _run(vae, encoding(config), pixels, out, lambda x: x, strict, callbacks, report)
    return out, report


def _pad_frames(pixels: torch.Tensor, vae: VideoVAE, settings: VaeSettings, report: OptimizationReport) -> torch.Tensor:
    """Make a clip [B, 3, T, H, W] 4n + 1 frames long: its last frames again, in reverse order, the very last left out.

    Raises:
        InputError: the settings are strict about it.
    """
    length, factor = pixels.shape[2], vae.config.temporal_factor
    missing = -(length - 1) % factor
    if not missing:
        return pixels
    if settings.frame_rule == "strict":
        below, above = length - (length - 1) % factor, length + missing
        reason = f"a clip has {factor}n + 1 frames"
        raise InputError("frames", length, reason, f"use {below} or {above} frames, or frame_rule pad")
    mirror = [*range(length - 2, -1, -1), *range(1, length)] or [0]
    order = [*range(length), *(mirror[i % len(mirror)] for i in range(missing))]
    report.note(f"padded from {length} to {length + missing} frames ({factor}n + 1) with the last frames, mirrored")
    return pixels[:, :, order]


def _run(
    vae: VideoVAE,
    task: Task,
    x: torch.Tensor,
    out: torch.Tensor,
    read: Callable[[torch.Tensor], torch.Tensor],
    settings: VaeSettings,
    callbacks: Callbacks,
    report: OptimizationReport,
) -> None:
    """Plan and run: again with less memory, without compiled code, or in bfloat16, where the first attempt fails."""
    started = time.perf_counter()
    asked, loaded, compilations = settings, vae, Compilations()
    settings, not_compiled = on_device(settings, vae.device, vae.dtype, report)
    budget, origin, attempt = 0, "", 0
    shortage: torch.OutOfMemoryError | None = None
    while True:
        if vae.dtype == torch.float16 and task.stage in loaded.overflowed:
            vae = loaded.in_bfloat16()
            report.note(f"values beyond float16's range: {task.stage}d in bfloat16 instead")
        if not budget:  # what is free beside the copy in bfloat16
            budget, origin = budget_of(settings, vae.device)
        try:
            plan = make_plan(vae, task, tuple(x.shape[1:]), settings, budget)
        except InputError:
            if shortage is not None:  # nobody asked for this budget: it is what running out of memory left
                raise shortage from None
            raise
        headroom = int(settings.compile_headroom_gib * GIB)
        overruled = settings.compile is not None and not settings.compile_memory_check
        if overruled and not settings.memory_budget_gib and plan.peak + headroom > budget:
            needed = (
                f"about {plan.peak / GIB:.2f} GiB above weights and output, and {headroom / GIB:g} for compiled code"
            )
            report.note(f"{OVERRULED}: it needs {needed}, of {budget / GIB:.2f} allowed")
        try:
            job = Job(vae, task, settings, plan, read, callbacks, compilations=compilations)
            job.run(x, out)
            break
        except torch.OutOfMemoryError as error:
            attempt += 1
            if attempt > RETRIES or settings.mode == "whole":
                raise
            shortage = error.with_traceback(None)
            budget = plan.peak // 2
            report.note(f"out of memory with an estimated {plan.peak / GIB:.2f} GiB: retried with half of it")
        except CompiledCodeError as error:
            not_compiled = f"it failed, so that plain code ran: {error}"
            settings = replace(settings, compile=None)
        except HalfPrecisionOverflowError:
            loaded.overflowed.add(task.stage)
        # Outside the handlers, where the traceback no longer keeps the failed attempt's tensors alive.
        gc.collect()
        release_cache(vae.device)
    if vae.device.type == "cuda":
        torch.cuda.synchronize(vae.device)
    describe(report, job, asked, budget_origin=origin, not_compiled=not_compiled)
    report.timed({task.stage: round(time.perf_counter() - started, 3)})


def on_device(
    settings: VaeSettings, device: torch.device, dtype: torch.dtype, report: OptimizationReport
) -> tuple[VaeSettings, str]:
    """The settings as a device can have them, and why nothing is compiled, "" where it is or was not asked for."""
    if device.type != "cuda":
        return settings, ""
    ours = with_our_graphs(settings)
    if ours is not settings:
        report.note("CUDA graphs are recorded by the VAE itself, not by the compiler")
    if ours.compile is None or dtype == torch.float32 or not conv3d_memory_defect():
        return ours, ""
    reason = "compiled convolutions take three times the memory with this cuDNN; 9.15 cures it"
    if ours.compile_memory_check:
        return replace(ours, compile=None), reason
    report.note(f"{OVERRULED}: {reason}")
    return ours, ""


def _check_latents(latents: torch.Tensor, config: VaeConfig) -> None:
    """Raise InputError unless `latents` is a floating [B, 16, T, H, W] without NaN or Inf."""
    _check_dimensions("latents", latents, "[batch, channels, frames, height, width]", "latents[:, :, None]")
    if latents.shape[1] != config.latent_channels:
        reason = f"this VAE decodes latents of {config.latent_channels} channels, not {latents.shape[1]}"
        raise InputError("latents", list(latents.shape), reason, "use the VAE that belongs to the model")
    _check_values("latents", latents)


def _check_frames(frames: torch.Tensor, config: VaeConfig) -> None:
    """Raise InputError unless `frames` is a floating [B, T, H, W, 3] without NaN or Inf, at least 8 x 8 pixels."""
    _check_dimensions("frames", frames, "[batch, frames, height, width, channels]", "frames[None] for one clip")
    if frames.shape[-1] != config.in_channels:
        reason = f"the last axis holds the {config.in_channels} colour channels, not {frames.shape[-1]}"
        raise InputError("frames", list(frames.shape), reason, "drop the alpha channel: frames[..., :3]")
    smallest = config.spatial_factor
    if min(frames.shape[2:4]) < smallest:
        reason = f"a frame is at least {smallest} x {smallest} pixels"
        raise InputError("frames", list(frames.shape), reason, "scale the frames up")
    _check_values("frames", frames)


def _check_dimensions(name: str, tensor: torch.Tensor, meaning: str, cure: str) -> None:
    if tensor.ndim != 5:
        reason = f"it has {tensor.ndim} axes and needs the 5 of {meaning}"
        raise InputError(name, list(tensor.shape), reason, f"add the missing axis, e.g. {cure}")
    if not tensor.numel():
        raise InputError(name, list(tensor.shape), "it is empty", "check what produced it")
    if not tensor.is_floating_point():
        raise InputError(name, str(tensor.dtype), "it must hold floating-point numbers", f"convert it: {name}.float()")


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """NaN and Inf would come out as black frames; say so instead, and where."""
    for item in range(tensor.shape[0]):
        finite = torch.isfinite(tensor[item])
        if not bool(finite.all()):
            bad = int((~finite).sum())
            kind = "NaN" if bool(torch.isnan(tensor[item]).any()) else "Inf"
            place = [int(i) for i in (~finite).nonzero()[0]]
            reason = f"{bad} of its {tensor[item].numel()} values are not finite ({kind}, first at {[item, *place]})"
            cure = "the fault lies before the VAE: run the model in bfloat16 or float32, or check its attention"
            raise InputError(name, list(tensor.shape), reason, cure)
