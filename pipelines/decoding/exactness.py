"""How exactly a clip is decoded: diffusers' bits, or faster within a tolerance that is measured before it is trusted.

Fast arithmetic (several latent frames per step, norm and activation in one operation, channels-last activations) rounds
differently. How differently, and whether it is faster at all, depends on the weights, the shape and the machine, so the
first frames are decoded both ways first (`fast_comparison.py`). What differs by more than the tolerance, gives numbers
that are not finite, or is not faster, is not used, and the report says so with the figures.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...report import OptimizationRecord
from .fast_comparison import Clock, Comparison, compare, compared_frames
from .streaming import STREAMING_FORMS, decode_streaming, refuse_streaming, temporal_factor

if TYPE_CHECKING:
    import torch

    from ...memory import MemoryProbe

BIT_IDENTICAL, FAST = "bit-identical", "fast"
EXACTNESS_CHOICES = (BIT_IDENTICAL, FAST)
RECORD = "exactness"
"""Name of the record in the report."""

LATENT_FRAMES_PER_STEP = 2
SHARE_OF_MEMORY = 0.5
"""Part of the free memory that a whole decode may take where only the whole is bit-identical."""


def whole_is_exact_and_fits(vae: Any, latents: torch.Tensor, memory: MemoryProbe | None = None) -> bool:
    """Whether to leave a clip to `vae.decode`: streaming would round differently, and there is room to spare."""
    from ...memory import device_memory
    from ...optimizations.decode_memory import decode_cost
    from ...optimizations.settings import Workload

    if STREAMING_FORMS[type(vae).__name__].bit_identical:
        return False
    cost = decode_cost(vae, clip=True)
    if cost is None:
        return False
    frames = 1 + (latents.shape[2] - 1) * temporal_factor(vae)
    ratio = vae.spatial_compression_ratio
    workload = Workload(latents.shape[4] * ratio, latents.shape[3] * ratio, frames)
    batch = 1 if getattr(vae, "use_slicing", False) else latents.shape[0]
    free = (memory or device_memory)(latents.device).free
    return cost.bytes(workload, latents.dtype, batch) <= SHARE_OF_MEMORY * free


def decode_bit_identical(
    vae: Any, latents: torch.Tensor, callbacks: Callbacks = SILENT
) -> tuple[torch.Tensor, OptimizationRecord]:
    """Stream with diffusers' arithmetic, one latent frame at a time. Arguments and frames as `decode_streaming`."""
    pixels = decode_streaming(vae, latents, callbacks=callbacks)
    return pixels, _streamed_record(vae, BIT_IDENTICAL)


def decode_fast(
    vae: Any,
    latents: torch.Tensor,
    callbacks: Callbacks = SILENT,
    *,
    whole: bool = False,
    step: int = LATENT_FRAMES_PER_STEP,
    clock: Clock = time.perf_counter,
) -> tuple[torch.Tensor, OptimizationRecord]:
    """Stream with fast arithmetic where it is close enough and faster than what would run otherwise.

    Args:
        vae, latents: as for `decode_streaming`, which must not refuse them.
        callbacks: told of every latent frame; a cancel takes effect between runs, also while fast and exact arithmetic
            are compared. Nothing but the finished comparison outlives a decode.
        whole: what would run otherwise is `vae.decode`; else it is `decode_bit_identical`.
        step: latent frames per run.
        clock: seconds, for the comparison.

    Returns:
        Frames [B, 3, T, H, W] in -1..1 on the CPU, and the record: what ran, why, and the measured difference.
    """
    import torch

    from ...fallback import is_out_of_memory

    reason = _refuse(vae, latents, step)
    if reason:
        return _decode_exactly(vae, latents, callbacks, whole, reason)
    comparison = compare(vae, latents, callbacks, whole, step, clock)
    if comparison.fast is None:
        return _decode_exactly(vae, latents, callbacks, whole, comparison.refusal, comparison.cost)
    failure = ""
    try:
        pixels = decode_streaming(vae, latents, callbacks=callbacks, latent_frames_per_step=step, fast=comparison.fast)
        if not torch.isnan(pixels).any() or torch.isnan(latents).any():
            return pixels, _fast_record(comparison, step)
        failure = "it gave numbers that are not finite"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = f"out of memory with {step} latent frames at a time"
    # Outside the except block: the error holds the frames of the failed decode, and they hold its tensors.
    return _decode_exactly(vae, latents, callbacks, whole, failure, comparison.cost)


def _refuse(vae: Any, latents: torch.Tensor, step: int) -> str:
    form = STREAMING_FORMS[type(vae).__name__]
    reason = refuse_streaming(vae) or form.refuse_fast(vae)
    if not reason and latents.shape[2] < compared_frames(step):
        reason = f"with fewer than {compared_frames(step)} latent frames, comparing takes longer than it can save"
    return reason


def _decode_exactly(
    vae: Any, latents: torch.Tensor, callbacks: Callbacks, whole: bool, reason: str, cost: str = ""
) -> tuple[torch.Tensor, OptimizationRecord]:
    import torch

    if not whole:
        pixels, _ = decode_bit_identical(vae, latents, callbacks)
        return pixels, not_fast(reason, applied=_streamed_record(vae, FAST).applied, cost=cost)
    callbacks.tick("decode", 0, 1)
    with torch.no_grad():
        pixels = vae.decode(latents, return_dict=False)[0]
    callbacks.tick("decode", 1, 1)
    return pixels, not_fast(reason, cost=cost)


def not_fast(reason: str, applied: str = BIT_IDENTICAL, cost: str = "") -> OptimizationRecord:
    """The record for fast arithmetic that was asked for and is not used."""
    return OptimizationRecord(RECORD, FAST, applied, reason, cost, failed=True)


def _streamed_record(vae: Any, requested: str) -> OptimizationRecord:
    if STREAMING_FORMS[type(vae).__name__].bit_identical:
        return OptimizationRecord(RECORD, requested, BIT_IDENTICAL, "frame by frame, with diffusers' arithmetic")
    from ...optimizations.decode_memory import decode_cost

    memory = "for which the memory is short" if decode_cost(vae, clip=True) else "in memory that is not known here"
    reason = f"diffusers decodes whole clips with this VAE, {memory}; frame by frame it rounds anew"
    return OptimizationRecord(RECORD, requested, "within rounding, frame by frame", reason)


def _fast_record(comparison: Comparison, step: int) -> OptimizationRecord:
    assert comparison.fast is not None  # noqa: S101 - for the type checker
    layout = "channels-last, " if comparison.fast.channels_last else ""
    norm = comparison.fast.kernels.used.get("rms_norm_silu", "eager")
    reason = f"{comparison.speedup:.2f}x faster in the comparison"
    return OptimizationRecord(
        RECORD, FAST, f"fast: {step} latent frames at a time, {layout}fused norm ({norm})", reason, comparison.cost
    )
