"""Bringing finished frames to main memory while the card computes the next ones.

Frames are converted and put in the order of their destination on the card, in one pass; then a second stream moves
them as they lie in memory into a page-locked buffer, and from there they are copied on while the card computes. Without
a card it all comes down to a plain copy.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

log = logging.getLogger(__name__)


class FrameCopier(Protocol):
    """Copies frames to where they are put together."""

    def copy(self, target: torch.Tensor, frames: torch.Tensor) -> None:
        """Copy `frames` to `target`, of the same shape and any dtype and strides; may return before it is done.

        `frames` may be overwritten right after, by work on the current stream.
        """

    def finish(self) -> None:
        """Return when all copies are done."""


class PlainCopier:
    """Copies on the spot."""

    def copy(self, target: torch.Tensor, frames: torch.Tensor) -> None:
        target.copy_(frames)

    def finish(self) -> None:
        """Nothing is under way."""


class Lane(Protocol):
    """A way from a card to main memory beside the one that computes."""

    def start(self, target: torch.Tensor, staged: torch.Tensor) -> Callable[[], None]:
        """Begin a copy behind all that is queued so far; what comes back waits for its end."""

    def buffer(self, like: torch.Tensor) -> torch.Tensor | None:
        """Page-locked main memory of that shape and those strides, or None where the system gives none."""


class CudaLane:
    """A second stream of a CUDA card."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, target: torch.Tensor, staged: torch.Tensor) -> Callable[[], None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(staged, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        staged.record_stream(self._stream)
        return done.synchronize

    def buffer(self, like: torch.Tensor) -> torch.Tensor | None:
        try:
            return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, pin_memory=True)
        except RuntimeError as error:  # the system limits how much may be locked
            log.info("frames are copied without overlap: %s", error)
            return None


class _UnderWay(NamedTuple):
    """A copy that has been started.

    Attributes:
        wait: returns when it is done.
        staged: the frames on the card, kept alive until then.
        buffer, target: page-locked memory that is to be copied on, and where to.
    """

    wait: Callable[[], None]
    staged: torch.Tensor
    buffer: torch.Tensor
    target: torch.Tensor


class OverlappedCopier:
    """Copies beside the computation.

    Args:
        lane: the way.
        depth: copies that may be under way; each holds its frames on the card once, and a page-locked buffer of the
            same size. Further ones wait.
    """

    def __init__(self, lane: Lane, depth: int = 2) -> None:
        self._lane = lane
        self._depth = max(1, depth)
        self._under_way: deque[_UnderWay] = deque()
        self._idle: list[torch.Tensor] = []

    def copy(self, target: torch.Tensor, frames: torch.Tensor) -> None:
        while len(self._under_way) >= self._depth:
            self._settle()
        staged = torch.empty_strided(*dense(target), dtype=target.dtype, device=frames.device)
        staged.copy_(frames)
        buffer = self._reused(staged)
        if buffer is None:
            buffer = self._lane.buffer(staged)
        if buffer is None:
            target.copy_(staged)
        else:
            self._under_way.append(_UnderWay(self._lane.start(buffer, staged), staged, buffer, target))

    def finish(self) -> None:
        while self._under_way:
            self._settle()
        self._idle.clear()

    def _settle(self) -> None:
        """Wait for the oldest copy, and carry it on to its destination."""
        oldest = self._under_way.popleft()
        oldest.wait()
        oldest.target.copy_(oldest.buffer)
        self._idle.append(oldest.buffer)

    def _reused(self, staged: torch.Tensor) -> torch.Tensor | None:
        """A buffer of that shape and those strides that is free again."""
        for index, buffer in enumerate(self._idle):
            if (buffer.shape, buffer.stride(), buffer.dtype) == (staged.shape, staged.stride(), staged.dtype):
                return self._idle.pop(index)
        return None


def copier_for(source: torch.device, target: torch.device) -> FrameCopier:
    """What copies from `source` to `target`: beside the computation when frames leave a card for main memory."""
    overlaps = source.type == "cuda" and target.type == "cpu"
    return OverlappedCopier(CudaLane(source)) if overlaps else PlainCopier()


class Gathering:
    """Frames of consecutive runs put together in one tensor; those of one run leave their device while others are made.

    Args:
        total: frames to make room for.
        device: where they are put together.

    Attributes: written: frames so far.
    """

    def __init__(self, total: int, device: torch.device | str = "cpu") -> None:
        self.written = 0
        self._total, self._device = total, device
        self._whole: torch.Tensor | None = None
        self._copier: FrameCopier = PlainCopier()

    def add(self, run: torch.Tensor) -> None:
        """Take the next run, [B, C, t, H, W]; it may be overwritten right after."""
        batch, channels, count, height, width = run.shape
        if self._whole is None:
            shape = (batch, channels, max(self._total, count), height, width)
            self._whole = torch.empty(shape, dtype=run.dtype, device=self._device)
            self._copier = copier_for(run.device, self._whole.device)
        self._copier.copy(self._whole[:, :, self.written : self.written + count], run)
        self.written += count

    def frames(self) -> torch.Tensor | None:
        """All of them, [B, C, T, H, W] in the dtype of the runs; None where there was no run."""
        self._copier.finish()
        return None if self._whole is None else self._whole[:, :, : self.written]


def dense(x: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, strides) of a tensor without gaps whose dimensions lie in memory in the same order as those of `x`."""
    order = sorted(range(x.ndim), key=lambda d: (x.stride(d), x.shape[d]), reverse=True)
    strides, step = [0] * x.ndim, 1
    for d in reversed(order):
        strides[d] = step
        step *= x.shape[d]
    return tuple(x.shape), tuple(strides)
