"""How seconds and bytes are read from a device. What measures is handed these, so that a test can hand in fakes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


class Stopwatch(Protocol):
    """Marks moments without holding the device up, and tells the time between two of them.

    Attributes: ahead: whether a mark is made before the device gets there, so that asking for its time at once waits.
    """

    ahead: bool

    def mark(self) -> Any:
        """A moment: on an accelerator, the one at which all work queued so far is done."""

    def between(self, start: Any, end: Any) -> float:
        """Seconds from `start` to `end`; may wait for the device."""


class WallStopwatch:
    """For devices that work while the caller waits: the CPU. Others are synchronised at every mark."""

    ahead = False

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize

    def mark(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return end - start


class CudaStopwatch:
    """CUDA events: the mark is taken by the card itself, in the order of the current stream."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


def stopwatch(device: torch.device) -> Stopwatch:
    """The most exact stopwatch for `device`."""
    if device.type == "cuda":
        return CudaStopwatch(device)
    return WallStopwatch(None if device.type == "cpu" else lambda: synchronize(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xpu":
        torch.xpu.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class PeakMemory:
    """Peaks in bytes since the last reset; None where the device cannot tell.

    Attributes:
        allocated: in live tensors on the device.
        reserved: held by torch on the device, its cache included: what other programs cannot have.
        host: main memory of this process.
    """

    allocated: int | None = None
    reserved: int | None = None
    host: int | None = None

    def highest(self, other: PeakMemory) -> PeakMemory:
        """The larger of both, field by field."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return PeakMemory(*(max((size for size in pair if size is not None), default=None) for pair in pairs))

    @property
    def headline(self) -> int | None:
        """The one figure to show: what the device had to give, or main memory where there is no device memory."""
        return self.host if self.reserved is None else self.reserved


class MemoryMeter(Protocol):
    """Watches the peak of memory."""

    def empty(self) -> None:
        """Give back what torch only keeps for later, so that the next peak belongs to the next run alone."""

    def reset(self) -> None:
        """Begin a new peak."""

    def sample(self) -> None:
        """Look now; called after every step, for figures that the system does not keep a peak of."""

    def peak(self) -> PeakMemory:
        """The peaks since `reset`."""


class DeviceMemoryMeter:
    """torch's own peaks on an accelerator, the system's on main memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
        self._host = 0

    def empty(self) -> None:
        if self._module is not None:
            self._module.empty_cache()

    def reset(self) -> None:
        if self._module is not None:
            self._module.reset_peak_memory_stats(self._device)
        reset_host_peak()
        self._host = host_memory() or 0

    def sample(self) -> None:
        self._host = max(self._host, host_memory() or 0)

    def peak(self) -> PeakMemory:
        self.sample()
        host = host_peak() if _host_peak_resets() else self._host or None
        if self._module is None:
            return PeakMemory(host=host)
        return PeakMemory(
            allocated=int(self._module.max_memory_allocated(self._device)),
            reserved=int(self._module.max_memory_reserved(self._device)),
            host=host,
        )


_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def host_memory() -> int | None:
    """Main memory of this process now, in bytes; None where nothing tells."""
    found = _status("VmRSS")
    if found is not None:
        return found
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


def host_peak() -> int | None:
    """The highest main memory of this process since `reset_host_peak`, or since it began where that has no effect."""
    return _status("VmHWM")


def reset_host_peak() -> bool:
    """Begin a new peak of main memory. Linux alone can; elsewhere False, and the peak is sampled between steps."""
    try:
        _CLEAR.write_text("5")  # proc(5): 5 resets the peak resident set size of the process
    except OSError:
        return False
    return True


def _host_peak_resets() -> bool:
    return _CLEAR.exists() and _STATUS.exists()


def _status(name: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
