"""Spatial tiles: where they lie along each axis, and how they are blended in the output.

A tile has GroupNorm statistics of its own, so tiles differ from the whole by nature; blending hides the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .streams import FrameCopier


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


class Canvas:
    """The output of one clip, filled slice by slice and tile by tile.

    A clip in one piece is copied. Smooth tiles are added with weights that sum to one, so that each pixel of the
    output is right as soon as its last tile has been added, without a second buffer.

    Args:
        out: [C, T, H, W], float32, on any device and with any strides.
        rows, columns: the tiles along both axes.
        place: output cells per latent cell.
        copier: how frames in one piece get to `out`; None copies on the spot.
    """

    def __init__(
        self, out: torch.Tensor, rows: TileAxis, columns: TileAxis, place: int, copier: FrameCopier | None = None
    ) -> None:
        self.out = out
        self.rows, self.columns = rows, columns
        self.place = place
        self.copier = copier or FrameCopier()
        self.tiled = len(rows) * len(columns) > 1
        if self.tiled:
            out.zero_()

    def write(self, row: int, column: int, frame: int, made: torch.Tensor) -> None:
        """Put frames [C', T', h, w] of a tile, C' >= C, at output frame `frame`."""
        made = made[: self.out.shape[0]]
        if self.tiled:
            weights = self._weights(row, column, made)
            self._region(self.out, row, column, frame, made).add_((made.float() * weights).to(self.out.device))
        else:
            self.copier.copy(self.out[:, frame : frame + made.shape[1]], made)

    def finish(self) -> None:
        """The last tile has been written; returns when all of `out` is there."""
        self.copier.finish()

    def _region(self, target: torch.Tensor, row: int, column: int, frame: int, made: torch.Tensor) -> torch.Tensor:
        top, left = self.rows.starts[row] * self.place, self.columns.starts[column] * self.place
        return target[:, frame : frame + made.shape[1], top : top + made.shape[2], left : left + made.shape[3]]

    def _weights(self, row: int, column: int, made: torch.Tensor) -> torch.Tensor:
        """The tile's blending weights, [h, w]."""
        down, across = self.rows.weights[row].to(made.device), self.columns.weights[column].to(made.device)
        return down[: made.shape[2], None] * across[None, : made.shape[3]]
