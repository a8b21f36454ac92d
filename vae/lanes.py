"""Two tiles at a time: while a slice of one is fetched, a slice of the other is under way on a stream of its own.

Tiles are independent, and a single one may leave much of a large card idle. The price is the memory of two.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Protocol

import torch


class Lanes(Protocol):
    """Ways through a device that do not wait for each other.

    Attributes: count: of them.
    """

    count: int

    def lane(self, index: int) -> AbstractContextManager[object]:
        """What is queued inside the block runs in that lane, behind what its caller queued before."""

    def fetch(self, index: int, made: torch.Tensor) -> None:
        """What the caller queues from now on waits for all that the lane was given, and may read `made` of it."""


class OneLane:
    """No other lane than the caller's own."""

    count = 1

    def lane(self, index: int) -> AbstractContextManager[object]:
        return nullcontext()

    def fetch(self, index: int, made: torch.Tensor) -> None:
        """It is the caller's own work."""


class CudaLanes:
    """Streams of a CUDA card."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.count = count
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]

    def lane(self, index: int) -> AbstractContextManager[object]:
        stream = self._streams[index]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(stream)

    def fetch(self, index: int, made: torch.Tensor) -> None:
        own = torch.cuda.current_stream(self._device)
        own.wait_stream(self._streams[index])
        made.record_stream(own)  # freed here, its memory goes back to the lane, which must not write to it too early


@lru_cache(maxsize=8)
def lanes_of(device: torch.device, count: int) -> Lanes:
    """Lanes of a device. The same ones for every job: torch keeps the memory of each stream apart."""
    return CudaLanes(device, count) if device.type == "cuda" and count > 1 else OneLane()
