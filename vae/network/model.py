"""Encoder, decoder and the whole VAE, with the module names of the released checkpoint.

Nothing here holds state: what one call needs is handed down as an `Execution`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from ..config import VaeConfig
from .blocks import DownBlock, MidBlock, ResnetBlock, UpBlock
from .causal_conv import CausalConv3d
from .execution import Execution, Network
from .sources import Activated
from .temporal import TransformedKernels
from .upsampling import Upsampler


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] in -1..1 to moments [B, 32, T', H // 8, W // 8]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, channels[0])
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in range(config.levels))
        self.mid_block = MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], config.norm_eps)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels)
        self.spatial_levels = config.levels - 1 - config.temporal_scale_num
        """Levels at the beginning that leave time alone: they can take any number of frames at a time."""

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        x = by_frames(self._head, x, run)
        for block in self.down_blocks[self.spatial_levels :]:
            x = block(x, run)
        x = self.mid_block(x, run)
        return self.conv_out(Activated(x, self.conv_norm_out, run), run)

    def _head(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        x = self.conv_in(x, run)
        for block in self.down_blocks[: self.spatial_levels]:
            x = block(x, run)
        return x


class Decoder(nn.Module):
    """Latents [B, 16, T', H', W'] to pixels [B, 3, T, 8 H', 8 W'], not clamped."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = CausalConv3d(config.latent_channels, channels[-1])
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in range(config.levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = CausalConv3d(channels[0], config.out_channels)
        self.temporal_levels = config.temporal_scale_num
        """Levels at the beginning that make frames; those after them can take any number of frames at a time."""

    def forward(self, z: torch.Tensor, run: Execution) -> torch.Tensor:
        x = self.conv_in(z, run)
        x = self.mid_block(x, run)
        for block in self.up_blocks[: self.temporal_levels]:
            x = block(x, run)
        return by_frames(self._tail, x, run)

    @property
    def last_residual_block(self) -> ResnetBlock:
        """The last one at full resolution."""
        level = self.up_blocks[-1]
        assert isinstance(level, UpBlock)  # noqa: S101 - for the type checker
        block = level.resnets[-1]
        assert isinstance(block, ResnetBlock)  # noqa: S101 - for the type checker
        return block

    def _tail(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        for block in self.up_blocks[self.temporal_levels :]:
            x = block(x, run)
        return self.conv_out(Activated(x, self.conv_norm_out, run), run)


class VideoVAE(nn.Module):
    """A causal video VAE. `vae.decode` and `vae.encode` of this package run it; the module is the networks alone.

    Args:
        config: its sizes.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        latent = config.latent_channels
        self.quant_conv = CausalConv3d(2 * latent, 2 * latent, (1, 1, 1)) if config.use_quant_conv else None
        self.post_quant_conv = CausalConv3d(latent, latent, (1, 1, 1)) if config.use_post_quant_conv else None
        for name, module in self.named_modules():
            if isinstance(module, CausalConv3d):
                module.name = name
        self.overflowed: set[str] = set()
        """Stages ("decode", "encode") whose values did not fit float16."""
        self._bfloat16: list[VideoVAE] = []
        self.transformed = TransformedKernels()
        """Kernels of convolutions over time, kept from one decode to the next."""

    def in_bfloat16(self) -> VideoVAE:
        """Return a copy in bfloat16 on the same device: the same one until this VAE is moved or converted."""
        if not self._bfloat16:
            self._bfloat16 = [copy.deepcopy(self).to(torch.bfloat16)]
        return self._bfloat16[0]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> VideoVAE:
        before = self.device, self.dtype
        super()._apply(fn, recurse)
        self.transformed.drop()
        if (self.device, self.dtype) != before:
            self._bfloat16 = []
        return self

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def prepare(self) -> VideoVAE:
        """Make loaded weights ready to run: memory layout, and the composed weights of the upsamplers."""
        self.transformed.drop()
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        for module in self.modules():
            if isinstance(module, Upsampler):
                module.prepare()
        return self.requires_grad_(requires_grad=False).eval()

    def decode_slice(self, z: torch.Tensor, run: Execution) -> torch.Tensor:
        """One slice of unscaled latents [B, 16, T', H', W'] to pixels [B, 3, T, H, W]; no branch depends on data."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z, run)
        return self.decoder(in_layout(z), run)

    def encode_slice(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """One slice of pixels [B, 3, T, H, W] to moments [B, 32, T', H', W']: means, then log variances."""
        moments = self.encoder(in_layout(x), run)
        return moments if self.quant_conv is None else self.quant_conv(moments, run)


def in_layout(x: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory layout of all activations."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def by_frames(stage: Network, x: torch.Tensor, run: Execution) -> torch.Tensor:
    """Run a stage that leaves time alone a few frames at a time: only those frames' activations are alive.

    The stage is causal, so frames carried from piece to piece make it exact, as between slices.
    """
    size, frames = run.layout.tail_frames, x.shape[2]
    if not 0 < size < frames:
        return stage(x, run)
    # The first frame of a clip is one more than whole blocks of convolutions over time: it goes with the first of them.
    first = size + 1 if run.layout.block_frames and frames % size == 1 else size
    pieces = []
    for start, stop in pairwise([0, *range(first, frames, size), frames]):
        pieces.append(stage(x[:, :, start:stop], run if stop == frames else replace(run, carry=True)))
    return torch.cat(pieces, dim=2)
