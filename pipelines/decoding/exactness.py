"""How exactly a clip is decoded: diffusers' bits, or faster within a tolerance that is measured before it is trusted.

Fast arithmetic (several latent frames per step, norm and activation in one operation, channels-last activations) rounds
differently. How differently, and whether it is faster at all, depends on the weights, the shape and the machine, so the
first clip of a kind is tried both ways over its first frames. What differs by more than the tolerance, gives numbers
that are not finite, or is not faster, is not used, and the report says so with the figures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from ...callbacks import SILENT, Callbacks
from ...report import OptimizationRecord
from .streaming import STREAMING_FORMS, decode_streaming, refuse_streaming, stream_frames

if TYPE_CHECKING:
    import torch

    from ...memory import MemoryProbe
    from .fast_arithmetic import FastArithmetic

BIT_IDENTICAL, FAST = "bit-identical", "fast"
EXACTNESS_CHOICES = (BIT_IDENTICAL, FAST)
RECORD = "exactness"
"""Name of the record in the report."""

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that a pixel in 0..1 may have. In float32 that is a quarter of an 8-bit level; the 16-bit types
round so coarsely that two correct decodes differ by several."""
FASTER_BY = 0.03
"""Fast arithmetic must save this fraction of the time to be used."""
LATENT_FRAMES_PER_STEP = 2
SHARE_OF_MEMORY = 0.5
"""Part of the free memory that a whole decode may take where only the whole is bit-identical."""

Clock = Callable[[], float]


class Kind(NamedTuple):
    """What a trial holds for, with one VAE's weights."""

    device: str
    dtype: str
    batch: int
    height: int
    width: int
    step: int
    whole: bool


@dataclass(frozen=True)
class Trial:
    """What the first frames showed.

    Attributes:
        fast: the arithmetic to use, None for diffusers' own.
        difference: largest difference of a pixel in 0..1.
        speedup: seconds of diffusers' arithmetic over seconds of the fast.
        frames: latent frames that were compared.
        seconds: what trying took.
        refusal: why fast arithmetic is not used, or "".
    """

    fast: FastArithmetic | None
    difference: float
    speedup: float
    frames: int
    seconds: float
    refusal: str = ""


_trials: WeakKeyDictionary[Any, dict[Kind, Trial]] = WeakKeyDictionary()
_guard = threading.Lock()


def whole_is_exact_and_fits(vae: Any, latents: torch.Tensor, memory: MemoryProbe | None = None) -> bool:
    """Whether to leave a clip to `vae.decode`: streaming would round differently, and there is room to spare."""
    from ...memory import device_memory
    from ...optimizations.decode_memory import decode_cost
    from ...optimizations.settings import Workload
    from .streaming import temporal_factor

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
        callbacks: told of every latent frame; a cancel takes effect between runs, also while fast and plain arithmetic
            are compared. Nothing but the finished comparison outlives a decode.
        whole: what would run otherwise is `vae.decode`; else it is `decode_bit_identical`.
        step: latent frames per run.
        clock: seconds, for the comparison.

    Returns:
        Frames [B, 3, T, H, W] in -1..1 on the CPU, and the record: what ran, why, and the measured difference.
    """
    import torch

    reason = _refuse(vae, latents, step)
    if reason:
        return _plain(vae, latents, callbacks, whole, reason)
    trial = _trial(vae, latents, callbacks, whole, step, clock)
    if trial.fast is None:
        return _plain(vae, latents, callbacks, whole, trial.refusal, _cost(trial))
    failure = ""
    try:
        pixels = decode_streaming(vae, latents, callbacks=callbacks, latent_frames_per_step=step, fast=trial.fast)
        if not torch.isnan(pixels).any() or torch.isnan(latents).any():
            return pixels, _fast_record(trial, step)
        failure = "it gave numbers that are not finite"
    except torch.OutOfMemoryError:
        failure = f"out of memory with {step} latent frames at a time"
    # Outside the except block: the error holds the frames of the failed decode, and they hold its tensors.
    return _plain(vae, latents, callbacks, whole, failure, _cost(trial))


def _refuse(vae: Any, latents: torch.Tensor, step: int) -> str:
    form = STREAMING_FORMS[type(vae).__name__]
    reason = refuse_streaming(vae) or form.refuse_fast(vae)
    if not reason and latents.shape[2] < _compared(step):
        reason = f"with fewer than {_compared(step)} latent frames, comparing takes longer than it can save"
    return reason


def _compared(step: int) -> int:
    """Latent frames that both ways decode: the first alone, then two runs."""
    return 1 + 2 * step


def _plain(
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
    reason = "diffusers decodes whole clips with this VAE, for which the memory is short; frame by frame it rounds anew"
    return OptimizationRecord(RECORD, requested, "within rounding, frame by frame", reason)


def _fast_record(trial: Trial, step: int) -> OptimizationRecord:
    assert trial.fast is not None  # noqa: S101 - for the type checker
    layout = "channels-last, " if trial.fast.channels_last else ""
    norm = trial.fast.kernels.used.get("rms_norm_silu", "eager")
    reason = f"{trial.speedup:.2f}x faster in the comparison"
    return OptimizationRecord(
        RECORD, FAST, f"fast: {step} latent frames at a time, {layout}fused norm ({norm})", reason, _cost(trial)
    )


def _cost(trial: Trial) -> str:
    compared = f"in {trial.frames} latent frames that were decoded both ways, once, in {trial.seconds:.1f} s"
    return f"pixels (0..1) differ by {trial.difference:.1e} at most, {compared}"


def _trial(vae: Any, latents: torch.Tensor, callbacks: Callbacks, whole: bool, step: int, clock: Clock) -> Trial:
    batch, _, _, height, width = latents.shape
    kind = Kind(str(latents.device), str(latents.dtype).removeprefix("torch."), batch, height, width, step, whole)
    with _guard:
        known = _trials.get(vae, {}).get(kind)
    if known is None:
        known = _compare(vae, latents[:1, :, : _compared(step)], callbacks, whole, step, clock)
        with _guard:
            _trials.setdefault(vae, {})[kind] = known
    return known


def _compare(vae: Any, latents: torch.Tensor, callbacks: Callbacks, whole: bool, step: int, clock: Clock) -> Trial:
    """Decode a few frames with diffusers' arithmetic and with each fast one; the fastest that is close enough wins."""
    import torch

    from ...vae.kernels import Kernels
    from .fast_arithmetic import FastArithmetic

    started = clock()
    refusals: list[str] = []
    best: tuple[float, float, FastArithmetic] | None = None
    smallest = float("nan")
    with torch.no_grad():
        plain = _in_one_run(vae) if whole else partial(stream_frames, vae)
        short = latents[:, :, : 1 + step]  # runs of every length that is timed
        plain_seconds, expected = _timed(plain, latents, latents if whole else short, callbacks, clock)
        for channels_last in (True, False):
            fast = FastArithmetic(Kernels(), channels_last)
            fast_stream = partial(stream_frames, vae, latent_frames_per_step=step, fast=fast)
            try:
                seconds, actual = _timed(fast_stream, latents, short, callbacks, clock)
            except torch.OutOfMemoryError:
                refusals.append(f"out of memory with {step} latent frames at a time")
                continue
            difference = _pixel_difference(actual, expected)
            smallest = difference if not smallest <= difference else smallest
            tolerance = TOLERANCE.get(str(latents.dtype).removeprefix("torch."), 0.0)
            if not difference <= tolerance:  # NaN fails too
                refusals.append(f"pixels (0..1) differ by {difference:.1e}, more than the {tolerance:.0e} allowed")
            elif seconds > plain_seconds * (1 - FASTER_BY):
                refusals.append(f"it measured {plain_seconds / seconds:.2f}x as fast here, which is no gain")
            elif best is None or seconds < best[0]:
                best = (seconds, difference, fast)
            del actual
    taken = clock() - started
    frames = latents.shape[2]
    if best is None:
        return Trial(None, smallest, 1.0, frames, taken, refusals[-1])
    seconds, difference, fast = best
    return Trial(fast, difference, plain_seconds / seconds, frames, taken)


def _in_one_run(vae: Any) -> Callable[[torch.Tensor], Iterator[torch.Tensor]]:
    return lambda latents: iter([vae.decode(latents, return_dict=False)[0]])


def _timed(
    stream: Callable[[torch.Tensor], Iterator[torch.Tensor]],
    latents: torch.Tensor,
    short: torch.Tensor,
    callbacks: Callbacks,
    clock: Clock,
) -> tuple[float, torch.Tensor]:
    """Seconds and frames of one decode, after that of `short`, which pays for what only first calls cost."""
    _gather(stream(short), callbacks)
    _wait(latents.device)
    before = clock()
    frames = _gather(stream(latents), callbacks)
    _wait(latents.device)
    return clock() - before, frames


def _gather(runs: Iterator[torch.Tensor], callbacks: Callbacks) -> torch.Tensor:
    import torch

    frames = []
    for run in runs:
        frames.append(run.cpu())
        del run
        callbacks.check_cancel()
    return torch.cat(frames, dim=2)


def _pixel_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in 0..1; NaN where only one of the two is a number."""
    import torch

    difference = (actual.float().clamp(-1, 1) - expected.float().clamp(-1, 1)).abs() / 2
    both = torch.isnan(actual) & torch.isnan(expected)
    return float(difference.masked_fill(both, 0.0).max())


def _wait(device: torch.device) -> None:
    import torch

    if device.type in ("cuda", "xpu", "mps"):
        arguments = () if device.type == "mps" else (device,)
        getattr(torch, device.type).synchronize(*arguments)
