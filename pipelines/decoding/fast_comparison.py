"""Fast arithmetic against diffusers' over the first frames of a clip: how much it differs, and how much faster it is.

Both depend on the weights, the shape and the machine. The result is remembered for as long as the VAE lives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from ...callbacks import Callbacks
from .streaming import stream_frames

if TYPE_CHECKING:
    import torch

    from .fast_arithmetic import FastArithmetic

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that a pixel in 0..1 may have. In float32 that is a quarter of an 8-bit level; the 16-bit types
round so coarsely that two correct decodes differ by several."""
FASTER_BY = 0.03
"""Fast arithmetic must save this fraction of the time to be used."""

Clock = Callable[[], float]


class _Key(NamedTuple):
    """What a comparison holds for, with one VAE's weights."""

    device: str
    dtype: str
    batch: int
    height: int
    width: int
    step: int
    whole: bool


@dataclass(frozen=True)
class Comparison:
    """How fast arithmetic did over the first frames.

    Attributes:
        fast: the arithmetic to use, None for diffusers' own.
        difference: largest difference of a pixel in 0..1.
        speedup: seconds of diffusers' arithmetic over seconds of the fast.
        frames: latent frames that were compared.
        seconds: what the comparison took.
        refusal: why fast arithmetic is not used, or "".
    """

    fast: FastArithmetic | None
    difference: float
    speedup: float
    frames: int
    seconds: float
    refusal: str = ""

    @property
    def cost(self) -> str:
        """The difference and where it was measured, for the report."""
        compared = f"in {self.frames} latent frames that were decoded both ways, once, in {self.seconds:.1f} s"
        return f"pixels (0..1) differ by {self.difference:.1e} at most, {compared}"


_known: WeakKeyDictionary[Any, dict[_Key, Comparison]] = WeakKeyDictionary()
_guard = threading.Lock()


def compared_frames(step: int) -> int:
    """Latent frames that are decoded both ways: the first alone, then two runs."""
    return 1 + 2 * step


def compare(
    vae: Any, latents: torch.Tensor, callbacks: Callbacks, whole: bool, step: int, clock: Clock = time.perf_counter
) -> Comparison:
    """The comparison for this VAE and latents like these, made once.

    Args:
        vae, latents: as for `stream_frames`, of at least `compared_frames(step)` latent frames.
        callbacks: asked for a cancel after every run of frames.
        whole: fast arithmetic is compared with `vae.decode`; else with streaming one latent frame at a time.
        step: latent frames per run of fast arithmetic.
        clock: seconds.
    """
    batch, _, _, height, width = latents.shape
    key = _Key(str(latents.device), str(latents.dtype).removeprefix("torch."), batch, height, width, step, whole)
    with _guard:
        known = _known.get(vae, {}).get(key)
    if known is None:
        known = _compare(vae, latents[:1, :, : compared_frames(step)], callbacks, whole, step, clock)
        with _guard:
            _known.setdefault(vae, {})[key] = known
    return known


def _compare(vae: Any, latents: torch.Tensor, callbacks: Callbacks, whole: bool, step: int, clock: Clock) -> Comparison:
    """Decode a few frames with diffusers' arithmetic and with each fast one; the fastest that is close enough wins."""
    import torch

    from ...fallback import is_out_of_memory
    from ...vae.kernels import Kernels
    from .fast_arithmetic import FastArithmetic, most_frames

    started = clock()
    refusals: list[str] = []
    best: tuple[float, float, FastArithmetic] | None = None
    smallest = float("nan")
    with torch.no_grad():
        exact = _in_one_run(vae) if whole else partial(stream_frames, vae)
        short = latents[:, :, : 1 + step]  # runs of every length that is timed
        exact_seconds, expected = _timed(exact, latents, latents if whole else short, callbacks, clock)
        for channels_last in (True, False):
            fast = FastArithmetic(Kernels(), channels_last, most_frames(latents, channels_last=channels_last))
            fast_stream = partial(stream_frames, vae, latent_frames_per_step=step, fast=fast)
            try:
                seconds, actual = _timed(fast_stream, latents, short, callbacks, clock)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                refusals.append(f"out of memory with {step} latent frames at a time")
                continue
            difference = _pixel_difference(actual, expected)
            smallest = difference if not smallest <= difference else smallest
            tolerance = TOLERANCE.get(str(latents.dtype).removeprefix("torch."), 0.0)
            if not difference <= tolerance:  # NaN fails too
                refusals.append(f"pixels (0..1) differ by {difference:.1e}, more than the {tolerance:.0e} allowed")
            elif seconds > exact_seconds * (1 - FASTER_BY):
                refusals.append(f"it measured {exact_seconds / seconds:.2f}x as fast here, which is no gain")
            elif best is None or seconds < best[0]:
                best = (seconds, difference, fast)
            del actual
    taken = clock() - started
    frames = latents.shape[2]
    if best is None:
        return Comparison(None, smallest, 1.0, frames, taken, refusals[-1])
    seconds, difference, fast = best
    return Comparison(fast, difference, exact_seconds / seconds, frames, taken)


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
