"""The output of one clip, filled slice by slice and tile by tile."""

from __future__ import annotations

import torch

from .streams import FrameCopier, PlainCopier
from .tiling import TileAxis


class Canvas:
    """Puts what the network makes where it belongs.

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
        self.copier = copier or PlainCopier()
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


class ReferenceCanvas(Canvas):
    """Blends as the established implementation does: sums and weights in the network's own dtype, divided at the end.

    Its faults are kept: rounding in half precision, zero rows where tiles only touch.
    """

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
