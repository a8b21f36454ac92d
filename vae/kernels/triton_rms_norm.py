"""RMS norm over channels and SiLU in Triton, as the decoders of the Wan family have it; one read and one write.

As in `triton_group_norm`, sizes and strides are any, sums are float32, and the output may be the inside of the padded
buffer of the next convolution, whose border is filled on the way.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .padded import Padded, unpacked
from .triton_support import ProgramShape, divide_up, power_of_two, unavailable, walk

__all__ = ["NAME", "rms_norm_silu", "unavailable"]

NAME = "triton_rms_norm"
WRITES_PADDING = True
LONGEST_NORM = 1e-12
"""The least that torch.nn.functional.normalize divides by."""
_MOST_CHANNELS = 1024
"""More do not fit a program's registers at once, and are read a second time."""


def rms_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: bool = True,
    out: torch.Tensor | Padded | None = None,
    shape: ProgramShape | None = None,
) -> torch.Tensor:
    """See `Kernels.rms_norm_silu`.

    Args:
        shape: what each program works on; None has it chosen.
    """
    inside, border, front = unpacked(out, x)
    batch, channels, frames = x.shape[:3]
    route = walk(x, inside, border=border)
    width = border.left + route.columns + border.right
    used = shape or _program_shape(channels, width, x.stride(1) == 1)
    pieces = divide_up(width, used.cells)
    grid = (pieces * (border.top + route.rows + border.bottom), batch * (frames + front))
    weight = weight.reshape(-1)
    _normalise[grid](
        x, inside, weight, weight if bias is None else bias.reshape(-1), *route.strides[0], *route.strides[1],
        channels, frames, front, route.rows, route.columns, border.left, border.right, border.top, pieces,
        math.sqrt(channels), LONGEST_NORM, biased=bias is not None, activation=activation,
        at_once=channels <= used.channels, block_c=used.channels, block_p=used.cells, num_warps=used.warps,
    )  # fmt: skip
    return inside


def _program_shape(channels: int, columns: int, channels_last: bool) -> ProgramShape:
    """All channels of some cells; along cells, runs of 64 bytes in the 16-bit dtypes where registers allow."""
    wide = min(power_of_two(channels), _MOST_CHANNELS)
    cells = max(1 if channels_last else min(32, 16384 // wide), 4096 // wide)
    cells = min(power_of_two(columns), cells)
    held = 512 if channels_last and wide > 256 else 2048  # by a warp: with more of these, 16-bit loads spill registers
    return ProgramShape(wide, cells, max(4, wide * cells // held))


@triton.jit(do_not_specialize=["frames", "front", "height", "top", "pieces"])
def _normalise(
    x: tl.tensor, out: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    x_batch: tl.int64, x_channel: tl.tensor, x_frame: tl.int64, x_row: tl.int64, x_column: tl.tensor,
    out_batch: tl.int64, out_channel: tl.tensor, out_frame: tl.int64, out_row: tl.int64, out_column: tl.tensor,
    channels: tl.tensor, frames: tl.tensor, front: tl.tensor, height: tl.tensor, width: tl.tensor,
    left: tl.tensor, right: tl.tensor, top: tl.tensor, pieces: tl.tensor, length: tl.tensor, shortest: tl.tensor,
    biased: tl.constexpr, activation: tl.constexpr, at_once: tl.constexpr,
    block_c: tl.constexpr, block_p: tl.constexpr,
) -> None:  # fmt: skip
    """All channels of some cells of one row of the padded output; `out` points at the first cell inside."""
    piece, plane = tl.program_id(0), tl.program_id(1)
    item, target = plane // (frames + front), plane % (frames + front) - front
    row = piece // pieces - top
    p = (piece % pieces) * block_p + tl.arange(0, block_p) - left
    rows = row + tl.zeros((block_p,), tl.int32)
    inside = (p >= 0) & (p < width) & (rows >= 0) & (rows < height)
    source = x + item * x_batch + tl.maximum(target, 0) * x_frame + row * x_row + p.to(tl.int64) * x_column
    destination = out + item * out_batch + target * out_frame + row * out_row + p.to(tl.int64) * out_column
    writable = p < width + right

    value = tl.zeros((block_c, block_p), tl.float32)
    squares = tl.zeros((block_c, block_p), tl.float32)
    for start in range(0, channels, block_c):
        c = start + tl.arange(0, block_c)
        mask = (c < channels)[:, None] & inside[None, :]
        value = tl.load(source[None, :] + (c.to(tl.int64) * x_channel)[:, None], mask=mask, other=0.0).to(tl.float32)
        squares += value * value
    scale = length / tl.maximum(tl.sqrt(tl.sum(squares, 0)), shortest)

    for start in range(0, channels, block_c):
        c = start + tl.arange(0, block_c)
        exists = c < channels
        mask = exists[:, None] & inside[None, :]
        if not at_once:
            value = tl.load(source[None, :] + (c.to(tl.int64) * x_channel)[:, None], mask=mask, other=0.0).to(
                tl.float32
            )
        y = value * scale[None, :] * tl.load(weight + c, mask=exists, other=0.0).to(tl.float32)[:, None]
        if biased:
            y += tl.load(bias + c, mask=exists, other=0.0).to(tl.float32)[:, None]
        if activation:
            y = y * tl.sigmoid(y)
        y = tl.where(mask, y, 0.0).to(out.dtype.element_ty)
        target_mask = exists[:, None] & writable[None, :]
        tl.store(destination[None, :] + (c.to(tl.int64) * out_channel)[:, None], y, mask=target_mask)
