"""Threads of a processor: fewer while other programs keep it busy, all of them again afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from fastdiffusers import processor_threads
from fastdiffusers.cache_folder import device_name
from fastdiffusers.processor_threads import given_threads, helpful_threads
from fastdiffusers.vae import decode_raw, embedded_video_vae, engine, load_video_vae


class Processor:
    """A clock, and how much of it this thread works: `free` with up to so many threads, less with more."""

    def __init__(self, free: int) -> None:
        self.free, self.now, self.work = free, 0.0, 0.0

    def passes(self, seconds: float) -> None:
        share = 0.98 if torch.get_num_threads() <= self.free else 0.3
        self.now, self.work = self.now + seconds, self.work + share * seconds


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(processor_threads, "_STATE", processor_threads._State())
    yield
    torch.set_num_threads(before)


def watched(processor: Processor, seconds: float) -> list[int]:
    """The numbers of threads in a block that takes so long, a change each."""
    seen = [torch.get_num_threads()]
    with helpful_threads(lambda: processor.now, lambda: processor.work) as look:
        assert given_threads() == 4
        for _ in range(round(seconds / 0.1)):
            if torch.get_num_threads() != seen[-1]:
                seen.append(torch.get_num_threads())
            processor.passes(0.1)
            look()
    assert torch.get_num_threads() == given_threads() == 4
    return seen


def test_on_a_free_processor_all_of_them_stay() -> None:
    assert watched(Processor(free=4), 30.0) == [4]


def test_on_a_busy_one_there_are_fewer_and_more_are_tried_less_and_less_often() -> None:
    processor = Processor(free=1)
    seen = watched(processor, 100.0)
    assert seen[:5] == [4, 2, 1, 2, 1]
    assert set(seen[1:]) == {1, 2}
    assert 4 <= seen.count(2) <= 9


def test_when_the_others_end_all_of_them_are_back() -> None:
    processor = Processor(free=2)
    assert watched(processor, 1.0) == [4, 2]
    processor.free = 4
    assert watched(processor, 1.0) == [4, 2], "what the last block ended with is what the next one begins with"
    assert watched(processor, 10.0)[-1] == 4
    processor.free = 2
    watched(processor, 1.0)
    processor.now += processor_threads.REMEMBERED + 1
    processor.free = 4
    assert watched(processor, 1.0) == [4]


def test_an_error_gives_them_back() -> None:
    processor = Processor(free=1)

    def failing() -> None:
        with helpful_threads(lambda: processor.now, lambda: processor.work) as look:
            processor.passes(1.0)
            look()
            assert torch.get_num_threads() == 2
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.get_num_threads() == 4


def test_choices_are_remembered_for_the_threads_that_were_given_and_blocks_do_not_nest() -> None:
    processor = Processor(free=1)
    with helpful_threads(lambda: processor.now, lambda: processor.work) as look:
        processor.passes(1.0)
        look()
        assert device_name(torch.device("cpu")).endswith(", 4 threads")
        with helpful_threads() as inner:
            inner()
        assert torch.get_num_threads() == 2


def test_of_one_thread_none_is_taken() -> None:
    processor = Processor(free=0)
    torch.set_num_threads(1)
    with helpful_threads(lambda: processor.now, lambda: processor.work) as look:
        processor.passes(1.0)
        look()
        assert torch.get_num_threads() == 1


def test_a_decode_goes_on_with_fewer_and_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vae = load_video_vae(str(embedded_video_vae("tiny:video-vae", tmp_path)), device="cpu", dtype="float32")
    latent = torch.randn(1, vae.config.latent_channels, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(engine, "helpful_threads", partial(helpful_threads, lambda: 0.0))  # whatever else runs here
    expected, _ = decode_raw(vae, latent)
    times, seen = itertools.count(), set()

    def clock() -> float:
        seen.add(torch.get_num_threads())
        return float(next(times))

    monkeypatch.setattr(engine, "helpful_threads", partial(helpful_threads, clock, lambda: 0.0))
    frames, report = decode_raw(vae, latent)
    assert any(note.startswith("1 of 4 threads for a time") for note in report.notes)
    assert seen == {4, 2, 1}
    assert torch.get_num_threads() == 4
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
