"""CUDA graphs of one slice through a network: recorded once per shape, then started with a single call.

A graph works on fixed memory: its input, its output and the frames carried from slice to slice all stay where they
were when it was recorded. What a caller brings is copied in; the carried frames are *adopted*: after the first slice
the stream's state is the graph's own memory, so that later slices copy nothing. When the state belongs to another
clip, it is copied in first.

A graph holds on to all memory its slice ever needed. So their number is bounded, their bytes are counted, none is
recorded where memory is short, and all are dropped when the device runs out of it. They live as long as the job that
made them.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..fallback import describe
from ..memory import device_memory
from .network.execution import CarriedFrames, Execution, Network

log = logging.getLogger(__name__)

CAPACITY = 4
"""Graphs kept: the steady slice of a clip, for a few sizes of tiles at its edges."""


class Recording(Protocol):
    """A recorded graph.

    Attributes: bytes: memory it holds beside what its caller handed in.
    """

    bytes: int

    def replay(self) -> torch.Tensor:
        """Run it, and give the tensor that its function returned; the next replay writes over it."""


class Backend(Protocol):
    """Records graphs, and knows the memory of its device."""

    def record(self, function: Callable[[], torch.Tensor]) -> Recording:
        """Record what `function` does, without doing it."""

    def free(self) -> int:
        """Bytes that new tensors may take."""


class CudaBackend:
    """Records on a card. All graphs share one pool: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One of its own: torch keeps a single stream for recording, on whichever card recorded first.
        self._stream = torch.cuda.Stream(device)

    def record(self, function: Callable[[], torch.Tensor]) -> Recording:
        return CudaRecording(function, self._device, self._pool, self._stream)

    def free(self) -> int:
        return device_memory(self._device).free


class CudaRecording:
    """A `torch.cuda.CUDAGraph` with its result."""

    def __init__(
        self, function: Callable[[], torch.Tensor], device: torch.device, pool: Any, stream: torch.cuda.Stream
    ) -> None:
        gc.collect()
        torch.cuda.empty_cache()  # recording does that itself: done before, what grows is the graph's
        before = torch.cuda.memory_reserved(device)
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do on the card meanwhile is none of the recording's business.
        recording = torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        # The stream around it: a recording that fails does not put back the one it found.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)), recording:
            self._result = function()
        self.bytes = max(0, torch.cuda.memory_reserved(device) - before)

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self._result


@dataclass
class _Recorded:
    """A recording with the memory it reads and writes, and the stream whose carried frames lie there now."""

    recording: Recording
    x: torch.Tensor
    frames: dict[str, torch.Tensor]
    owner: weakref.ref[CarriedFrames] | None = None

    @property
    def bytes(self) -> int:
        return self.recording.bytes + sum(t.nbytes for t in (self.x, *self.frames.values()))

    def run(self, x: torch.Tensor, state: CarriedFrames) -> torch.Tensor:
        """Run one slice of a clip, and adopt the clip's carried frames."""
        former = self.owner() if self.owner is not None else None
        if former is not None and former is not state:
            former.frames = {name: frames.clone() for name, frames in former.frames.items()}
        for name, frames in self.frames.items():
            if state.frames[name] is not frames:
                frames.copy_(state.frames[name])
                state.frames[name] = frames
        self.owner = weakref.ref(state)
        self.x.copy_(x)
        return self.recording.replay().clone()


class GraphedNetwork:
    """A network that runs its steady slices as graphs, and everything else as it is.

    A slice is steady when frames are carried in, on the device, and carried on. The first time it sees a kind of slice
    it runs it without: kernels are compiled, probed and chosen then, which a recording cannot do. The second time it
    records.

    Args:
        network: (slice, execution) -> result. It may change the carried frames only in place.
        backend: records the graphs.
        needed: bytes one slice takes above weights and state, as estimated; a graph is recorded only where twice that
            is free, for the graph and for what runs beside it.
        capacity: graphs kept; the one that was not used for longest goes first.
        limit: bytes that all graphs together may hold, or None.
    """

    def __init__(
        self, network: Network, backend: Backend, *, needed: int = 0, capacity: int = CAPACITY, limit: int | None = None
    ) -> None:
        self._network = network
        self._backend = backend
        self._needed = needed
        self._capacity = capacity
        self._limit = limit
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._seen: set[Hashable] = set()
        self.refused = ""
        """Why slices run without graphs that could have them, or ""."""
        self.replays = 0
        """Slices that ran as graphs."""
        self.most_bytes = 0
        """Most memory that all graphs together ever held."""

    @property
    def bytes(self) -> int:
        """Memory held by all graphs."""
        return sum(recorded.bytes for recorded in self._recorded.values())

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """Run one slice, as a graph where there is one."""
        if not self._steady(x, run):
            return self._ungraphed(x, run)
        key = _key(x, run)
        recorded = self._recorded.get(key)
        if recorded is None and key in self._seen:
            recorded = self._record(key, x, run)
        if recorded is None:
            self._seen.add(key)
            return self._ungraphed(x, run)
        self._recorded.move_to_end(key)
        self.replays += 1
        return recorded.run(x, run.state)

    def drop(self) -> None:
        """Give all graphs' memory back. Carried frames that a stream adopted stay with that stream."""
        self._recorded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch._C._cuda_clearCublasWorkspaces()  # the recording stream's lies in the graphs' pool
            torch.cuda.empty_cache()

    def _ungraphed(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        try:
            return self._network(x, run)
        except torch.OutOfMemoryError:
            if self._recorded:
                log.info("out of memory: %d CUDA graphs are dropped", len(self._recorded))
                self.refused = "the device ran out of memory beside them"
                self.drop()
            raise

    def _steady(self, x: torch.Tensor, run: Execution) -> bool:
        carried = run.state.frames
        if self.refused or not run.carry or not carried:
            return False
        return all(frames.device == x.device for frames in carried.values())

    def _record(self, key: Hashable, x: torch.Tensor, run: Execution) -> _Recorded | None:
        """Record the slice on copies of what came in; nothing of it is run."""
        free = self._backend.free()
        state_bytes = sum(frames.nbytes for frames in run.state.frames.values())
        if free < 2 * self._needed + state_bytes:
            self.refused = f"{free / 2**30:.2f} GiB free, {(2 * self._needed + state_bytes) / 2**30:.2f} GiB wanted"
            return None
        still = CarriedFrames(run.state.device)
        still.frames = {name: frames.clone() for name, frames in run.state.frames.items()}
        held = x.clone()
        fixed = replace(run, state=still)
        names = set(still.frames)
        try:
            recording = self._backend.record(lambda: self._network(held, fixed))
        except torch.OutOfMemoryError:
            self.refused = "the device ran out of memory while recording"
            self.drop()
            return None
        except RuntimeError as error:  # what cannot be recorded; a cancel or any other error travels on
            self.refused = describe(error)
            log.info("no CUDA graphs: %s", self.refused)
            self.drop()
            return None
        if set(still.frames) != names:  # it began to carry more: the next slice will be of another kind
            return None
        self._recorded[key] = _Recorded(recording, held, still.frames)
        self.most_bytes = max(self.most_bytes, self.bytes)
        while len(self._recorded) > 1 and (len(self) > self._capacity or self._over_limit()):
            self._recorded.popitem(last=False)
        if self._over_limit():
            self.refused = f"one graph holds {self.bytes / 2**30:.2f} GiB, more than allowed"
            self.drop()
            return None
        return self._recorded[key]

    def _over_limit(self) -> bool:
        return self._limit is not None and self.bytes > self._limit


def _key(x: torch.Tensor, run: Execution) -> Hashable:
    """The kind of slice that a graph is good for."""
    frames = tuple(sorted((name, tuple(t.shape), t.stride()) for name, t in run.state.frames.items()))
    return tuple(x.shape), x.stride(), x.dtype, str(x.device), run.layout, run.kernels.choice, frames
