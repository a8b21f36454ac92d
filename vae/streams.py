"""Streams of a card beside the one that computes: for copying finished frames away, and for a second tile.

Frames are converted and put in the order of their destination on the card, in one pass; then a second stream moves
them as they lie in memory into a page-locked buffer, and from there they are copied on while the card computes. Without
a card they are copied directly.

Tiles are independent, and a single one may leave much of a large card idle: while a slice of one is fetched, a slice of
the other is under way on a stream of its own. The price is the memory of two.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch

log = logging.getLogger(__name__)


class FrameCopier:
    """Copies frames directly to where they are put together."""

    def copy(self, target: torch.Tensor, frames: torch.Tensor) -> None:
        """Copy `frames` to `target`, of the same shape and any dtype and strides; may return before it is done.

        `frames` may be overwritten right after, by work on the current stream.
        """
        target.copy_(frames)

    def finish(self) -> None:
        """Return when all copies are done."""


class CopyStream(Protocol):
    """A way from a card to main memory beside the one that computes."""

    def start(self, target: torch.Tensor, staged: torch.Tensor) -> Callable[[], None]:
        """Begin a copy behind all that is queued so far, and return a function that waits for its end."""

    def buffer(self, like: torch.Tensor) -> torch.Tensor | None:
        """Page-locked main memory of that shape and those strides, or None where the system gives none."""


class CudaCopyStream:
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


class OverlappedCopier(FrameCopier):
    """Copies beside the computation.

    Args:
        stream: where they run.
        depth: copies that may be under way; each holds its frames on the card once, and a page-locked buffer of the
            same size. Further ones wait.
    """

    def __init__(self, stream: CopyStream, depth: int = 2) -> None:
        self._stream = stream
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
            buffer = self._stream.buffer(staged)
        if buffer is None:
            target.copy_(staged)
        else:
            self._under_way.append(_UnderWay(self._stream.start(buffer, staged), staged, buffer, target))

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
    """Return what copies from `source` to `target`, beside the computation from a CUDA card to main memory."""
    stream = copy_stream(source) if target.type == "cpu" else None
    return FrameCopier() if stream is None else OverlappedCopier(stream)


def copy_stream(device: torch.device) -> CopyStream | None:
    """Return a stream that copies from a CUDA card; None for other devices."""
    return CudaCopyStream(device) if device.type == "cuda" else None


def read_later(flag: torch.Tensor, stream: CopyStream | None) -> Callable[[], bool]:
    """Begin to copy a bool off its device. The function returned gives it, and waits for nothing queued after it."""
    buffer = None if stream is None else stream.buffer(flag)
    if stream is None or buffer is None:
        return lambda: bool(flag)
    wait, target = stream.start(buffer, flag), buffer

    def read() -> bool:
        wait()
        return bool(target)

    return read


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
        self._copier: FrameCopier = FrameCopier()

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
        """Return all of them, [B, C, T, H, W] in the dtype of the runs; None where there was no run."""
        self._copier.finish()
        return None if self._whole is None else self._whole[:, :, : self.written]


class TileStreams:
    """The streams that tiles are computed on: here the caller's own, for one tile at a time.

    Attributes: count: of streams, and of tiles at a time.
    """

    count = 1

    def queue(self, index: int) -> AbstractContextManager[object]:
        """Run what is queued inside the `with` block on that stream, behind what the caller queued before."""
        return nullcontext()

    def fetch(self, index: int, made: torch.Tensor) -> None:
        """Have what the caller queues from now on wait for all that the stream was given; it may read `made` then."""


class CudaTileStreams(TileStreams):
    """Streams of a CUDA card that do not wait for each other."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.count = count
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]

    def queue(self, index: int) -> AbstractContextManager[object]:
        stream = self._streams[index]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(stream)

    def fetch(self, index: int, made: torch.Tensor) -> None:
        own = torch.cuda.current_stream(self._device)
        own.wait_stream(self._streams[index])
        made.record_stream(own)  # freed here, its memory goes back to the stream, which must not write to it too early


@lru_cache(maxsize=8)
def tile_streams(device: torch.device, count: int) -> TileStreams:
    """Return streams for so many tiles at a time. The same ones for every job: torch keeps each one's memory apart."""
    return CudaTileStreams(device, count) if device.type == "cuda" and count > 1 else TileStreams()


def dense(x: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, strides) of a tensor without gaps whose dimensions lie in memory in the same order as those of `x`."""
    order = sorted(range(x.ndim), key=lambda d: (x.stride(d), x.shape[d]), reverse=True)
    strides, step = [0] * x.ndim, 1
    for d in reversed(order):
        strides[d] = step
        step *= x.shape[d]
    return tuple(x.shape), tuple(strides)
