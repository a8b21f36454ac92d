"""GroupNorm of each frame and SiLU in Triton, written straight into the padded buffer of the next convolution.

Two passes over the input: one for the statistics, one that normalises. Statistics are float32 whatever the dtype: each
program sums differences from a cell of its own part, and parts are merged as `Moments` are, so a large mean costs no
digits. Any sizes and any strides, for input and output each; neither needs to be contiguous.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .eager import Moments, Statistics
from .padded import Border, Padded, unpacked
from .triton_support import WRITING_ELEMENTS, ProgramShape, divide_up, power_of_two, program_shape, unavailable, walk

__all__ = ["NAME", "group_norm_silu", "group_norm_statistics", "unavailable"]

NAME = "triton_group_norm"
WRITES_PADDING = True
PART_ELEMENTS = 1 << 17
"""Numbers that one program of the statistics sums: enough programs to fill a card, few enough parts to merge."""
SECTOR = 32
"""Bytes that a card reads at the least: a program that merges parts takes several groups where one is narrower."""


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    *,
    input_bias: torch.Tensor | None = None,
    statistics: Statistics | None = None,
    activation: bool = True,
    out: torch.Tensor | Padded | None = None,
    frames_per_pass: int = 0,
    shape: ProgramShape | None = None,
) -> torch.Tensor:
    """See `Kernels.group_norm_silu`.

    Args:
        frames_per_pass: frames that are summed and then normalised before the next ones are read, 0 = all. A few small
            frames may still be in the card's cache when they are read again.
        shape: what each program works on; None has it chosen.
    """
    inside, border, front = unpacked(out, x)
    frames = x.shape[2]
    step = frames_per_pass or frames
    for start in range(0, frames, step):
        part, target = x[:, :, start : start + step], inside[:, :, start : start + step]
        if statistics is None:
            mean, _, rstd = _statistics(part, groups, eps, input_bias, None)
        else:
            mean, rstd = (s[:, start : start + step].contiguous() for s in statistics)
        affine = weight.contiguous(), bias.contiguous(), input_bias
        _write(part, target, affine, mean, rstd, activation, border, 0 if start else front, shape)
    return inside


def group_norm_statistics(
    x: torch.Tensor, groups: int, *, input_bias: torch.Tensor | None = None, shape: ProgramShape | None = None
) -> Moments:
    """See `Kernels.group_norm_statistics`."""
    mean, deviations, _ = _statistics(x, groups, 0.0, input_bias, shape)
    return Moments(x.shape[1] // groups * x.shape[3] * x.shape[4], mean, deviations)


def _statistics(
    x: torch.Tensor, groups: int, eps: float, input_bias: torch.Tensor | None, shape: ProgramShape | None
) -> tuple[torch.Tensor, ...]:
    """(mean, sum of squared deviations, reciprocal standard deviation), each float32 [B, T, groups]."""
    batch, channels, frames = x.shape[:3]
    route = walk(x)
    used = shape or program_shape(channels, route.columns, route.strides)
    cells = max(used.cells, PART_ELEMENTS // used.channels)
    rows, columns = max(1, cells // route.columns), min(cells, route.columns)
    across = divide_up(route.columns, columns)
    parts = across * divide_up(route.rows, rows)
    sums = torch.empty(2, batch * frames, parts, channels, dtype=torch.float32, device=x.device)
    grid = (parts, divide_up(channels, used.channels), batch * frames)
    _sum_parts[grid](
        x, sums[0], sums[1], x if input_bias is None else input_bias, *route.strides[0],
        channels, frames, route.rows, route.columns, rows, columns, across,
        input_biased=input_bias is not None, block_c=used.channels, block_p=used.cells, num_warps=used.warps,
    )  # fmt: skip
    merged = torch.empty(3, batch, frames, groups, dtype=torch.float32, device=x.device)
    together, per_group = min(power_of_two(parts), 64), power_of_two(channels // groups)
    wide = max(1, SECTOR // (4 * per_group))
    _merge_parts[(batch * frames * divide_up(groups, wide),)](
        sums[0], sums[1], merged[0], merged[1], merged[2], channels, groups, route.rows, route.columns, rows, columns,
        across, parts, eps, even=per_group * groups == channels, block_parts=together, block_g=wide, block_c=per_group,
        num_warps=1,
    )  # fmt: skip
    return merged[0], merged[1], merged[2]


def _write(
    x: torch.Tensor,
    out: torch.Tensor,
    affine: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    mean: torch.Tensor,
    rstd: torch.Tensor,
    activation: bool,
    border: Border,
    front: int,
    shape: ProgramShape | None,
) -> None:
    batch, channels, frames = x.shape[:3]
    route = walk(x, out, border=border)
    width = border.left + route.columns + border.right
    used = shape or program_shape(channels, width, route.strides, WRITING_ELEMENTS)
    pieces = divide_up(width, used.cells)
    grid = (
        pieces * (border.top + route.rows + border.bottom),
        divide_up(channels, used.channels),
        batch * (frames + front),
    )
    weight, bias, input_bias = affine
    _normalise[grid](
        x, out, weight, bias, x if input_bias is None else input_bias, mean, rstd, *route.strides[0], *route.strides[1],
        channels, mean.shape[-1], frames, front, route.rows, route.columns,
        border.left, border.right, border.top, pieces,
        activation=activation, input_biased=input_bias is not None,
        block_c=used.channels, block_p=used.cells, num_warps=used.warps,
    )  # fmt: skip


@triton.jit(do_not_specialize=["frames", "height", "rows", "across"])
def _sum_parts(
    x: tl.tensor, means: tl.tensor, deviations: tl.tensor, input_bias: tl.tensor,
    x_batch: tl.int64, x_channel: tl.tensor, x_frame: tl.int64, x_row: tl.int64, x_column: tl.tensor,
    channels: tl.tensor, frames: tl.tensor, height: tl.tensor, width: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, across: tl.tensor,
    input_biased: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
) -> None:  # fmt: skip
    """Mean and squared deviations of each channel over one part (`rows` by `columns` cells) of one frame."""
    part, frame = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * block_c + tl.arange(0, block_c)
    exists = c < channels
    first_row, first = (part // across) * rows, (part % across) * columns
    end_row, end = tl.minimum(first_row + rows, height), tl.minimum(first + columns, width)
    source = x + (frame // frames) * x_batch + (frame % frames) * x_frame + c.to(tl.int64) * x_channel
    pivot = tl.load(source + first_row * x_row + first.to(tl.int64) * x_column, mask=exists, other=0.0).to(tl.float32)
    total = tl.zeros((block_c, block_p), tl.float32)
    squares = tl.zeros((block_c, block_p), tl.float32)
    for row in range(first_row, end_row):
        line = source + row * x_row
        for start in range(first, end, block_p):
            p = start + tl.arange(0, block_p)
            mask = exists[:, None] & (p < width)[None, :]  # `columns` is the width or a multiple of the block
            value = tl.load(line[:, None] + (p.to(tl.int64) * x_column)[None, :], mask=mask, other=0.0).to(tl.float32)
            away = tl.where(mask, value - pivot[:, None], 0.0)
            total += away
            squares += away * away
    count = ((end_row - first_row) * (end - first)).to(tl.float32)
    shift = tl.sum(total, 1) / count
    if input_biased:  # it moves the mean, and no deviation from it
        pivot += tl.load(input_bias + c, mask=exists, other=0.0).to(tl.float32)
    place = (frame * tl.num_programs(0) + part) * channels + c
    tl.store(means + place, pivot + shift, mask=exists)
    tl.store(deviations + place, tl.maximum(tl.sum(squares, 1) - shift * shift * count, 0.0), mask=exists)


@triton.jit(do_not_specialize=["groups", "height", "width", "rows", "columns", "across", "parts"])
def _merge_parts(
    means: tl.tensor, deviations: tl.tensor, mean_out: tl.tensor, deviations_out: tl.tensor, rstd_out: tl.tensor,
    channels: tl.tensor, groups: tl.tensor, height: tl.tensor, width: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, across: tl.tensor, parts: tl.tensor, eps: tl.tensor,
    even: tl.constexpr, block_parts: tl.constexpr, block_g: tl.constexpr, block_c: tl.constexpr,
) -> None:  # fmt: skip
    """The parts and channels of some groups of one frame, merged: first the mean, then the deviations from it."""
    blocks = tl.cdiv(groups, block_g)
    frame, first = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * block_g
    per_group = channels // groups
    column = tl.arange(0, block_g * block_c)
    if even:
        place = first * block_c + column
        exists = place < channels
    else:
        group, channel = first + column // block_c, column % block_c
        place = group * per_group + channel
        exists = (group < groups) & (channel < per_group)
    source = frame * parts * channels + place
    total = tl.zeros((block_parts, block_g * block_c), tl.float32)
    for start in range(0, parts, block_parts):
        part = start + tl.arange(0, block_parts)
        mask = (part < parts)[:, None] & exists[None, :]
        weight = _cells(part, height, width, rows, columns, across)
        value = tl.load(means + part[:, None] * channels + source[None, :], mask=mask, other=0.0)
        total += value * weight[:, None]
    count = tl.full((), 1.0, tl.float32) * height * width * per_group
    mean = tl.sum(tl.reshape(tl.sum(total, 0), (block_g, block_c)), 1) / count
    means_of = tl.reshape(tl.broadcast_to(mean[:, None], (block_g, block_c)), (block_g * block_c,))
    spread = tl.zeros((block_parts, block_g * block_c), tl.float32)
    for start in range(0, parts, block_parts):
        part = start + tl.arange(0, block_parts)
        mask = (part < parts)[:, None] & exists[None, :]
        weight = _cells(part, height, width, rows, columns, across)
        cells = part[:, None] * channels + source[None, :]
        away = tl.where(mask, tl.load(means + cells, mask=mask, other=0.0) - means_of[None, :], 0.0)
        spread += tl.load(deviations + cells, mask=mask, other=0.0) + away * away * weight[:, None]
    deviation = tl.sum(tl.reshape(tl.sum(spread, 0), (block_g, block_c)), 1)
    index = first + tl.arange(0, block_g)
    target, kept = frame * groups + index, index < groups
    tl.store(mean_out + target, mean, mask=kept)
    tl.store(deviations_out + target, deviation, mask=kept)
    tl.store(rstd_out + target, tl.rsqrt(deviation / count + eps), mask=kept)


@triton.jit
def _cells(
    part: tl.tensor, height: tl.tensor, width: tl.tensor, rows: tl.tensor, columns: tl.tensor, across: tl.tensor
) -> tl.tensor:
    """Cells of each part; those at the far edges are smaller."""
    tall = tl.minimum(rows, height - (part // across) * rows)
    wide = tl.minimum(columns, width - (part % across) * columns)
    return (tall * wide).to(tl.float32)


@triton.jit(do_not_specialize=["groups", "frames", "front", "height", "top", "pieces"])
def _normalise(
    x: tl.tensor, out: tl.tensor, weight: tl.tensor, bias: tl.tensor, input_bias: tl.tensor, mean: tl.tensor,
    rstd: tl.tensor,
    x_batch: tl.int64, x_channel: tl.tensor, x_frame: tl.int64, x_row: tl.int64, x_column: tl.tensor,
    out_batch: tl.int64, out_channel: tl.tensor, out_frame: tl.int64, out_row: tl.int64, out_column: tl.tensor,
    channels: tl.tensor, groups: tl.tensor, frames: tl.tensor, front: tl.tensor, height: tl.tensor, width: tl.tensor,
    left: tl.tensor, right: tl.tensor, top: tl.tensor, pieces: tl.tensor,
    activation: tl.constexpr, input_biased: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
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
    value = tl.load(source[:, None] + (p.to(tl.int64) * x_column)[None, :], mask=inside, other=0.0).to(tl.float32)
    place = (item * frames + frame) * groups + c // (channels // groups)
    scale = tl.load(rstd + place, mask=exists, other=0.0) * tl.load(weight + c, mask=exists, other=0.0).to(tl.float32)
    middle = tl.load(mean + place, mask=exists, other=0.0)
    if input_biased:
        middle -= tl.load(input_bias + c, mask=exists, other=0.0).to(tl.float32)
    value -= middle[:, None]
    value = value * scale[:, None] + tl.load(bias + c, mask=exists, other=0.0).to(tl.float32)[:, None]
    if activation:
        value = value * tl.sigmoid(value)
    value = tl.where(inside, value, 0.0)
    destination = out + item * out_batch + target * out_frame + row * out_row + c.to(tl.int64) * out_channel
    mask = exists[:, None] & (p < width + right)[None, :]
    tl.store(destination[:, None] + (p.to(tl.int64) * out_column)[None, :], value.to(out.dtype.element_ty), mask=mask)
