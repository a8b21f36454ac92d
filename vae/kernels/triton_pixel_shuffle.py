"""The 3-D pixel shuffle in Triton: one read and one write, the head frame never copied, any strides on either side.

On the way it does what would otherwise be passes of their own: it adds the bias of the convolution in front and a
residual, and fills the border of a padded buffer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .padded import Padded, shuffled, unpacked
from .triton_support import ProgramShape, divide_up, power_of_two, unavailable

__all__ = ["NAME", "pixel_shuffle_3d", "unavailable"]

NAME = "triton_pixel_shuffle"
WRITES_PADDING = True


def pixel_shuffle_3d(
    x: torch.Tensor,
    temporal: int,
    *,
    drop_head: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | Padded | None = None,
    shape: ProgramShape | None = None,
) -> torch.Tensor:
    """See `Kernels.pixel_shuffle_3d`.

    Args:
        shape: what each program works on; None has it chosen.
    """
    batch, packed, frames, height, width = x.shape
    channels = packed // (4 * temporal)
    dropped = temporal - 1 if drop_head else 0
    out = shuffled(x, temporal, drop_head=drop_head) if out is None else out
    inside, border, _ = unpacked(out, x)
    # Coarse rows and columns around the plane stand for the border.
    above, before = divide_up(border.top, 2), divide_up(border.left, 2)
    rows, columns = above + height + divide_up(border.bottom, 2), before + width + divide_up(border.right, 2)
    used = shape or _program_shape(channels, columns, x.stride(1) == 1, inside.stride(1) == 1)
    pieces = divide_up(columns, used.cells)
    grid = (pieces * rows, divide_up(channels, used.channels) * 2 * temporal, batch * frames)
    added = inside if residual is None else residual
    _shuffle[grid](
        x, inside, x if bias is None else bias.contiguous(), added, *x.stride(), *inside.stride(), *added.stride(),
        channels, frames, height, width, pieces, dropped, above, before, *border,
        temporal=temporal, biased=bias is not None, residual=residual is not None,
        interleaved=inside.stride(4) == 1 and inside.stride(1) != 1,
        block_c=used.channels, block_p=used.cells, num_warps=used.warps,
    )  # fmt: skip
    if isinstance(out, Padded):
        out.repeat_first()
    return inside


def _program_shape(channels: int, columns: int, reads_last: bool, writes_last: bool) -> ProgramShape:
    """Runs along channels where both sides have them innermost, along cells where neither has, squares in between."""
    if reads_last and writes_last:
        wide = min(power_of_two(channels), 128)
    elif reads_last or writes_last:
        wide = min(power_of_two(channels), 32)
    else:
        wide = 1
    cells = min(power_of_two(columns), 2048 // wide)
    if wide == 1:
        wide = min(power_of_two(channels), max(1, 1024 // cells))
    return ProgramShape(wide, cells, 4)


@triton.jit(do_not_specialize=["frames", "height", "pieces", "dropped", "above", "top", "bottom"])
def _shuffle(
    x: tl.tensor, out: tl.tensor, bias: tl.tensor, added: tl.tensor,
    x_batch: tl.int64, x_channel: tl.tensor, x_frame: tl.int64, x_row: tl.int64, x_column: tl.tensor,
    out_batch: tl.int64, out_channel: tl.tensor, out_frame: tl.int64, out_row: tl.int64, out_column: tl.tensor,
    add_batch: tl.int64, add_channel: tl.tensor, add_frame: tl.int64, add_row: tl.int64, add_column: tl.tensor,
    channels: tl.tensor, frames: tl.tensor, height: tl.tensor, width: tl.tensor, pieces: tl.tensor, dropped: tl.tensor,
    above: tl.tensor, before: tl.tensor, left: tl.tensor, right: tl.tensor, top: tl.tensor, bottom: tl.tensor,
    temporal: tl.constexpr, biased: tl.constexpr, residual: tl.constexpr, interleaved: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr,
) -> None:  # fmt: skip
    """Both columns of one output row and frame that come from some cells and channels of one input row."""
    piece, plane = tl.program_id(0), tl.program_id(2)
    offset, block = tl.program_id(1) % (2 * temporal), tl.program_id(1) // (2 * temporal)
    row_offset, time_offset = offset // temporal, offset % temporal
    item, frame = plane // frames, plane % frames
    row, start = piece // pieces - above, (piece % pieces) * block_p - before
    fine_row = 2 * row + row_offset
    # Output frames 1 .. dropped are left out, and those behind move up.
    made = frame * temporal + time_offset
    if ((made == 0) | (made > dropped)) & (fine_row >= -top) & (fine_row < 2 * height + bottom):
        target = tl.where(made == 0, 0, made - dropped)
        c = (block * block_c + tl.arange(0, block_c)).to(tl.int64)
        exists = c < channels
        p = start + tl.arange(0, block_p)
        rows = row + tl.zeros((block_p,), tl.int32)
        mask = exists[:, None] & ((p >= 0) & (p < width) & (rows >= 0) & (rows < height))[None, :]
        first = (row_offset * 2 * temporal + time_offset) * channels + c
        second = first + temporal * channels
        source = x + item * x_batch + frame * x_frame + row * x_row
        cells = (p.to(tl.int64) * x_column)[None, :]
        even = tl.load(source + (first * x_channel)[:, None] + cells, mask=mask, other=0.0)
        odd = tl.load(source + (second * x_channel)[:, None] + cells, mask=mask, other=0.0)
        if biased:
            more = tl.load(bias + first, mask=exists, other=0.0).to(tl.float32)
            even = tl.where(mask, even.to(tl.float32) + more[:, None], 0.0)
            more = tl.load(bias + second, mask=exists, other=0.0).to(tl.float32)
            odd = tl.where(mask, odd.to(tl.float32) + more[:, None], 0.0)
        destination = out + item * out_batch + target * out_frame + fine_row * out_row + (c * out_channel)[:, None]
        extra = added + item * add_batch + target * add_frame + fine_row * add_row + (c * add_channel)[:, None]
        if interleaved:
            pair = tl.interleave(even, odd)
            q = (2 * start + tl.arange(0, 2 * block_p)).to(tl.int64)
            if residual:
                rows = row + tl.zeros((2 * block_p,), tl.int32)
                pairs = exists[:, None] & ((q >= 0) & (q < 2 * width) & (rows >= 0) & (rows < height))[None, :]
                more = tl.load(extra + (q * add_column)[None, :], mask=pairs, other=0.0).to(tl.float32)
                pair = pair.to(tl.float32) + more
            writable = exists[:, None] & ((q >= -left) & (q < 2 * width + right))[None, :]
            tl.store(destination + (q * out_column)[None, :], pair.to(out.dtype.element_ty), mask=writable)
        else:
            q = (2 * p).to(tl.int64)
            if residual:
                more = tl.load(extra + (q * add_column)[None, :], mask=mask, other=0.0).to(tl.float32)
                even = even.to(tl.float32) + more
                more = tl.load(extra + ((q + 1) * add_column)[None, :], mask=mask, other=0.0).to(tl.float32)
                odd = odd.to(tl.float32) + more
            writable = exists[:, None] & ((q >= -left) & (q < 2 * width + right))[None, :]
            tl.store(destination + (q * out_column)[None, :], even.to(out.dtype.element_ty), mask=writable)
            writable = exists[:, None] & ((q + 1 >= -left) & (q + 1 < 2 * width + right))[None, :]
            tl.store(destination + ((q + 1) * out_column)[None, :], odd.to(out.dtype.element_ty), mask=writable)
