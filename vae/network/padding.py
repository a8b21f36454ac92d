"""The padded buffer that a block is convolved from, and the frames kept of it for the next slice."""

from __future__ import annotations

import torch

from ..kernels import Padded
from ..kernels.tiles import Border
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
    border = Border(columns.before, columns.after, rows.before, rows.after)
    if memory is None or not front:
        source.write(rows, columns, Padded(buffer, border, front))
        return buffer
    source.write(rows, columns, Padded(buffer[:, :, front:], border))
    carried = Padded(buffer[:, :, :front], border)
    carried.inside.copy_(region(memory, rows, columns))
    carried.surround()
    return buffer


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
