"""What the Triton kernels share: whether they can run in this process, and how they walk a tensor of any strides.

A program reads and writes some channels of some cells of one row of one frame. A plane without gaps is walked as a
single long row, so that programs end at the end of the plane and not at the end of each row. Plain integers: no Triton.

Of a kernel's arguments, strides of channels and columns have no type: Triton makes a constant of such a one that is 1,
and only then knows that 16 bytes in a row may be read at once. What they are multiplied by is 64 bits long instead.
Numbers that decide nothing of the sort (frames, rows, pieces) are named in `do_not_specialize`: otherwise Triton would
compile anew, for about a second each, for those that are 1 or a multiple of 16.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .padded import NO_BORDER, Border

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads the variable when it is imported: kernels then run on the CPU, number by number. For tests."""
_PROGRAM_ELEMENTS = 4096
WRITING_ELEMENTS = 8192
"""Of a program that holds nothing but what it writes, where channels are innermost: an H200 is 10% faster so."""
_LONGEST_CHANNEL_RUN = 128
"""256 bytes in the 16-bit dtypes: two cache lines in a row."""


def unavailable(device: torch.device | str) -> str:
    """Return why no Triton kernel can run on tensors of `device`, or ""."""
    kind = torch.device(device).type
    if INTERPRETED:
        return "" if kind == "cpu" else "Triton's interpreter works on the CPU"
    if kind != "cuda":
        return f"Triton has no kernels for {kind} tensors"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs compute capability 7.0 or higher"
    return ""


class ProgramShape(NamedTuple):
    """The part of a tensor that one Triton program works on at a time.

    Attributes: channels, cells: powers of two; warps: of 32 threads.
    """

    channels: int
    cells: int
    warps: int


class Walk(NamedTuple):
    """Rows of cells.

    Attributes:
        rows, columns: of the plane as it is walked.
        strides: of each tensor, (B, C, T, row, column), in elements.
    """

    rows: int
    columns: int
    strides: tuple[tuple[int, int, int, int, int], ...]


def walk(*tensors: torch.Tensor, border: Border = NO_BORDER) -> Walk:
    """Return one walk over tensors whose last two sizes agree; with a border, the rows stay apart."""
    rows, columns = tensors[0].shape[-2:]
    strides = [tensor.stride() for tensor in tensors]
    if columns == 1 and border == NO_BORDER:
        rows, columns = 1, rows
        strides = [(*s[:3], 0, s[3]) for s in strides]
    elif border == NO_BORDER and all(rows == 1 or s[3] == columns * s[4] for s in strides):
        rows, columns = 1, rows * columns
    return Walk(rows, columns, tuple((s[0], s[1], s[2], s[3], s[4]) for s in strides))


def program_shape(
    channels: int, columns: int, strides: Iterable[tuple[int, int, int, int, int]], elements: int = _PROGRAM_ELEMENTS
) -> ProgramShape:
    """Return a shape with long runs in memory for every tensor of a walk.

    Args:
        channels: C.
        columns: cells of a row as it is walked.
        strides: as `Walk` gives them.
        elements: numbers at a time where every tensor has many channels, and has them innermost.
    """
    last = [s[1] == 1 for s in strides]
    if all(last):
        wide = min(power_of_two(channels), _LONGEST_CHANNEL_RUN)
    elif any(last):  # one side runs along channels, the other along cells
        wide = min(power_of_two(channels), 64)
    else:
        wide = 1
    runs = all(last) and wide >= 32  # of a few channels it would hold more registers than there are
    cells = min(power_of_two(columns), (elements if runs else _PROGRAM_ELEMENTS) // wide)
    if not any(last):  # rows too short to fill a program: take several channels
        wide = min(power_of_two(channels), max(1, 1024 // cells))
    return ProgramShape(wide, cells, 4 if wide * cells >= 1024 else 1)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, for numbers from 1 on."""
    return 1 << (number - 1).bit_length()


def divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)
