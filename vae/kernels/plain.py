"""The operations as a textbook writes them: what every other implementation is measured and checked against."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .eager import Moments, Statistics, biased

NAME = "plain"


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
    """GroupNorm of each frame, then SiLU. See `Kernels.group_norm_silu`."""
    batch, channels, frames, height, width = x.shape
    x = biased(x, input_bias)
    if statistics is None:
        folded = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
        y = F.group_norm(folded, groups, weight, bias, eps)
        y = y.reshape(batch, frames, channels, height, width).transpose(1, 2)
    else:
        shape = (batch, frames, groups, 1, 1, 1)
        grouped = x.float().transpose(1, 2).reshape(batch, frames, groups, -1, height, width)
        normalised = (grouped - statistics.mean.view(shape)) * statistics.rstd.view(shape)
        y = normalised.reshape(batch, frames, channels, height, width).transpose(1, 2)
        y = (y * weight.float().view(-1, 1, 1, 1) + bias.float().view(-1, 1, 1, 1)).to(x.dtype)
    if activation:
        y = F.silu(y)
    return y if out is None else out.copy_(y)


def group_norm_statistics(x: torch.Tensor, groups: int, *, input_bias: torch.Tensor | None = None) -> Moments:
    """Moments of each frame and group. See `Kernels.group_norm_statistics`."""
    x = biased(x, input_bias)
    grouped = x.float().unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, dim=(2, 4, 5), correction=0)
    count = x.shape[1] // groups * x.shape[3] * x.shape[4]
    return Moments(count, mean.transpose(1, 2), variance.transpose(1, 2) * count)


def pixel_shuffle_3d(
    x: torch.Tensor,
    temporal: int,
    *,
    drop_head: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Channels to rows, columns and frames; the head frame is dropped afterwards. See `Kernels.pixel_shuffle_3d`."""
    batch, packed, frames, height, width = x.shape
    channels = packed // (4 * temporal)
    x = biased(x, bias)
    y = x.reshape(batch, 2, 2, temporal, channels, frames, height, width)
    y = y.permute(0, 4, 5, 3, 6, 1, 7, 2).reshape(batch, channels, frames * temporal, height * 2, width * 2)
    if drop_head and temporal > 1:
        y = torch.cat([y[:, :, :1], y[:, :, temporal:]], dim=2)
    y = y if residual is None else y + residual
    return y if out is None else out.copy_(y)


def put(
    x: torch.Tensor, *, out: torch.Tensor | None = None, bias: torch.Tensor | None = None, add: bool = False
) -> torch.Tensor:
    """The sum with the bias by itself, then a copy or a sum. See `Kernels.put`."""
    out = torch.empty_like(x) if out is None else out
    x = biased(x, bias)
    return out.add_(x) if add else out.copy_(x)


def rms_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """RMS norm over channels, then SiLU. See `Kernels.rms_norm_silu`."""
    shape = (x.shape[1], 1, 1, 1)
    y = F.normalize(x, dim=1) * x.shape[1] ** 0.5 * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)
    if activation:
        y = F.silu(y)
    return y if out is None else out.copy_(y)
