"""Tiles cut and blended as the established implementation does, bit for bit, its faults included.

They are: rounding in half precision, and zero rows where tiles only touch.
"""

from __future__ import annotations

import math

import torch

from .tiling import Canvas, TileAxis


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


class ReferenceCanvas(Canvas):
    """Sums and weights in the network's own dtype, divided at the end."""

    def __init__(self, out: torch.Tensor, rows: TileAxis, columns: TileAxis, place: int, dtype: torch.dtype) -> None:
        super().__init__(out, rows, columns, place)
        channels, frames = out.shape[:2]
        size = (rows.stops[-1] * place, columns.stops[-1] * place)
        self.sums = torch.zeros((channels, frames, *size), dtype=dtype, device=out.device)
        self.counts = torch.zeros((1, frames, *size), dtype=dtype, device=out.device)

    def write(self, row: int, column: int, frame: int, made: torch.Tensor) -> None:
        if not self.tiled:
            return super().write(row, column, frame, made)
        made = made[: self.out.shape[0]].to(self.out.device)
        down = self.rows.weights[row].to(made)[: made.shape[2], None]
        across = self.columns.weights[column].to(made)[None, : made.shape[3]]
        self._region(self.sums, row, column, frame, made).add_(made * down * across)
        self._region(self.counts, row, column, frame, made).addcmul_(down, across)
        return None

    def finish(self) -> None:
        super().finish()
        if self.tiled:
            self.sums.div_(self.counts.clamp_min_(1e-6))
            self.out.copy_(self.sums[..., : self.out.shape[2], : self.out.shape[3]])
