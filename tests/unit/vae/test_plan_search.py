"""The search for the fastest way to cut a decode: what it tries is what runs, and `auto` is held against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from fastdiffusers.benchmarks import plan_search
from fastdiffusers.benchmarks.plan_search import Decoder, Way
from fastdiffusers.vae import VideoVAE, api


@pytest.fixture
def decoder(small: VideoVAE, latents: Callable[..., torch.Tensor]) -> Decoder:
    return Decoder({"one": small, "another": small}, latents(5, 4, 4))


def test_every_size_of_slices_meets_every_cut() -> None:
    found = plan_search.cuts(5)
    assert {cut.size for cut in found} == {1, 2, 4}
    assert len(found) == len(set(found)) == 3 * 8 * 3
    assert {cut.size for cut in plan_search.cuts(1)} == {1}


def test_a_way_is_what_runs(decoder: Decoder) -> None:
    planned: list[Any] = []

    def watched(*args: Any) -> Any:
        planned.append(make_plan(*args))
        return planned[-1]

    make_plan = api.make_plan
    with patch.object(api, "make_plan", watched):
        for cut in plan_search.cuts(5)[::7]:
            decoder.once(Way(cut, "one"))
            assert (planned[-1].temporal_slice, planned[-1].layout) == cut
        decoder.once(Way(None, "one"))
    assert planned[-1].layout not in [plan.layout for plan in planned[:-1]]


def test_the_fastest_are_run_in_turns_with_auto(decoder: Decoder) -> None:
    auto, every = Way(None, "one"), plan_search.cuts(5)[:5]
    took = iter(range(1000, 0, -1))  # each run is faster than the one before
    with patch.object(Decoder, "once", lambda *_: float(next(took))):
        near, tried = plan_search.search(decoder, auto, every, rounds=2)
    further = plan_search.FINALISTS * len(plan_search.BLOCKS) * 2
    assert (len(near), tried) == (plan_search.FINALISTS, len(every) + further)
    assert near[0].cut is not None
    assert near[0].cut.size == every[-1].size
    assert [len(way.seconds) for way in (auto, *near)] == [2] * (1 + len(near))
    rows = plan_search.rows(auto, near)
    assert rows[0] | {"row": "auto", "auto_takes": 1.0, "least": 1.0, "most": 1.0} == rows[0]
    assert all(row["auto_takes"] > 1 for row in rows[1:])  # the later, the faster


def test_choosing_is_counted_once_and_asks_no_store(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiffusers.vae.kernels.temporal_choice import TemporalChoice

    choice = TemporalChoice(lambda *_: torch.zeros(1), lambda *_: lambda: torch.zeros(1))
    monkeypatch.setattr(TemporalChoice, "_choose", lambda self, key, x, weight: sum(range(10**5)) and 4)
    x, weight = torch.zeros(1, 4, 6, 8, 8), torch.zeros(4, 4, 3, 3, 3)
    with plan_search.choosing() as spent:
        assert choice.most(x, weight, 4) == 4
        first = spent()
        assert choice.most(x, weight, 4) == 4
        assert 0 < first == spent()
