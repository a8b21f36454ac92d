"""Convolution over time by Winograd's minimal filtering: fewer plane convolutions, on sums of frames.

One 3x3x3 convolution makes each output frame from 3 plane (3x3) convolutions. F(m, 3) makes m output frames at once
from m + 2: 4 frames from 6 instead of 12. Each works on a sum of input frames, with kernel taps that are summed once;
sums of the results are the output frames (Winograd 1980; the points 0, 1, -1, 1/2, -2 and infinity of Cook and Toom, as
in Lavin and Gray, arXiv:1509.09308, who use it along height and width).

Frames are rows of a matrix, so what goes in and what comes out are one product each with a small matrix. The beginning
of a clip, where its first frame stands in for those before it, and what is left over behind the last whole block, are
only other entries of these matrices: they use the same transformed kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .convolution import in_float32, is_widened, onednn_takes

CHUNK = 32 << 20
"""Bytes of transformed frames at a time: near a processor's caches, and memory that the allocator keeps at hand."""
POINTS = (Fraction(1), Fraction(0), Fraction(-1), Fraction(1, 2), Fraction(-2))
"""Where polynomials are evaluated, beside infinity. The first has a factor of one in every output frame: it takes the
bias."""


class Scheme(NamedTuple):
    """How some frames become others.

    Attributes:
        inputs: [planes, frames read]: frames to the sums of frames that are convolved.
        outputs: [frames made, planes]: their results to frames.
        counts: planes for each transformed kernel, in the order of the rows.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    counts: tuple[int, ...]


class Block(NamedTuple):
    """F(frames, taps). Attributes: to_planes: [points][frames + taps - 1]; to_frames: [frames][points]."""

    to_planes: list[list[Fraction]]
    to_frames: list[list[Fraction]]


def points(most: int, taps: int) -> tuple[Fraction, ...]:
    """The finite points of F(most, taps)."""
    return POINTS[: most + taps - 2]


def normalisers(finite: tuple[Fraction, ...]) -> list[Fraction]:
    """What a kernel's value at each point is divided by, infinity last."""
    found = []
    for point in finite:
        product = Fraction(1)
        for other in finite:
            product *= point - other if other != point else 1
        found.append(product)
    return [*found, Fraction(1)]


def block(frames: int, taps: int, most: int) -> Block:
    """F(frames, taps) with the transformed kernels of F(most, taps), which has all of its points."""
    finite = points(frames, taps)
    kernels = normalisers(points(most, taps))
    own = normalisers(finite)
    last = len(points(most, taps))
    to_planes = [[Fraction(0)] * (frames + taps - 1) for _ in range(last + 1)]
    to_frames = [[Fraction(0)] * (last + 1) for _ in range(frames)]
    for index, point in enumerate(finite):
        polynomial = _product([other for other in finite if other != point])
        scale = kernels[index] / own[index]
        to_planes[index] = [scale * value for value in [*polynomial, Fraction(0)]]
        for frame in range(frames):
            to_frames[frame][index] = point**frame
    to_planes[last] = _product(list(finite))
    to_frames[frames - 1][last] = Fraction(1)
    return Block(to_planes, to_frames)


def _product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, lowest power first, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        for power, value in enumerate(coefficients):
            shifted[power] -= root * value
        coefficients = shifted
    return coefficients


@lru_cache(maxsize=256)
def scheme(taps: int, frames: int, most: int, *, head: bool, dtype: torch.dtype = torch.float32) -> Scheme:
    """The scheme for a convolution of `taps` taps over `frames` frames of a buffer.

    Args:
        most: frames of a block, 1 to 4; fewer at the end.
        head: the buffer begins with a clip's first frame: as many frames come out as go in. Otherwise taps - 1 fewer.
    """
    made = frames if head else frames - taps + 1
    before = taps - 1 if head else 0
    rows: list[list[tuple[list[Fraction], list[Fraction]]]] = [[] for _ in range(len(points(most, taps)) + 1)]
    if head:  # all taps see the first frame: their sum is the kernel at point 1
        frame = [Fraction(0)] * frames
        frame[0] = normalisers(points(most, taps))[0]
        rows[0].append((frame, [Fraction(int(j == 0)) for j in range(made)]))
    for start in range(int(head), made, most):
        size = min(most, made - start)
        part = block(size, taps, most)
        for index, coefficients in enumerate(part.to_planes):
            if not any(coefficients):
                continue
            reads = [Fraction(0)] * frames
            for offset, value in enumerate(coefficients):
                reads[max(start + offset - before, 0)] += value
            makes = [Fraction(0)] * made
            makes[start : start + size] = [to_frame[index] for to_frame in part.to_frames]
            rows[index].append((reads, makes))
    flat = [row for of_kernel in rows for row in of_kernel]
    inputs = torch.tensor([[float(value) for value in reads] for reads, _ in flat], dtype=dtype)
    outputs = torch.tensor([[float(value) for value in makes] for _, makes in flat], dtype=dtype).T.contiguous()
    return Scheme(inputs, outputs, tuple(map(len, rows)))


def transformed(weight: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """The kernels of F(most, taps), one after the other: of a weight [O, I, taps, kh, kw] its values [O, I, kh, kw] at
    each point, summed in float32.
    """
    taps = weight.shape[2]
    finite = points(most, taps)
    for point, divisor in zip((*finite, None), normalisers(finite), strict=True):
        powers = [float(point**tap / divisor) for tap in range(taps)] if point is not None else []
        yield _value(weight, powers)


def _value(weight: torch.Tensor, powers: list[float]) -> torch.Tensor:
    """The sum of the taps, each by its factor; without factors the last tap."""
    shape = (*weight.shape[:2], *weight.shape[3:])
    value = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    if not powers:
        return value.copy_(weight[:, :, -1])
    in_place = weight.dtype == torch.float32
    total = torch.mul(weight[:, :, 0], powers[0], out=value) if in_place else weight[:, :, 0].float() * powers[0]
    for tap, power in enumerate(powers[1:], start=1):
        if power:
            total.add_(weight[:, :, tap], alpha=power)
    return value if in_place else value.copy_(total)


def planes(x: torch.Tensor, how: Scheme) -> torch.Tensor:
    """The sums of frames [planes, I, H, W] of a buffer [1, I, T, H, W], all in channels-last memory."""
    frames = x[0].permute(1, 2, 3, 0)
    made = torch.mm(how.inputs.to(x.device), frames.flatten(1))
    return made.view(-1, *frames.shape[1:]).permute(0, 3, 1, 2)


def convolved(
    x: torch.Tensor,
    kernels: Iterable[torch.Tensor],
    bias: torch.Tensor | None,
    how: Scheme,
    target: torch.Tensor,
    *,
    add: bool,
) -> None:
    """Convolve sums of frames, and sum the results to frames.

    Args:
        x: [planes, I, H, W].
        target: [1, O, T, h, w], in any memory, where the frames go.
        add: add them to what is there.
    """
    edges = pairwise(accumulate(how.counts, initial=0))
    shape = (x.shape[0], target.shape[1], *target.shape[3:])
    results = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for index, (kernel, (start, stop)) in enumerate(zip(kernels, edges, strict=True)):
        if start < stop:  # one by one: all of them and their concatenation would be alive at once
            results[start:stop].copy_(_conv2d(x[start:stop], kernel, None if index else bias))
    del x
    results = results.permute(0, 2, 3, 1).reshape(results.shape[0], -1)
    sums = how.outputs.to(results.device)
    rows = target[0].permute(1, 2, 3, 0)
    if not rows[0].is_contiguous():
        made = torch.mm(sums, results).view(rows.shape)
        rows.add_(made) if add else rows.copy_(made)
    elif add:  # whole rows of a plane: a matrix as it lies there
        rows.flatten(1).addmm_(sums, results)
    else:
        torch.mm(sums, results, out=rows.flatten(1))


def _conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if is_widened(x):
        return in_float32(_conv2d, x, weight, bias)
    if x.device.type == "cpu" and onednn_takes(x.dtype):
        return torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)
    return F.conv2d(x, weight, bias)


def convolve(
    x: torch.Tensor,
    kernels: Iterable[torch.Tensor],
    bias: torch.Tensor | None,
    how: Scheme,
    out: torch.Tensor,
    *,
    add: bool,
) -> None:
    """Convolve a buffer [1, I, T, H, W] into `out` [1, O, T', h, w], some rows at a time.

    Args:
        kernels: the transformed ones; where they are made one by one, and all rows are convolved at once, each is gone
            before the next but one is made.
        add: add the result to `out` instead of storing it there.
    """
    _, inputs, _, rows, width = x.shape
    _, outputs, _, height, _ = out.shape
    halo = rows - height
    row_bytes = len(how.inputs) * max(inputs, outputs) * width * x.element_size()
    count = -(-height // max(1, CHUNK // row_bytes - halo))
    kernels = kernels if count == 1 else list(kernels)
    for start, stop in pairwise(height * index // count for index in range(count + 1)):
        read = planes(x[:, :, :, start : stop + halo], how)
        convolved(read, kernels, bias, how, out[:, :, :, start:stop], add=add)


def convolution(x: torch.Tensor, weight: torch.Tensor, most: int) -> Callable[[], torch.Tensor]:
    """The convolution of a buffer by blocks of `most` frames, its kernels transformed: for measuring."""
    how = scheme(weight.shape[2], x.shape[2], most, head=False, dtype=x.dtype)
    kernels = list(transformed(weight, most))
    outputs, _, taps, rows, columns = weight.shape
    shape = (1, outputs, x.shape[2] - taps + 1, x.shape[3] - rows + 1, x.shape[4] - columns + 1)

    def run() -> torch.Tensor:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        convolve(x, kernels, None, how, out, add=False)
        return out

    return run
