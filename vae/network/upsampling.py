"""The upsampler (twice the size, and twice the frames where time doubles) and the downsampler."""

from __future__ import annotations

import torch
from torch import nn

from .causal_conv import CausalConv3d
from .execution import Execution, empty
from .polyphase import PolyphaseConv
from .sources import Upscaled


class Upsampler(nn.Module):
    """1x1x1 convolution to 4 z C channels, 3-D pixel shuffle, causal 3x3x3 convolution.

    The first frame of a clip becomes one frame, every other one z frames.

    Args:
        channels: C, the same before and after.
        temporal: z, frames per frame: 1 or 2.
    """

    def __init__(self, channels: int, temporal: int) -> None:
        super().__init__()
        self.temporal = temporal
        self.upscale_conv = nn.Conv3d(channels, 4 * temporal * channels, 1)
        self.conv = CausalConv3d(channels, channels)
        self.polyphase: PolyphaseConv | None = None

    def prepare(self) -> None:
        """Derive the composed convolution from the loaded weights."""
        self.polyphase = PolyphaseConv(self.upscale_conv, self.conv, self.temporal)
        self.polyphase.name = f"{self.conv.name}.polyphase"

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """[B, C, T, H, W] to [B, C, z T (- z + 1 at the beginning of a clip), 2 H, 2 W]."""
        polyphase, z = self.polyphase, self.temporal
        batch, channels, frames, height, width = x.shape
        shuffled_before = run.state.get(self.conv.name) is not None
        # Where frames double, frames 0 and 1 of a clip are special: the second half of frame 0 is never made. They
        # are shuffled, and a stream that begins with frame 0 alone keeps to it.
        continued = polyphase is not None and run.state.get(polyphase.name) is not None
        special = 0 if z == 1 or continued else 2
        if polyphase is None or shuffled_before or frames < special:
            return self._shuffle(x, run, beginning=not shuffled_before)
        made = z * frames - (z - 1 if special else 0)
        out = empty((batch, channels, made, 2 * height, 2 * width), x)
        if not special:
            return polyphase(x, run, out)
        self._shuffle(x[:, :, :special], run, beginning=True, out=out[:, :, : z * special - z + 1], carry=False)
        if frames > special or run.carry:
            polyphase(x[:, :, special - 1 :], run, out[:, :, z * special - z + 1 :], follows=True)
        return out

    def _shuffle(
        self,
        x: torch.Tensor,
        run: Execution,
        *,
        beginning: bool,
        out: torch.Tensor | None = None,
        carry: bool | None = None,
    ) -> torch.Tensor:
        """Step by step, the upscaled tensor made block by block inside the convolution's own buffer."""
        source = Upscaled(x, self.upscale_conv, self.temporal, drop_head=beginning, run=run)
        return self.conv(source, run, out=out, carry=carry)


class Downsampler(nn.Module):
    """Causal convolution of stride 2 in space, and in time where time is halved; one row and column of zeros behind.

    Args:
        channels: C, the same before and after.
        temporal: 2 where time is halved, else 1.
    """

    def __init__(self, channels: int, temporal: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (3 if temporal == 2 else 1, 3, 3), (temporal, 2, 2), border=(0, 1))

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """[B, C, T, H, W] to [B, C, ceil(T / temporal), H // 2, W // 2]."""
        return self.conv(x, run)
