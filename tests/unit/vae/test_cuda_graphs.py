"""Graphs of slices: the same frames as without, bounded memory, and a way back when they cannot be had.

A backend stands in for the card: it runs the function while it records, as a capture runs its Python, and runs it
again at each replay on the same memory, which is all a graph can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from fastdiffusers.vae.config import VaeConfig
from fastdiffusers.vae.cuda_graphs import CudaRecording, GraphedNetwork
from fastdiffusers.vae.network.execution import CarriedFrames, Execution, Layout
from fastdiffusers.vae.network.model import VideoVAE


class StandIn:
    """Records by keeping the function; what it returns is always handed out in the same memory."""

    def __init__(self, free: int = 1 << 40, bytes_each: int = 1000, breaks: type[Exception] | None = None) -> None:
        self._free, self.bytes_each, self.breaks = free, bytes_each, breaks
        self.recorded = 0

    def free(self) -> int:
        return self._free

    def record(self, function: Callable[[], torch.Tensor]) -> Any:
        if self.breaks:
            raise self.breaks("operation not permitted when stream is capturing")
        self.recorded += 1
        result = function().clone()
        outer = self

        class Kept:
            bytes = outer.bytes_each

            def replay(self) -> torch.Tensor:
                return result.copy_(function())

        return Kept()


def accumulate(x: torch.Tensor, run: Execution) -> torch.Tensor:
    """A network of one state: the running sum of all frames."""
    total = run.state.get("sum")
    if total is None:
        run.state.frames["sum"] = total = torch.zeros_like(x[:, :, :1])
    made = x.cumsum(2) + total
    if run.carry:
        total.copy_(made[:, :, -1:])
    return made


def stream(network: Callable[..., torch.Tensor], clip: torch.Tensor, size: int = 3) -> torch.Tensor:
    """A clip [B, C, T, H, W], slice by slice."""
    state, parts = CarriedFrames(), clip.split(size, dim=2)
    return torch.cat([network(part, Execution(state, part is not parts[-1])) for part in parts], dim=2)


def clips(number: int, frames: int = 15) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, frames, 4, 4, generator=generator) for _ in range(number)]


def test_slices_in_the_middle_of_a_clip_are_replayed() -> None:
    backend = StandIn()
    network = GraphedNetwork(accumulate, backend)
    [clip] = clips(1)
    assert torch.equal(stream(network, clip), stream(accumulate, clip))
    assert backend.recorded == 1
    assert network.replays == 2  # of five: the first, the first steady one and the last run plainly


def test_clips_one_after_the_other_share_a_graph() -> None:
    network = GraphedNetwork(accumulate, StandIn())
    for clip in clips(3):
        assert torch.equal(stream(network, clip), stream(accumulate, clip))
    assert len(network) == 1
    assert network.replays == 2 + 3 + 3


def test_interleaved_clips_do_not_disturb_each_other() -> None:
    network = GraphedNetwork(accumulate, StandIn())
    pair = clips(2, frames=18)
    states, made = [CarriedFrames(), CarriedFrames()], [[], []]
    for part in range(6):
        for which in (0, 1):
            piece = pair[which][:, :, 3 * part : 3 * part + 3]
            made[which].append(network(piece, Execution(states[which], part < 5)))
    for which in (0, 1):
        assert torch.equal(torch.cat(made[which], dim=2), stream(accumulate, pair[which]))
    assert network.replays > 4


def test_carried_frames_are_adopted_instead_of_copied() -> None:
    network = GraphedNetwork(accumulate, StandIn())
    state = CarriedFrames()
    [clip] = clips(1, frames=18)
    homes = []
    for part in clip.split(3, dim=2):
        network(part, Execution(state, True))
        homes.append(state.frames["sum"].data_ptr())
    assert homes[0] == homes[1]
    assert homes[2] != homes[1]
    assert len(set(homes[2:])) == 1


def test_the_number_of_graphs_is_bounded() -> None:
    network = GraphedNetwork(accumulate, StandIn(), capacity=2)
    generator = torch.Generator().manual_seed(0)
    for size in (4, 5, 6):
        clip = torch.randn(1, 2, 15, size, size, generator=generator)
        assert torch.equal(stream(network, clip), stream(accumulate, clip))
    assert len(network) == 2


def test_bytes_are_counted_and_limited() -> None:
    [clip] = clips(1)
    held = GraphedNetwork(accumulate, StandIn(bytes_each=1000))
    stream(held, clip)
    assert held.bytes == 1000 + 4 * (2 * 3 * 16) + 4 * (2 * 16)  # its own, its input, one carried frame
    limited = GraphedNetwork(accumulate, StandIn(bytes_each=1000), limit=1000)
    assert torch.equal(stream(limited, clip), stream(accumulate, clip))
    assert (len(limited), limited.replays) == (0, 0)
    assert "more than allowed" in limited.refused


def test_none_is_recorded_where_memory_is_short() -> None:
    backend = StandIn(free=10_000)
    network = GraphedNetwork(accumulate, backend, needed=8_000)
    [clip] = clips(1)
    assert torch.equal(stream(network, clip), stream(accumulate, clip))
    assert backend.recorded == 0
    assert "free" in network.refused


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_what_cannot_be_recorded_runs_plainly(error: type[Exception]) -> None:
    network = GraphedNetwork(accumulate, StandIn(breaks=error))
    for clip in clips(2):
        assert torch.equal(stream(network, clip), stream(accumulate, clip))
    assert network.replays == 0
    assert network.refused


def test_a_failed_recording_leaves_no_stream_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own context puts the stream back only when the recording ends well."""
    streams = ["default"]

    @contextmanager
    def on_stream(stream: str) -> Iterator[None]:
        before = streams[-1]
        streams.append(stream)
        try:
            yield
        finally:
            streams.append(before)

    class Fails:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.stream = options["stream"]

        def __enter__(self) -> None:
            streams.append(self.stream)  # and there it stays

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    for name, stand_in in {
        "device": lambda device: nullcontext(),
        "stream": on_stream,
        "current_stream": lambda device: streams[-1],
        "graph": Fails,
        "CUDAGraph": object,
        "memory_reserved": lambda device: 0,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(RuntimeError, match="during capture"):
        CudaRecording(lambda: torch.zeros(1), torch.device("cuda"), (0, 1), "recording")  # type: ignore[arg-type]
    assert "recording" in streams
    assert streams[-1] == "default"


def test_a_cancel_is_not_swallowed() -> None:
    class Cancelled(Exception):
        pass

    network = GraphedNetwork(accumulate, StandIn(breaks=Cancelled))
    with pytest.raises(Cancelled):
        stream(network, clips(1)[0])


def test_running_out_of_memory_drops_all_graphs() -> None:
    full = False

    def network(x: torch.Tensor, run: Execution) -> torch.Tensor:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return accumulate(x, run)

    graphed = GraphedNetwork(network, StandIn())
    clip, other = clips(2)
    stream(graphed, clip)
    assert len(graphed) == 1
    full = True
    with pytest.raises(torch.OutOfMemoryError):
        stream(graphed, other)
    assert (len(graphed), graphed.bytes) == (0, 0)
    full = False
    assert torch.equal(stream(graphed, clip), stream(accumulate, clip))
    assert len(graphed) == 0


def test_a_slice_that_begins_to_carry_more_is_not_replayed() -> None:
    def network(x: torch.Tensor, run: Execution) -> torch.Tensor:
        if run.state.get("sum") is not None and run.state.get("late") is None:
            run.state.frames["late"] = x[:, :, -1:].clone()
        return accumulate(x, run) + (0 if run.state.get("late") is None else run.state.frames["late"])

    graphed = GraphedNetwork(network, StandIn())
    for clip in clips(3, frames=21):
        assert torch.equal(stream(graphed, clip), stream(network, clip))
    assert graphed.replays > 0


def test_frames_that_wait_elsewhere_are_not_graphed() -> None:
    network = GraphedNetwork(accumulate, StandIn())
    state = CarriedFrames()
    state.frames["sum"] = torch.zeros(1, 2, 1, 4, 4, device="meta")
    assert not network._steady(torch.zeros(1, 2, 3, 4, 4), Execution(state, True))


@pytest.mark.parametrize("layout", [Layout(), Layout(rows=2)], ids=["whole", "strips"])
def test_the_video_vae_gives_the_same_frames(layout: Layout) -> None:
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, temporal_scale_num=1)
    vae = VideoVAE(config).eval()
    vae.prepare()
    latents = torch.randn(1, 16, 6, 4, 4)
    graphed = GraphedNetwork(vae.decode_slice, StandIn())

    def decode(network: Callable[..., torch.Tensor]) -> torch.Tensor:
        state = CarriedFrames()
        run = [Execution(state, index < 5, layout) for index in range(6)]
        return torch.cat([network(latents[:, :, i : i + 1], run[i]) for i in range(6)], dim=2)

    with torch.inference_mode():
        assert torch.equal(decode(graphed), decode(vae.decode_slice))
        assert torch.equal(decode(graphed), decode(vae.decode_slice))
    assert graphed.replays >= 4
