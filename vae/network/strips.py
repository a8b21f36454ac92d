"""Cutting the output of a convolution into row and column strips, with the input each of them reads. Integers only.

A strip reads its own cells and a halo; zeros stand in for cells beyond the border. Put together, strips give what the
uncut convolution gives, because every output cell sees the same input cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple


class Axis(NamedTuple):
    """One spatial axis of a convolution.

    Attributes: size: input cells; kernel, stride: of the convolution; before, after: zero padding.
    """

    size: int
    kernel: int
    stride: int
    before: int
    after: int

    @property
    def outputs(self) -> int:
        return (self.size + self.before + self.after - self.kernel) // self.stride + 1


class Span(NamedTuple):
    """One strip along one axis.

    Attributes:
        start, stop: output cells.
        read_start, read_stop: input cells it reads, those that exist.
        before, after: zeros in front of and behind them.
        settled_start, settled_stop: input cells that this strip is the last one to read. The spans of an axis settle
            every cell once: after a strip, what is carried to the next slice may be overwritten there.
    """

    start: int
    stop: int
    read_start: int
    read_stop: int
    before: int
    after: int
    settled_start: int
    settled_stop: int

    @property
    def padded(self) -> int:
        """Cells of the buffer that is convolved."""
        return self.before + self.read_stop - self.read_start + self.after


class Block(NamedTuple):
    """A strip of rows crossed with a strip of columns."""

    rows: Span
    columns: Span

    def covers(self, rows: Axis, columns: Axis) -> bool:
        """Return whether this is the whole plane."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return height == rows.outputs and width == columns.outputs


def whole(axis: Axis) -> Span:
    """The axis in one piece."""
    return Span(0, axis.outputs, 0, axis.size, axis.before, axis.after, 0, axis.size)


def cut(axis: Axis, length: int) -> list[Span]:
    """Strips of at most `length` output cells, as even as possible."""
    total = axis.outputs
    if length >= total:
        return [whole(axis)]
    count = -(-total // max(1, length))
    edges = [total * i // count for i in range(count + 1)]
    spans: list[Span] = []
    for start, stop in pairwise(edges):
        first = start * axis.stride - axis.before
        end = (stop - 1) * axis.stride - axis.before + axis.kernel
        read_start, read_stop = max(first, 0), min(end, axis.size)
        next_read = axis.size if stop == total else max(stop * axis.stride - axis.before, 0)
        settled = spans[-1].settled_stop if spans else 0
        before, after = read_start - first, end - read_stop
        spans.append(Span(start, stop, read_start, read_stop, before, after, settled, max(settled, next_read)))
    return spans


def blocks(rows: list[Span], columns: list[Span]) -> Iterator[Block]:
    """All blocks, row strip by row strip."""
    for row in rows:
        for column in columns:
            yield Block(row, column)


def fit(rows: Axis, columns: Axis, cell_bytes: int, workspace: int) -> tuple[int, int]:
    """(rows, columns) of the largest strips whose temporaries stay within `workspace` bytes.

    Whole rows as long as a few of them fit; below that, columns are cut too. At the least it is one cell.

    Args:
        cell_bytes: bytes of temporaries per output cell.
    """
    halo_rows, halo_columns = rows.kernel - 1, columns.kernel - 1
    cells = workspace // cell_bytes
    height = cells // (columns.outputs + halo_columns) - halo_rows
    if height >= min(rows.outputs, 4):
        return height, columns.outputs
    height = min(rows.outputs, 8)
    while height > 1 and cells // (height + halo_rows) - halo_columns < height:
        height //= 2
    return height, max(1, cells // (height + halo_rows) - halo_columns)
