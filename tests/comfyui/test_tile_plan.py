"""Cutting an image or a video into tiles."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest


def cover(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """The spans that ComfyUI's tile loop visits in one dimension."""
    if length <= size:
        return [(0, length)]
    return [(start, min(start + size, length)) for start in range(0, length - overlap, size - overlap)]


@pytest.mark.parametrize("length", [8, 63, 64, 65, 90, 135, 160, 241])
@pytest.mark.parametrize(("edge", "overlap"), [(512, 0), (512, 64), (256, 128), (64, 8)])
def test_tiles_are_nearly_equal_and_cover_everything(core: Any, length: int, edge: int, overlap: int) -> None:
    from fastdiffusers.nodes.host.core_tiles import plan_tiles

    tiles = plan_tiles((length, length), edge, overlap, 0, unit=8, frames_per_unit=1, grain=1)
    spans = cover(length, tiles.sizes[0], tiles.overlaps[0])
    assert tiles.count == len(spans) ** 2
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(later[0] < earlier[1] or overlap == 0 for earlier, later in itertools.pairwise(spans))
    assert tiles.sizes[0] * 8 <= max(edge, 8)
    if len(spans) > 1:
        shortest, longest = min(b - a for a, b in spans), max(b - a for a, b in spans)
        assert longest - shortest < len(spans), "no sliver at the far edge"


def test_encode_tiles_start_on_whole_latent_cells(core: Any) -> None:
    from fastdiffusers.nodes.host.core_tiles import plan_tiles

    tiles = plan_tiles((9, 720, 1280), 500, 60, 0, unit=1, frames_per_unit=1, grain=16)
    assert tiles.sizes[0] == 9, "time is not cut unless asked"
    height, width = zip(tiles.sizes[1:], tiles.overlaps[1:], strict=True)
    assert all(size % 16 == 0 for size in (*height, *width))
    assert tiles.count == math.prod(len(cover(length, *cut)) for length, cut in ((720, height), (1280, width)))


def test_temporal_slices_overlap(core: Any) -> None:
    from fastdiffusers.nodes.host.core_tiles import plan_tiles

    tiles = plan_tiles((21, 60, 104), 4096, 0, 32, unit=8, frames_per_unit=4, grain=1)
    assert tiles.sizes[0] <= 8
    assert tiles.overlaps[0] >= 1
    assert tiles.count == len(cover(21, tiles.sizes[0], tiles.overlaps[0]))
