"""What a convolution reads: a source that writes any block of itself into the convolution's padded buffer, and the
frames of that buffer that are carried to the next slice.

The source makes its values on the way (normalised, activated, upscaled), so they never exist as a tensor of their own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from ..kernels import Border, Kernels, Padded, Statistics
from .convolution import bias_is_a_pass, conv3d
from .execution import Execution, empty, region
from .strips import Block, Span


class Source(Protocol):
    """An input of a convolution."""

    x: torch.Tensor
    """The tensor it is made from; gives device, dtype and memory layout."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C, T, H, W) of the whole source."""
        ...

    @property
    def cell_bytes(self) -> int:
        """Bytes of temporaries per cell while a block is written, over all frames."""
        ...

    def write(self, rows: Span, columns: Span, out: Padded) -> None:
        """Write the cells that the block reads, all frames of them, into `out`, and fill what surrounds them."""
        ...


class TensorSource:
    """A tensor as it is."""

    cell_bytes = 0

    def __init__(self, x: torch.Tensor, kernels: Kernels) -> None:
        self.x = x
        self.shape = tuple(x.shape)
        self.kernels = kernels

    def write(self, rows: Span, columns: Span, out: Padded) -> None:
        self.kernels.put(region(self.x, rows, columns), out=out)


class Activated:
    """A tensor after GroupNorm and SiLU. The statistics are those of whole frames, so blocks agree at their edges.

    Args:
        input_bias: [C], added to the tensor first.
    """

    def __init__(
        self, x: torch.Tensor, norm: nn.GroupNorm, run: Execution, input_bias: torch.Tensor | None = None
    ) -> None:
        self.x = x
        self.shape = tuple(x.shape)
        self.norm = norm
        self.input_bias = input_bias
        self.kernels = run.kernels
        self.statistics: Statistics | None = None
        if not run.layout.uncut:
            moments = self.kernels.group_norm_statistics(x, norm.num_groups, input_bias=input_bias)
            self.statistics = moments.statistics(norm.eps)

    @property
    def cell_bytes(self) -> int:
        """One frame at a time passes through float32 in half precision."""
        return 0 if self.x.dtype == torch.float32 else 8 * self.shape[1]

    def write(self, rows: Span, columns: Span, out: Padded) -> None:
        norm = self.norm
        affine = norm.weight, norm.bias, norm.num_groups, norm.eps
        self.kernels.group_norm_silu(
            region(self.x, rows, columns), *affine, input_bias=self.input_bias, statistics=self.statistics, out=out
        )


class Upscaled:
    """A tensor after a 1x1x1 convolution and a pixel shuffle to twice the size (and twice the frames)."""

    def __init__(self, x: torch.Tensor, conv: nn.Conv3d, temporal: int, *, drop_head: bool, run: Execution) -> None:
        batch, _, frames, height, width = x.shape
        self.x = x
        self.conv = conv
        self.temporal = temporal
        self.drop_head = drop_head
        self.kernels = run.kernels
        channels = conv.out_channels // (4 * temporal)
        dropped = temporal - 1 if drop_head else 0
        self.shape = (batch, channels, frames * temporal - dropped, 2 * height, 2 * width)

    @property
    def cell_bytes(self) -> int:
        """The upscaled block before and after the shuffle, with a margin for odd edges."""
        _, channels, _, _, _ = self.shape
        return 2 * channels * self.x.shape[2] * self.temporal * self.x.element_size()

    def write(self, rows: Span, columns: Span, out: Padded) -> None:
        top, left = rows.read_start // 2, columns.read_start // 2
        coarse = self.x[..., top : (rows.read_stop + 1) // 2, left : (columns.read_stop + 1) // 2]
        later = self.conv.bias if bias_is_a_pass(coarse) else None
        upscaled = conv3d(coarse, self.conv.weight, self.conv.bias if later is None else None)
        if rows.read_start % 2 or rows.read_stop % 2 or columns.read_start % 2 or columns.read_stop % 2:
            fine = self.kernels.pixel_shuffle_3d(upscaled, self.temporal, drop_head=self.drop_head, bias=later)
            y, x = rows.read_start - 2 * top, columns.read_start - 2 * left
            inside = out.inside
            self.kernels.put(fine[..., y : y + inside.shape[3], x : x + inside.shape[4]], out=out)
        else:
            self.kernels.pixel_shuffle_3d(upscaled, self.temporal, drop_head=self.drop_head, bias=later, out=out)


def gather(source: Source, memory: torch.Tensor | None, front: int, block: Block, kernels: Kernels) -> torch.Tensor:
    """Return one buffer [B, C, front + T, rows, columns]: carried frames and the source's, zeros around, written once.

    Args:
        source: what is convolved.
        memory: frames carried from the slice before; without them copies of the first frame take their place.
        front: frames in front of the source's own.
        block: where the buffer lies in the plane.
        kernels: what writes the carried frames.
    """
    rows, columns = block
    if isinstance(source, TensorSource) and not (front or rows.before or rows.after or columns.before or columns.after):
        return region(source.x, rows, columns)
    batch, channels, frames, _, _ = source.shape
    buffer = empty((batch, channels, front + frames, rows.padded, columns.padded), source.x)
    border = Border(columns.before, columns.after, rows.before, rows.after)
    if memory is None or not front:
        source.write(rows, columns, Padded(buffer, border, front))
        return buffer
    source.write(rows, columns, Padded(buffer[:, :, front:], border))
    kernels.put(region(memory, rows, columns), out=Padded(buffer[:, :, :front], border))
    return buffer


def carry_frames(buffer: torch.Tensor, memory: torch.Tensor, block: Block, kernels: Kernels) -> None:
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
        kernels.put(new[:, :, :1].expand(-1, -1, missing, -1, -1), out=old[:, :, :missing])
    kernels.put(new, out=old[:, :, missing:])
