"""Two tiles at a time: the same frames, nothing is read before it is there, and only where the memory holds both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.vae import VaeSettings, VideoVAE, decode, engine, planner, reporting
from fastdiffusers.vae.streams import TileStreams, tile_streams

Latents = Callable[..., torch.Tensor]
TILES = VaeSettings(mode="tiles", tile_size=32, tile_overlap=16, overlap_tiles=True)


class LateStreams:
    """Streams whose results are there when they are fetched and not before: until then they hold NaN."""

    count = 2

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = False
        self._held: dict[int, torch.Tensor] = {}

    @contextmanager
    def queue(self, index: int) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        self.log.append(f"work {index}")
        yield
        self.inside = False

    def fetch(self, index: int, made: torch.Tensor) -> None:
        assert not self.inside
        self.log.append(f"fetch {index}")
        made.copy_(self._held.pop(id(made)))

    def hide(self, made: torch.Tensor) -> None:
        assert self.inside
        self._held[id(made)] = made.clone()
        made.fill_(float("nan"))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateStreams:
    """The processor as a card with two streams."""
    streams = LateStreams()
    stream = engine.Job._stream

    def hidden(job: engine.Job, clip: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        for frame, made in stream(job, clip):
            if job.plan.tiles_at_a_time > 1:
                streams.hide(made)
            yield frame, made

    monkeypatch.setattr(engine.Job, "_stream", hidden)
    monkeypatch.setattr(engine, "tile_streams", lambda device, count: streams if count > 1 else TileStreams())
    for module in (planner, reporting):
        monkeypatch.setattr(module, "overlap_refusal", lambda settings, device: "" if settings.overlap_tiles else "off")
    return streams


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 4, 9), (2, 8, 8)])
def test_the_frames_are_the_same_to_the_bit(
    small: VideoVAE, latents: Latents, late: LateStreams, shape: tuple[int, int, int]
) -> None:
    z = latents(*shape, batch=2)
    together, report = decode(small, z, TILES)
    one_by_one, _ = decode(small, z, VaeSettings(mode="tiles", tile_size=32, tile_overlap=16))
    assert report["overlap_tiles"].applied == "2 tiles at a time"
    assert torch.equal(together, one_by_one)


def test_a_slice_is_fetched_while_another_is_under_way(small: VideoVAE, latents: Latents, late: LateStreams) -> None:
    decode(small, latents(3, 4, 7), TILES)
    assert late.log[:6] == ["work 0", "work 1", "fetch 0", "work 0", "fetch 1", "work 1"]


def test_a_cancel_leaves_nothing_behind(small: VideoVAE, latents: Latents, late: LateStreams) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise Stop

    z = latents(3, 4, 7)
    with pytest.raises(Stop):
        decode(small, z, TILES, Callbacks(on_progress=stop))
    assert decode(small, z, TILES)[0].isfinite().all()


def test_one_after_the_other_where_the_memory_holds_only_one(
    small: VideoVAE, latents: Latents, late: LateStreams
) -> None:
    z = latents(3, 4, 7)
    _, report = decode(small, z, TILES)
    needed = report.facts["estimated_peak_gib"]
    alone = VaeSettings(mode="tiles", tile_size=32, tile_overlap=16)
    assert needed == pytest.approx(2 * decode(small, z, alone)[1].facts["estimated_peak_gib"], abs=0.002)
    _, report = decode(small, z, VaeSettings(**{**vars(TILES), "memory_budget_gib": 0.75 * needed}))
    assert report["overlap_tiles"].applied == "off"
    assert "memory" in report["overlap_tiles"].reason


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, "cpu", "no CUDA device"),
        ({"cuda_graphs": True}, "cuda", "one slice at a time"),
        ({"compile": {}}, "cuda", ""),
    ],
)
def test_what_rules_it_out_is_said(changes: dict[str, object], device: str, reason: str) -> None:
    said = planner.overlap_refusal(VaeSettings(overlap_tiles=True, **changes), torch.device(device))
    assert reason in said
    assert bool(said) == bool(reason)


def test_without_a_card_it_is_refused_and_reported(small: VideoVAE, latents: Latents) -> None:
    _, report = decode(small, latents(1, 4, 7), TILES)
    assert report["overlap_tiles"].applied == "off"
    assert report["overlap_tiles"].failed
    assert type(tile_streams(torch.device("cpu"), 2)) is TileStreams
