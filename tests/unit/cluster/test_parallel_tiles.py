"""A decode whose tiles a group makes together, which threads play: the same bits, and whoever cannot go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from members import Member, Members

from fastdiffusers.callbacks import SILENT, Callbacks
from fastdiffusers.cluster.parallel.tiles import SharedTiles
from fastdiffusers.cluster.worker import Stopped
from fastdiffusers.optimizations import vae_memory
from fastdiffusers.optimizations.vae_tiles import possible_tiles, turn_on, values_of
from fastdiffusers.pipelines import generate as generating
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.loading.loader import load, resolve
from fastdiffusers.pipelines.types import LoadedPipeline
from fastdiffusers.report import OptimizationReport

FRAMES = 2
"""Latent frames of the clip; a tile asks so often whether to stop."""
LATENT = torch.randn(1, 16, FRAMES, 8, 17, generator=torch.Generator().manual_seed(3))
TILES = 6
"""Of 8 x 8, every 6 columns, 2 rows: the last ones are narrow and low."""


@pytest.fixture(scope="module")
def loaded() -> list[LoadedPipeline]:
    """A pipeline for each of three members, all of the same weights. The first is told to tile."""
    made = [load(resolve("tiny:wan21-t2v", device="cpu", dtype="float32")) for _ in range(3)]
    turn_on(made[0].pipeline.vae, possible_tiles(made[0].pipeline.vae, 64, 16))
    return made


class Failing:
    """Callbacks that raise an error when they are asked for the so-many-th time."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self.asked, self._at, self._error = 0, at, error

    def check(self) -> None:
        self.asked += 1
        if self.asked == self._at and self._error is not None:
            raise self._error


def part(
    loaded: list[LoadedPipeline], failing: dict[int, Failing], report: OptimizationReport
) -> Callable[[Member], tuple[torch.Tensor | None, SharedTiles]]:
    """What a member does in a run once it has the latent."""

    def act(member: Member) -> tuple[torch.Tensor | None, SharedTiles]:
        own, sharing = loaded[member.rank], SharedTiles(member)
        callbacks = Callbacks(check_cancel=failing[member.rank].check) if member.rank in failing else SILENT
        if sharing.leads:
            return generating._decode(own, LATENT, report, callbacks, None, sharing=sharing), sharing
        pipeline_vae.help_decode(own, sharing, callbacks)
        return None, sharing

    return act


def together(
    loaded: list[LoadedPipeline], size: int = 2, report: OptimizationReport | None = None, **failing: Failing
) -> list[Any]:
    """What each member has in the end, or its error. `first` and `second` fail as they are told to."""
    fail = {("first", "second", "third").index(name): each for name, each in failing.items()}
    before = [values_of(each.pipeline.vae) for each in loaded]
    results = Members(size).run(part(loaded, fail, report or OptimizationReport()))
    assert [values_of(each.pipeline.vae) for each in loaded] == before
    return results


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried where the memory is short is as small as this clip."""
    monkeypatch.setattr(vae_memory, "TILE_SIZES", (64,))


@pytest.fixture(scope="module")
def alone(loaded: list[LoadedPipeline]) -> torch.Tensor:
    (found,) = Members(1).run(lambda member: generating._decode(loaded[0], LATENT, OptimizationReport(), SILENT, None))
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize(("size", "counts"), [(2, [3, 3]), (3, [2, 2, 2])])
def test_the_tiles_of_a_group_are_those_of_one_process(
    size: int, counts: list[int], loaded: list[LoadedPipeline], alone: torch.Tensor
) -> None:
    (frames, sharing), *others = together(loaded, size)
    assert torch.equal(frames, alone)
    assert [result for result, _ in others] == [None] * (size - 1)
    record = sharing.record(["cpu"] * size, alike=True)
    assert (record.applied, record.declined) == (f"{TILES} tiles over {size} processes", False)
    assert record.reason.startswith(", ".join(map(str, counts)))
    unlike = sharing.record([f"cuda:{rank}" for rank in range(size)], alike=False)
    assert unlike.applied == f"{TILES} tiles over {size} cards"
    assert "not alike and may round differently" in unlike.reason


def test_a_tile_that_the_memory_of_a_helper_does_not_suffice_for_is_made_again(
    loaded: list[LoadedPipeline], alone: torch.Tensor
) -> None:
    (frames, sharing), _ = together(loaded, second=Failing(FRAMES + 1, torch.OutOfMemoryError("full")))
    assert torch.equal(frames, alone)
    assert sharing.counts == [TILES - 1, 1]
    assert "the memory of process 2 (cuda:1) was short" in sharing.record(["cuda:0", "cuda:1"], alike=True).reason


def test_with_smaller_tiles_after_the_leaders_memory_was_short_all_help_again(
    loaded: list[LoadedPipeline], alone: torch.Tensor, small_tiles: None
) -> None:
    vae = loaded[0].pipeline.vae
    before = values_of(vae)
    turn_on(vae, possible_tiles(vae, 128, 32))
    report = OptimizationReport()
    try:
        (frames, sharing), _ = together(loaded, report=report, first=Failing(1, torch.OutOfMemoryError("full")))
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
    assert torch.equal(frames, alone)
    assert "decoded again in tiles of" in report["vae_tiling"].reason
    assert min(sharing.counts) > 0


@pytest.mark.parametrize("who", ["first", "second"])
def test_whoever_is_told_to_stop_stops_all(who: str, loaded: list[LoadedPipeline], alone: torch.Tensor) -> None:
    """Within a latent frame of a tile. Each process of a group is told for itself."""
    failing = Failing(FRAMES + 1, Stopped())
    first, second = together(loaded, **{who: failing})
    assert isinstance(first, Stopped)
    assert second[0] is None
    (frames, _), _ = together(loaded)
    assert torch.equal(frames, alone)


def test_a_stop_between_two_tiles_lets_the_others_go(loaded: list[LoadedPipeline]) -> None:
    # Asked at each latent frame, and after a tile was blended.
    first, second = together(loaded, first=Failing(FRAMES + 1, KeyboardInterrupt()))
    assert isinstance(first, KeyboardInterrupt)
    assert second[0] is None


def test_another_error_of_the_leader_is_its_own_and_lets_the_others_go(loaded: list[LoadedPipeline]) -> None:
    first, second = together(loaded, first=Failing(1, ValueError("broken")))
    assert isinstance(first, ValueError)
    assert second[0] is None


def test_what_is_not_made_of_tiles_is_declined_with_the_reason(loaded: list[LoadedPipeline], small_tiles: None) -> None:
    vae = loaded[0].pipeline.vae
    before = values_of(vae)
    try:
        vae.use_tiling = False
        (whole, sharing), (nothing, _) = together(loaded)
        assert (whole.shape, nothing) == ((1, 5, 64, 136, 3), None)
        record = sharing.record(["cpu", "cpu"], alike=True)
        assert (record.applied, record.reason) == ("off", "the first process decodes alone: vae_tiling is off")
        # Short of memory, the whole becomes tiles. The others have gone by then.
        (tiled, sharing), _ = together(loaded, first=Failing(1, torch.OutOfMemoryError("full")))
        assert tiled.shape == whole.shape
        assert "vae_tiling is off" in sharing.record(["cpu", "cpu"], alike=True).reason
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def test_without_a_decode_nothing_is_told() -> None:
    assert Members(1).run(lambda member: SharedTiles(member).record(["cpu"], alike=True)) == [None]
