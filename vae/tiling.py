"""Spatial tiles: where they lie, and how they are blended. Along one axis at a time; the two axes are independent.

A tile has GroupNorm statistics of its own, so tiles differ from the whole by nature; blending hides the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileAxis:
    """The tiles along one axis, in latent cells.

    Attributes:
        starts, stops: of each tile.
        weights: blending weights of each tile, float32, one per output cell.
        note: what had to be changed about the settings, or "".
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    weights: tuple[torch.Tensor, ...]
    note: str = ""

    def __len__(self) -> int:
        return len(self.starts)


def smooth_axis(extent: int, tile: int, overlap: int, factor: int, scale: int) -> TileAxis:
    """Tiles of one size, evenly spread, with weights that add up to one in every cell.

    Each weight is a raised cosine over the overlap with the neighbour, never zero, divided by the sum of all tiles'.

    Args:
        extent: latent cells. tile, overlap: pixels. factor: pixels per latent cell.
        scale: output cells per latent cell: `factor` when decoding, 1 when encoding.
    """
    size = max(1, tile // factor)
    if size >= extent:
        return TileAxis((0,), (extent,), (torch.ones(extent * scale),))
    wanted = -(-overlap // factor)
    shared = min(wanted, size // 2)
    note = "" if shared == wanted else f"overlap reduced from {overlap} to {shared * factor} pixels, half a tile"
    count = -(-(extent - shared) // (size - shared))
    starts = tuple(round(i * (extent - size) / (count - 1)) for i in range(count))
    stops = tuple(start + size for start in starts)
    ramps = []
    for i in range(count):
        ramp = torch.ones(size * scale, dtype=torch.float64)
        if i:
            rise = raised_cosine((stops[i - 1] - starts[i]) * scale)
            ramp[: len(rise)] *= rise
        if i < count - 1:
            fall = raised_cosine((stops[i] - starts[i + 1]) * scale).flip(0)
            ramp[len(ramp) - len(fall) :] *= fall
        ramps.append(ramp)
    total = torch.zeros(extent * scale, dtype=torch.float64)
    for start, stop, ramp in zip(starts, stops, ramps, strict=True):
        total[start * scale : stop * scale] += ramp
    weights = tuple(
        (ramp / total[start * scale : stop * scale]).float()
        for start, stop, ramp in zip(starts, stops, ramps, strict=True)
    )
    return TileAxis(starts, stops, weights, note)


def raised_cosine(length: int) -> torch.Tensor:
    """Half a cosine from just above 0 to just below 1, taken at cell centres, float64."""
    return 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1))


def reference_axis(
    extent: int, tile: int, overlap: int, factor: int, *, decoding: bool, dtype: torch.dtype
) -> TileAxis:
    """Tiles and ramps of the established implementation, in the tensors' own dtype; not normalised.

    Its ramp has the full length of the overlap in pixels when decoding, in latent cells when encoding; it is cut to the
    tile, and the falling ramp overwrites the rising one where they meet.
    """
    size = max(1, tile // factor)
    shared = max(0, min(overlap // factor, size - 1))
    step = max(1, size - shared)
    scale = factor if decoding else 1
    length = overlap if decoding else shared
    ramp = torch.zeros(1, dtype=dtype)
    if length > 1:
        position = torch.linspace(0, 1, steps=length, dtype=dtype)
        ramp = 0.5 - 0.5 * torch.cos(position * math.pi)
    starts, stops, weights = [], [], []
    for start in range(0, extent, step):
        stop = min(start + size, extent)
        if start and stop - start <= shared:
            continue
        cells = (stop - start) * scale
        blend = max(0, min(length, cells - 1))
        weight = torch.ones(cells, dtype=dtype)
        if start and blend:
            weight[:blend] = ramp[:blend]
        if stop < extent and blend:
            weight[cells - blend :] = 1 - ramp[:blend]
        starts.append(start)
        stops.append(stop)
        weights.append(weight)
    return TileAxis(tuple(starts), tuple(stops), tuple(weights))
