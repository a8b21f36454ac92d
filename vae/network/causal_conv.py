"""The causal 3-D convolution: padding in time only in front, and frames carried from slice to slice.

At the beginning of a clip the first frame stands in for the frames before it. Instead of copying it there, the kernel
taps that would meet the copies are summed: for the first frame a convolution has a third of the work, and decoding a
single image has a third of it everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..kernels import Kernels
from .convolution import bias_is_a_pass, conv3d
from .execution import Execution, empty
from .sources import Source, TensorSource, carry_frames, gather
from .strips import Axis


class Kernel(NamedTuple):
    """One of the convolutions that a block takes.

    Attributes: weight: [O, I, taps, kh, kw]; frame: its first output frame; reads: frames of the buffer, None for all.
    """

    weight: torch.Tensor
    frame: int = 0
    reads: int | None = None


class CausalConv3d(nn.Conv3d):
    """Convolution [B, I, T, H, W] -> [B, O, T', H', W'], with T' = ceil(T / stride) from the beginning of a clip.

    Args:
        in_channels, out_channels: channels.
        kernel: (frames, rows, columns), each 1 or 3.
        stride: (frames, rows, columns), each 1 or 2.
        border: zeros (before, after) along height and along width; None keeps the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        border: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride)
        self.name = ""
        """Unique in its network: the key of its carried frames."""
        self.border = (kernel[1] // 2, kernel[1] // 2) if border is None else border

    @property
    def carried(self) -> int:
        """Frames carried to the next slice: kernel less stride."""
        return self.kernel_size[0] - self.stride[0]

    def forward(  # type: ignore[override]
        self,
        source: Source | torch.Tensor,
        run: Execution,
        *,
        out: torch.Tensor | None = None,
        add: bool = False,
        biased: bool = True,
        carry: bool | None = None,
    ) -> torch.Tensor:
        """Convolve the source, block by block.

        Args:
            source: a tensor [B, I, T, H, W], or what makes one block by block.
            out: where the result goes; None allocates.
            add: add the result to `out` instead of storing it there.
            biased: False leaves the bias out: whoever reads the result adds it.
            carry: whether to carry frames on to a next slice; None = as the execution says.
        """
        source = TensorSource(source, run.kernels) if isinstance(source, torch.Tensor) else source
        carry = run.carry if carry is None else carry
        memory = run.state.get(self.name)
        front = self._front(memory)
        rows, columns = self._axes(source)
        head, frames = not front, front + source.shape[2]
        temporal = run.temporal
        cells = rows.outputs * columns.outputs
        if temporal is not None and not temporal.may(source.x, self.weight, self.stride, frames, cells, head=head):
            temporal = None
        cell_bytes = self._cell_bytes(source)
        if temporal is not None:
            cell_bytes += temporal.cell_bytes(source.x, self.weight, frames, head=head)
        blocks = run.blocks(rows, columns, cell_bytes)
        kernels = None if temporal is not None else self._kernels(source, front)
        kept = run.state.keep(self.name, self.carried, source.shape, source.x) if carry else None
        bias = self.bias if biased else None
        if out is None and kernels is not None and len(kernels) == 1 and blocks[0].covers(rows, columns):
            run.may_stop()
            buffer = gather(source, memory, front, blocks[0], run.kernels)
            if kept is not None:
                carry_frames(buffer, kept, blocks[0], run.kernels)
            return conv3d(buffer, kernels[0].weight, bias, self.stride)
        if out is None:
            before = self.carried if memory is not None else self.kernel_size[0] - 1
            frames = (before + source.shape[2] - self.kernel_size[0]) // self.stride[0] + 1
            shape = (source.shape[0], self.out_channels, frames, rows.outputs, columns.outputs)
            out = empty(shape, source.x)
        for block in blocks:
            run.may_stop()
            buffer = gather(source, memory, front, block, run.kernels)
            target = out[..., slice(*block.rows[:2]), slice(*block.columns[:2])]
            if temporal is None or not temporal.convolve(
                self.name, buffer, self.weight, bias, target, head=head, add=add, cells=cells
            ):
                kernels = kernels or self._kernels(source, front)
                self._convolve(buffer, kernels, bias, target, run.kernels, add=add)
            if kept is not None:
                carry_frames(buffer, kept, block, run.kernels)
            del buffer
        return out

    def _kernels(self, source: Source, front: int) -> list[Kernel]:
        """What is convolved with a buffer with so many frames in front of the source's own."""
        return [Kernel(self.weight)] if front else causal_kernels(self.weight, self.stride[0], source.shape[2])

    def _convolve(
        self,
        buffer: torch.Tensor,
        kernels: list[Kernel],
        bias: torch.Tensor | None,
        out: torch.Tensor,
        operations: Kernels,
        *,
        add: bool,
    ) -> None:
        later = bias_is_a_pass(buffer)
        for kernel in kernels:
            result = conv3d(buffer[:, :, : kernel.reads], kernel.weight, None if later else bias, self.stride)
            target = out[:, :, kernel.frame : kernel.frame + result.shape[2]]
            operations.put(result, out=target, bias=bias if later else None, add=add)
            del result

    def _front(self, memory: torch.Tensor | None) -> int:
        """Frames of a buffer in front of the source's own: none at the beginning of a clip (see `causal_kernels`)."""
        return 0 if memory is None else self.carried

    def _axes(self, source: Source) -> tuple[Axis, Axis]:
        *_, height, width = source.shape
        _, kernel, _ = self.kernel_size
        _, stride, _ = self.stride
        return Axis(height, kernel, stride, *self.border), Axis(width, kernel, stride, *self.border)

    def _cell_bytes(self, source: Source) -> int:
        """Bytes per output cell of a block's buffer and result, and of what the source needs on the way."""
        cells = self.stride[1] * self.stride[2]
        stored = self.in_channels * (source.shape[2] + self.kernel_size[0] - 1) * cells
        stored += self.out_channels * source.shape[2]
        return stored * source.x.element_size() + source.cell_bytes * cells


def causal_kernels(weight: torch.Tensor, stride: int, frames: int) -> list[Kernel]:
    """The convolutions that stand for a causal one over the first `frames` frames of a clip.

    Output frame j reaches `taps - 1 - j stride` frames in front of the clip; the taps there see the first frame.
    """
    taps = weight.shape[2]
    kernels: list[Kernel] = []
    for frame in range(-(-(taps - 1) // stride)):
        reads = 1 + frame * stride
        if reads <= frames:
            kernels.append(Kernel(fold(weight, taps - reads), frame, reads))
    if frames >= taps:
        kernels.append(Kernel(weight, len(kernels)))
    return kernels


def fold(weight: torch.Tensor, missing: int) -> torch.Tensor:
    """The kernel [O, I, taps, kh, kw] with its first `missing + 1` taps in time summed into one (in float32)."""
    outputs, inputs, taps, height, width = weight.shape
    folded = empty((outputs, inputs, taps - missing, height, width), weight)
    first = folded[:, :, 0]
    head = first.copy_(weight[:, :, 0]) if weight.dtype == torch.float32 else weight[:, :, 0].float()
    for tap in range(1, missing + 1):
        head += weight[:, :, tap]
    if head is not first:
        first.copy_(head)
    folded[:, :, 1:] = weight[:, :, missing + 1 :]
    return folded
