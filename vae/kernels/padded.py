"""The padded buffer that a convolution reads, as a place to write to: its inside, and what surrounds it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Border(NamedTuple):
    """Cells around a plane that are filled with zeros while the plane is written."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


NO_BORDER = Border()


class Padded(NamedTuple):
    """The buffer that an operation writes, and what surrounds the cells it computes.

    Attributes:
        buffer: [B, C, front + T, top + H + bottom, left + W + right], any strides.
        border: cells around each plane that become zero.
        front: frames in front that become copies of the first one, border included.
    """

    buffer: torch.Tensor
    border: Border = NO_BORDER
    front: int = 0

    @property
    def inside(self) -> torch.Tensor:
        """The view [B, C, T, H, W] that is written."""
        left, right, top, bottom = self.border
        _, _, _, height, width = self.buffer.shape
        return self.buffer[:, :, self.front :, top : height - bottom, left : width - right]

    def surround(self) -> None:
        """Fill what surrounds the inside, which has been written."""
        self.zero_border()
        self.repeat_first()

    def zero_border(self) -> None:
        """Zeros around every plane of the inside's frames."""
        frames = self.buffer[:, :, self.front :]
        for axis, before, after in ((3, self.border.top, self.border.bottom), (4, self.border.left, self.border.right)):
            if before:
                frames.narrow(axis, 0, before).zero_()
            if after:
                frames.narrow(axis, frames.shape[axis] - after, after).zero_()

    def repeat_first(self) -> None:
        """Copies of the first frame, border included, in front of it."""
        if self.front:
            first = self.buffer[:, :, self.front : self.front + 1]
            self.buffer[:, :, : self.front].copy_(first.expand(-1, -1, self.front, -1, -1))


def unpacked(out: torch.Tensor | Padded | None, like: torch.Tensor) -> tuple[torch.Tensor, Border, int]:
    """(tensor to write, border, frames in front) of an operation's `out`; None allocates a tensor like `like`."""
    if isinstance(out, Padded):
        return out.inside, out.border, out.front
    return torch.empty_like(like) if out is None else out, NO_BORDER, 0


def shuffled(x: torch.Tensor, temporal: int, *, drop_head: bool) -> torch.Tensor:
    """Return uninitialised memory in the layout of `x` for its pixel shuffle. See `Kernels.pixel_shuffle_3d`."""
    batch, packed, frames, height, width = x.shape
    last = torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format
    made = frames * temporal - (temporal - 1 if drop_head else 0)
    shape = (batch, packed // (4 * temporal), made, height * 2, width * 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
