"""How a tensor [B, C, T, H, W] of any strides is walked by a Triton kernel. Plain integers: no Triton, no device.

A kernel reads and writes tiles of some channels by some cells of one row of one frame. A plane without gaps is walked
as a single long row, so that tiles are cut at the end of the plane and not at the end of each row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one Triton program works on at a time.

    Attributes: channels, cells: powers of two; warps: of 32 threads.
    """

    channels: int
    cells: int
    warps: int


class Border(NamedTuple):
    """Cells around a plane that are filled with zeros while the plane is written."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class Walk(NamedTuple):
    """Rows of cells.

    Attributes:
        rows, columns: of the plane as it is walked.
        strides: of each tensor, (B, C, T, row, column), in elements.
    """

    rows: int
    columns: int
    strides: tuple[tuple[int, int, int, int, int], ...]


NO_BORDER = Border()
_TILE_ELEMENTS = 4096
_LONGEST_CHANNEL_RUN = 128
"""256 bytes in the 16-bit dtypes: two cache lines in a row."""


def walk(*tensors: torch.Tensor, border: Border = NO_BORDER) -> Walk:
    """The same walk over tensors whose last two sizes agree; with a border, the rows stay apart."""
    rows, columns = tensors[0].shape[-2:]
    strides = [tensor.stride() for tensor in tensors]
    if columns == 1 and border == NO_BORDER:
        rows, columns = 1, rows
        strides = [(*s[:3], 0, s[3]) for s in strides]
    elif border == NO_BORDER and all(rows == 1 or s[3] == columns * s[4] for s in strides):
        rows, columns = 1, rows * columns
    return Walk(rows, columns, tuple((s[0], s[1], s[2], s[3], s[4]) for s in strides))


def tile(channels: int, columns: int, strides: Iterable[tuple[int, int, int, int, int]]) -> Tile:
    """A tile with long runs in memory for every tensor of a walk.

    Args:
        channels: C.
        columns: cells of a row as it is walked.
        strides: as `Walk` gives them.
    """
    last = [s[1] == 1 for s in strides]
    if all(last):
        wide = min(power_of_two(channels), _LONGEST_CHANNEL_RUN)
    elif any(last):  # one side runs along channels, the other along cells
        wide = min(power_of_two(channels), 64)
    else:
        wide = 1
    cells = min(power_of_two(columns), _TILE_ELEMENTS // wide)
    if not any(last):  # rows too short to fill a program: take several channels
        wide = min(power_of_two(channels), max(1, 1024 // cells))
    return Tile(wide, cells, 4 if wide * cells >= 1024 else 1)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, for numbers from 1 on."""
    return 1 << (number - 1).bit_length()


def divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)
