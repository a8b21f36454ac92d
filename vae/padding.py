"""The padded buffer that a block is convolved from, and the frames kept of it for the next slice."""

from __future__ import annotations

import torch

from .execution import empty, region
from .sources import Plain, Source
from .strips import Block


def gather(source: Source, memory: torch.Tensor | None, front: int, block: Block) -> torch.Tensor:
    """One buffer [B, C, front + T, rows, columns], written once: carried frames, the source's frames, zeros around.

    Args:
        source: what is convolved.
        memory: frames carried from the slice before; without them copies of the first frame take their place.
        front: frames in front of the source's own.
        block: where the buffer lies in the plane.
    """
    rows, columns = block
    if isinstance(source, Plain) and not (front or rows.before or rows.after or columns.before or columns.after):
        return region(source.x, rows, columns)
    batch, channels, frames, _, _ = source.shape
    buffer = empty((batch, channels, front + frames, rows.padded, columns.padded), source.x)
    zero_border(buffer, (rows.before, rows.after), (columns.before, columns.after))
    inside = buffer[..., rows.before : rows.padded - rows.after, columns.before : columns.padded - columns.after]
    source.write(rows, columns, inside[:, :, front:])
    if front:
        first = inside[:, :, front : front + 1].expand(-1, -1, front, -1, -1)
        inside[:, :, :front].copy_(first if memory is None else region(memory, rows, columns))
    return buffer


def zero_border(buffer: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Zeros in the first and the last rows and columns, (before, after) each, of every plane [B, C, T, H, W]."""
    for axis, (before, after) in ((3, rows), (4, columns)):
        if before:
            buffer.narrow(axis, 0, before).zero_()
        if after:
            buffer.narrow(axis, buffer.shape[axis] - after, after).zero_()


def carry_frames(buffer: torch.Tensor, memory: torch.Tensor, block: Block) -> None:
    """Copy a buffer's last frames into `memory`, there where no later block reads the old ones any more.

    Copies, because a view would keep the whole buffer alive. A clip with fewer frames repeats its first one.
    """
    rows, columns = block
    top = rows.before + rows.settled_start - rows.read_start
    left = columns.before + columns.settled_start - columns.read_start
    height, width = rows.settled_stop - rows.settled_start, columns.settled_stop - columns.settled_start
    carried = memory.shape[2]
    new = buffer[:, :, -carried:, top : top + height, left : left + width]
    old = memory[..., rows.settled_start : rows.settled_stop, columns.settled_start : columns.settled_stop]
    missing = carried - new.shape[2]
    if missing:
        old[:, :, :missing].copy_(new[:, :, :1].expand(-1, -1, missing, -1, -1))
    old[:, :, missing:].copy_(new)
