"""Residual block, mid block, and the levels of encoder and decoder.

Blocks own their input: a residual sum is written over it.
"""

from __future__ import annotations

import torch
from torch import nn

from ..config import VaeConfig
from .attention import FrameAttention
from .causal_conv import CausalConv3d
from .convolution import bias_is_a_pass
from .execution import Execution
from .sources import Activated
from .upsampling import Downsampler, Upsampler


class ResnetBlock(nn.Module):
    """`x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1x1x1 convolution of x where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        later = self.conv1.bias if bias_is_a_pass(x) else None
        h = self.conv1(Activated(x, self.norm1, run), run, biased=later is None)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x, run)
        return self.conv2(Activated(h, self.norm2, run, later), run, out=x, add=True)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels, groups, eps = config.block_out_channels[-1], config.norm_num_groups, config.norm_eps
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, eps) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups, eps)])

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        x = self.resnets[0](x, run)
        x = self.attentions[0](x, run)
        return self.resnets[1](x, run)


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then, except at the last level, a downsampler."""

    def __init__(self, config: VaeConfig, level: int) -> None:
        super().__init__()
        channels = config.block_out_channels
        inputs = [channels[max(level - 1, 0)], *[channels[level]] * (config.layers_per_block - 1)]
        groups, eps = config.norm_num_groups, config.norm_eps
        self.resnets = nn.ModuleList(ResnetBlock(i, channels[level], groups, eps) for i in inputs)
        last = level == config.levels - 1
        temporal = 2 if config.halves_time(level) else 1
        self.downsamplers = nn.ModuleList([] if last else [Downsampler(channels[level], temporal)])

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        for module in (*self.resnets, *self.downsamplers):
            x = module(x, run)
        return x


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks, then, except at the last level, an upsampler."""

    def __init__(self, config: VaeConfig, level: int) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        inputs = [channels[max(level - 1, 0)], *[channels[level]] * config.layers_per_block]
        groups, eps = config.norm_num_groups, config.norm_eps
        self.resnets = nn.ModuleList(ResnetBlock(i, channels[level], groups, eps) for i in inputs)
        last = level == config.levels - 1
        temporal = 2 if config.doubles_time(level) else 1
        self.upsamplers = nn.ModuleList([] if last else [Upsampler(channels[level], temporal)])

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        for module in (*self.resnets, *self.upsamplers):
            x = module(x, run)
        return x
