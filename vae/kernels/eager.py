"""The operations without needless passes and copies, in PyTorch alone: the twins that every fused kernel must equal.

They run on any device and in any memory layout, write into views (the inside of a padded buffer), and keep their own
temporaries to a fraction of a frame.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .padded import shuffled

NAME = "eager"
CHUNK_BYTES = 4 << 20
"""Size of a temporary of `group_norm_statistics` on a processor: it stays in the cache."""
CARD_CHUNK_BYTES = 64 << 20
"""The same on a card, where every piece costs two dozen launches."""
SHORTEST = 1e-12
"""The least that torch.nn.functional.normalize divides by."""


class Statistics(NamedTuple):
    """Mean and reciprocal standard deviation for a GroupNorm. Attributes: mean, rstd, each float32 [B, T, groups]."""

    mean: torch.Tensor
    rstd: torch.Tensor


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of the numbers in a part of each frame and group.

    Attributes: size: numbers per group; mean, deviations: float32 [B, T, groups].
    """

    size: int
    mean: torch.Tensor
    deviations: torch.Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both parts together (Chan, Golub, LeVeque 1979: no cancellation, whatever the mean is)."""
        size = self.size + other.size
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.size / size)
        deviations = self.deviations + other.deviations + delta.square() * (self.size * other.size / size)
        return Moments(size, mean, deviations)

    def statistics(self, eps: float) -> Statistics:
        """Mean and reciprocal standard deviation, `1 / sqrt(variance + eps)`."""
        return Statistics(self.mean, torch.rsqrt(self.deviations / self.size + eps))


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
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """GroupNorm and SiLU as one multiply-add and one in-place activation. See `Kernels.group_norm_silu`."""
    if statistics is None:
        statistics = group_norm_statistics(x, groups, input_bias=input_bias).statistics(eps)
    scale, shift = scale_and_shift(statistics, weight, bias, input_bias)
    if out is None:
        out = torch.empty_like(x)
    if torch.compiler.is_compiling():  # dynamo knows no `out=` into a view; the compiler fuses this by itself
        y = torch.addcmul(shift, x.float(), scale)
        return out.copy_(F.silu(y) if activation else y)
    if x.dtype == torch.float32:
        torch.addcmul(shift, x, scale, out=out)
        return F.silu(out, inplace=True) if activation else out
    for frame in range(x.shape[2]):  # float32 in between, one frame at a time
        y = torch.addcmul(shift[:, :, frame], x[:, :, frame].float(), scale[:, :, frame])
        out[:, :, frame].copy_(F.silu(y, inplace=True) if activation else y)
    return out


def biased(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x` [B, C, T, H, W] with a bias [C] added, x itself without one."""
    return x if bias is None else x + bias.view(-1, 1, 1, 1)


def scale_and_shift(
    statistics: Statistics, weight: torch.Tensor, bias: torch.Tensor, input_bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalisation and affine map of each frame as `x * scale + shift`, each float32 [B, C, T, 1, 1].

    Channels are innermost in memory, so that a channels-last operand reads them in order.
    """
    per_group = weight.shape[0] // statistics.mean.shape[-1]
    mean = statistics.mean.repeat_interleave(per_group, dim=-1)
    mean = mean if input_bias is None else mean - input_bias.float()
    scale = statistics.rstd.repeat_interleave(per_group, dim=-1) * weight.float()
    shift = torch.addcmul(bias.float(), mean, scale, value=-1)
    return scale.transpose(1, 2)[..., None, None], shift.transpose(1, 2)[..., None, None]


def group_norm_statistics(x: torch.Tensor, groups: int, *, input_bias: torch.Tensor | None = None) -> Moments:
    """Moments of each frame and group, a cache-sized piece at a time. See `Kernels.group_norm_statistics`."""
    batch, channels, frames, height, width = x.shape
    if torch.compiler.is_compiling():
        return _compiled_statistics(biased(x, input_bias), groups)
    if x.device.type == "meta":  # a dry run: what is kept, without the passing pieces
        kept = x.new_empty((batch, frames, groups), dtype=torch.float32)
        return Moments(channels // groups * height * width, kept, kept.clone())
    rows = max(1, chunk_bytes(x.device) // (4 * channels * width))
    moments = [
        _frame_moments(x[item, :, frame], groups, rows, input_bias) for item in range(batch) for frame in range(frames)
    ]
    shape = (batch, frames, groups)
    mean = torch.stack([m.mean for m in moments]).view(shape)
    return Moments(moments[0].size, mean, torch.stack([m.deviations for m in moments]).view(shape))


def chunk_bytes(device: torch.device) -> int:
    """Size of each of the two temporaries of `group_norm_statistics`."""
    return CHUNK_BYTES if device.type == "cpu" else CARD_CHUNK_BYTES


def _compiled_statistics(x: torch.Tensor, groups: int) -> Moments:
    """The same for a compiler to fuse.

    On a processor in two passes: inductor's one-pass variance (torch 2.13) is wrong over a tensor that was put together
    from pieces in time, as convolutions at the beginning of a clip do.
    """
    grouped = x.float().unflatten(1, (groups, -1))
    over = (2, 4, 5)
    if x.device.type == "cpu":
        mean = grouped.mean(over, keepdim=True)
        variance, mean = (grouped - mean).square().mean(over), mean.squeeze(over)
    else:
        variance, mean = torch.var_mean(grouped, dim=over, correction=0)
    count = grouped[0, 0, :, 0].numel()
    return Moments(count, mean.transpose(1, 2), variance.transpose(1, 2) * count)


def _frame_moments(frame: torch.Tensor, groups: int, rows: int, input_bias: torch.Tensor | None) -> Moments:
    """Moments of one frame [C, H, W], `rows` rows at a time; each piece is read once from memory."""
    return reduce(Moments.merge, (_piece_moments(piece, groups, input_bias) for piece in frame.split(rows, dim=1)))


def _piece_moments(piece: torch.Tensor, groups: int, input_bias: torch.Tensor | None) -> Moments:
    """Moments of some rows [C, h, W]: first the mean, then the squares of the differences from it."""
    channels, height, width = piece.shape
    size = channels // groups * height * width
    if piece.stride(0) == 1:  # channels last: sum down a [cells, C] matrix
        cells, cell_axis = piece.permute(1, 2, 0).reshape(height * width, channels), 0
    else:
        cells, cell_axis = piece.reshape(channels, height * width), 1
    cells = cells.float()
    if input_bias is not None:
        cells = cells + input_bias.float().unsqueeze(cell_axis)
    mean = cells.sum(cell_axis).view(groups, -1).sum(1) / size
    centre = mean.repeat_interleave(channels // groups).unsqueeze(cell_axis)
    squares = (cells - centre).square_().sum(cell_axis)
    return Moments(size, mean, squares.view(groups, -1).sum(1))


def pixel_shuffle_3d(
    x: torch.Tensor,
    temporal: int,
    *,
    drop_head: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """One read and one write: the head frame is never copied. See `Kernels.pixel_shuffle_3d`."""
    channels, frames = x.shape[1] // (4 * temporal), x.shape[2]
    out = shuffled(x, temporal, drop_head=drop_head) if out is None else out
    # [B, C, T, k, H, row, W, column]
    source = x.unflatten(1, (2, 2, temporal, channels)).permute(0, 4, 5, 3, 6, 1, 7, 2)
    shift = None
    if bias is not None:
        shift = bias.to(x.dtype).view(2, 2, temporal, channels).permute(3, 2, 0, 1)[:, None, :, None, :, None]
    head = 1 if drop_head and temporal > 1 else 0
    if head:  # [B, C, H, row, W, column]
        _put(_by_parity(out[:, :, 0]), source[:, :, 0, 0], None if shift is None else shift[:, 0, 0])
    if frames > head:
        target = _by_parity(out[:, :, head:]).unflatten(2, (frames - head, temporal))
        _put(target, source[:, :, head:], shift)
    return out if residual is None else out.add_(residual)


def _put(target: torch.Tensor, source: torch.Tensor, shift: torch.Tensor | None) -> None:
    """Copy, adding on the way what there is to add."""
    if shift is None:
        target.copy_(source)
    elif torch.compiler.is_compiling():  # dynamo knows no `out=` into a view
        target.copy_(source + shift)
    else:
        torch.add(source, shift, out=target)


def _by_parity(x: torch.Tensor) -> torch.Tensor:
    """[..., 2H, 2W] as a view [..., H, row, W, column]."""
    return x.unflatten(-1, (x.shape[-1] // 2, 2)).unflatten(-3, (x.shape[-2] // 2, 2))


def put(
    x: torch.Tensor, *, out: torch.Tensor | None = None, bias: torch.Tensor | None = None, add: bool = False
) -> torch.Tensor:
    """One pass where nothing or a bias is added, two for both. See `Kernels.put`."""
    out = torch.empty_like(x) if out is None else out
    shift = None if bias is None else bias.to(x.dtype).view(-1, 1, 1, 1)
    if add:
        out.add_(x)
        return out if shift is None else out.add_(shift)
    _put(out, x, shift)
    return out


def rms_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """RMS norm and SiLU with float32 in between, one frame at a time. See `Kernels.rms_norm_silu`."""
    channels = x.shape[1]
    weight = weight.float().reshape(channels, 1, 1) * channels**0.5
    shift = None if bias is None else bias.float().reshape(channels, 1, 1)
    if out is None:
        out = torch.empty_like(x)
    for frame in range(x.shape[2]):
        cells = x[:, :, frame].float()
        # A sum of squares: PyTorch's vector norm is several times slower along an axis that is not the innermost.
        length = cells.square().sum(1, keepdim=True).sqrt_().clamp_min_(SHORTEST)
        y = cells.div(length).mul_(weight)
        if shift is not None:
            y.add_(shift)
        out[:, :, frame].copy_(F.silu(y, inplace=True) if activation else y)
    return out
