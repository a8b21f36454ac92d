"""A tensor written to where it belongs, in Triton: what lies there and a bias are added on the way, and what surrounds
a padded buffer's inside is filled. One read and one write, any strides on either side.

PyTorch's own copies between tensors of different strides, and its sums with a bias, reach a quarter of a card's rate.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .padded import Padded, unpacked
from .triton_support import WRITING_ELEMENTS, ProgramShape, divide_up, program_shape, unavailable, walk

__all__ = ["NAME", "put", "unavailable"]

NAME = "triton_put"
WRITES_PADDING = True


def put(
    x: torch.Tensor,
    *,
    out: torch.Tensor | Padded | None = None,
    bias: torch.Tensor | None = None,
    add: bool = False,
    shape: ProgramShape | None = None,
) -> torch.Tensor:
    """See `Kernels.put`.

    Args:
        shape: what each program works on; None has it chosen.
    """
    inside, border, front = unpacked(out, x)
    batch, channels, frames = x.shape[:3]
    route = walk(x, inside, border=border)
    width = border.left + route.columns + border.right
    used = shape or program_shape(channels, width, route.strides, WRITING_ELEMENTS)
    pieces = divide_up(width, used.cells)
    grid = (
        pieces * (border.top + route.rows + border.bottom),
        divide_up(channels, used.channels),
        batch * (frames + front),
    )
    _put[grid](
        x, inside, x if bias is None else bias.contiguous(), *route.strides[0], *route.strides[1],
        channels, frames, front, route.rows, route.columns, border.left, border.right, border.top, pieces,
        biased=bias is not None, add=add, block_c=used.channels, block_p=used.cells, num_warps=used.warps,
    )  # fmt: skip
    return inside


@triton.jit(do_not_specialize=["frames", "front", "height", "top", "pieces"])
def _put(
    x: tl.tensor, out: tl.tensor, bias: tl.tensor,
    x_batch: tl.int64, x_channel: tl.tensor, x_frame: tl.int64, x_row: tl.int64, x_column: tl.tensor,
    out_batch: tl.int64, out_channel: tl.tensor, out_frame: tl.int64, out_row: tl.int64, out_column: tl.tensor,
    channels: tl.tensor, frames: tl.tensor, front: tl.tensor, height: tl.tensor, width: tl.tensor,
    left: tl.tensor, right: tl.tensor, top: tl.tensor, pieces: tl.tensor,
    biased: tl.constexpr, add: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of the padded output. `out` points at the first cell inside; cells of the border lie around it."""
    piece, plane = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * block_c + tl.arange(0, block_c)
    exists = c < channels
    item, target = plane // (frames + front), plane % (frames + front) - front
    frame = tl.maximum(target, 0)
    row = piece // pieces - top
    p = (piece % pieces) * block_p + tl.arange(0, block_p) - left
    rows = row + tl.zeros((block_p,), tl.int32)
    inside = exists[:, None] & ((p >= 0) & (p < width) & (rows >= 0) & (rows < height))[None, :]
    source = x + item * x_batch + frame * x_frame + row * x_row + c.to(tl.int64) * x_channel
    value = tl.load(source[:, None] + (p.to(tl.int64) * x_column)[None, :], mask=inside, other=0.0)
    destination = out + item * out_batch + target * out_frame + row * out_row + c.to(tl.int64) * out_channel
    places = destination[:, None] + (p.to(tl.int64) * out_column)[None, :]
    if biased:
        more = tl.load(bias + c, mask=exists, other=0.0).to(tl.float32)
        value = tl.where(inside, value.to(tl.float32) + more[:, None], 0.0)
    if add:
        value = value.to(tl.float32) + tl.load(places, mask=inside, other=0.0).to(tl.float32)
    mask = exists[:, None] & (p < width + right)[None, :]
    tl.store(places, value.to(out.dtype.element_ty), mask=mask)
