"""Measures once for each kind of convolution on a processor whether blocks of frames are faster than conv3d.

A kind is channels, kernel, dtype and about the size of the plane. What is measured is a part of the very input at hand,
small beside a decode; its result must agree with conv3d's. What was chosen is saved for the same processor, number of
threads and versions.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...cache_folder import device_name
from ...fallback import describe
from .saved_choices import SavedChoices

__all__ = ["ERROR", "TemporalChoice", "TemporalKey", "cells_at_most", "processor_seconds"]

log = logging.getLogger(__name__)

Convolution = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None", tuple[int, ...]], torch.Tensor]
InBlocks = Callable[[torch.Tensor, torch.Tensor, int], Callable[[], torch.Tensor]]
"""Of (x, weight, frames of a block): the convolution, its kernels transformed already."""

MARGIN = 0.03
"""Blocks must be faster than conv3d by this fraction to be chosen."""
ERROR = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference from conv3d allowed, relative to the largest value: where a block of 4 in float32 differs by half
of that, conv3d itself differs by a third of it from an exact sum."""
FRAMES = 4
"""Output frames that are measured."""
WORK = 1 << 31
"""Multiplications of conv3d that are measured at most, where they make `FEWEST_CELLS`, times the bytes of a number: in
half precision more are made in the same time."""
FEWEST_CELLS = 128
FEWEST_COLUMNS = 16
"""Of what is measured, where the plane has so many: about square, it has the least around it, of which sums are made
too. Strips of a few rows made blocks look no faster than conv3d where whole planes are."""
ROUNDS = 3
"""At most. The first is slower for both, for blocks by a little more: they are never chosen for that."""
CLEAR = 1.1
"""Where blocks are so many times as fast as conv3d, no further round is needed."""


class TemporalKey(NamedTuple):
    """The kind of convolution that a choice holds for.

    Attributes: device: with its number of threads; weight: shape; cells: power of two below the plane's measured size.
    """

    device: str
    dtype: str
    weight: tuple[int, ...]
    cells: int
    most: int


def processor_seconds(function: Callable[[], object]) -> float:
    """Seconds that one thread works for a function: unlike those on the clock, they hold beside other work.

    More threads would count the time they wait for each other, which other work decides. Windows counts a thread's time
    too coarsely: there it is that on the clock.
    """
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = clock()
        function()
        return clock() - started
    finally:
        torch.set_num_threads(threads)


def cells_at_most(weight: torch.Tensor) -> int:
    """Cells of a plane that are measured."""
    return max(FEWEST_CELLS, WORK // (FRAMES * weight.nbytes))


class TemporalChoice:
    """Chooses the frames of a block, 0 for conv3d, for each kind of convolution.

    Args:
        conv3d: what runs unless blocks are faster, and what they are checked against.
        in_blocks: prepares a convolution by blocks.
        timer: seconds of a function.
        saved: where choices outlive the process.
    """

    def __init__(
        self,
        conv3d: Convolution,
        in_blocks: InBlocks,
        timer: Callable[[Callable[[], object]], float] = processor_seconds,
        saved: SavedChoices | None = None,
    ) -> None:
        self._conv3d = conv3d
        self._in_blocks = in_blocks
        self._timer = timer
        self._saved = saved
        self._chosen: dict[TemporalKey, int] = {}
        self._guard = threading.RLock()
        self.seconds: dict[TemporalKey, dict[int, float]] = {}
        """Seconds measured in this process, by frames of a block."""
        self.refusals: dict[str, str] = {}
        """Why blocks were refused, by kind."""

    def most(self, x: torch.Tensor, weight: torch.Tensor, allowed: int) -> int:
        """The frames of a block for a buffer [1, I, T, H, W] and a weight [O, I, taps, kh, kw]; 0 means conv3d."""
        cells = min(x.shape[3] * x.shape[4], cells_at_most(weight))
        dtype = str(x.dtype).removeprefix("torch.")
        key = TemporalKey(device_name(x.device), dtype, tuple(weight.shape), cells.bit_length(), allowed)
        chosen = self._chosen.get(key)
        if chosen is None:
            with self._guard:
                chosen = self._chosen.get(key)
                if chosen is None:
                    chosen = self._chosen[key] = self._choose(key, x, weight)
        return chosen

    def _choose(self, key: TemporalKey, x: torch.Tensor, weight: torch.Tensor) -> int:
        saved = self._saved.get(key) if self._saved else None
        candidates = [frames for frames in (4, 2) if frames <= key.most]
        if saved is not None and saved.isdigit() and int(saved) in (0, *candidates):
            return int(saved)
        part = _part(x, weight)
        best = 0
        try:
            for frames in candidates:  # the larger block has the fewer multiplications: the first that pays is taken
                if self._pays(key, frames, part, weight):
                    best = frames
                    break
        except torch.OutOfMemoryError as error:
            self.refusals["a comparison"] = describe(error)
            return 0
        if self._saved:
            self._saved.put(key, str(best))
        return best

    def _pays(self, key: TemporalKey, frames: int, part: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether blocks of that many frames agree with conv3d and are faster."""
        kind = f"F({frames},{weight.shape[2]}), {key.dtype} {'x'.join(map(str, key.weight))}"
        found = self.seconds.setdefault(key, {})
        found[0] = found[frames] = math.inf
        try:
            blocks = self._in_blocks(part, weight, frames)
            for _ in range(ROUNDS):
                expected = self._timed(found, 0, lambda: self._conv3d(part, weight, None, (1, 1, 1)))
                made = self._timed(found, frames, blocks)
                difference = float((made - expected).abs_().max()) / max(float(expected.abs().max()), 1e-30)
                if not difference <= ERROR.get(part.dtype, 0.0):  # NaN fails too
                    raise ValueError(f"it differs by {difference:.1e} of the largest value")
                if found[0] > found[frames] * CLEAR:
                    break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a library may fail in any way; conv3d remains
            self.refusals[kind] = describe(error)
            log.info("%s is not used: %s", kind, self.refusals[kind])
            return False
        return found[frames] < found[0] * (1 - MARGIN)

    def _timed(self, found: dict[int, float], frames: int, convolve: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a convolution makes; its seconds count where they are the fewest so far."""
        made: list[torch.Tensor] = []
        found[frames] = min(found[frames], self._timer(lambda: made.append(convolve())))
        return made[0]

    def used(self) -> dict[int, int]:
        """Return the number of kinds that each size of a block was chosen for."""
        found = list(self._chosen.values())
        return {frames: found.count(frames) for frames in dict.fromkeys(found)}


def _part(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A few frames, rows and columns of a buffer, its frames repeated where they are fewer, in memory of their own."""
    taps, high, wide = weight.shape[2:]
    cells = cells_at_most(weight)
    columns = min(x.shape[4] - wide + 1, max(FEWEST_COLUMNS, math.isqrt(cells)))
    rows = max(1, cells // columns)
    frames = [index % x.shape[2] for index in range(FRAMES + taps - 1)]
    part = x[:, :, frames, : rows + high - 1, : columns + wide - 1]
    return part.contiguous(memory_format=torch.channels_last_3d)
