"""How one call of the networks runs. It is handed down with every call, so that the modules hold no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..kernels import Kernels
from .strips import Axis, Block, Span, blocks, cut, fit, whole
from .temporal import Temporal


class CarriedFrames:
    """Frames of some convolutions' input, by name, that a network carries from one slice of a clip to the next.

    They belong to one decode (or encode) and end with it, whatever happens: an exception can leave nothing behind,
    and two decodes cannot disturb each other.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.frames: dict[str, torch.Tensor] = {}
        self.device = device
        """The device that holds the frames; None for the one that made them."""

    def copy(self) -> CarriedFrames:
        """Return the same frames in memory of their own, so that a slice can be run twice."""
        twin = CarriedFrames(self.device)
        twin.frames = {name: frames.clone() for name, frames in self.frames.items()}
        return twin

    def get(self, name: str) -> torch.Tensor | None:
        """Return the carried frames [B, C, m, H, W], or None at the beginning of a clip."""
        return self.frames.get(name)

    def keep(self, name: str, frames: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor | None:
        """Return where a convolution puts the frames it carries on: the old ones' place, or new memory.

        Args:
            frames: how many it carries; None is returned for 0.
            shape: (B, C, T, H, W) of what it convolves.
            like: a tensor of its dtype, device and memory layout.
        """
        if frames and name not in self.frames:
            batch, channels, _, height, width = shape
            self.frames[name] = empty((batch, channels, frames, height, width), like, device=self.device)
        return self.frames.get(name)


@dataclass(frozen=True)
class Layout:
    """How planes are cut into strips.

    Attributes:
        rows, columns: fixed numbers of strips; 0 = as `workspace` asks.
        workspace: bytes that the temporaries of one strip may take; None = no limit.
        tail_frames: frames that the last, purely spatial levels of a network take at a time; 0 = all.
        block_frames: frames that a convolution over time may make at once from sums of frames; 0 = conv3d alone.
        keep_kernels: whether the kernels that takes are kept from use to use; where memory is short they are not.
    """

    rows: int = 0
    columns: int = 0
    workspace: int | None = None
    tail_frames: int = 0
    block_frames: int = 0
    keep_kernels: bool = True

    @property
    def uncut(self) -> bool:
        return self.workspace is None and self.rows <= 1 and self.columns <= 1


@dataclass(frozen=True)
class Execution:
    """One call: its state, what it may do, and how it cuts its planes.

    Attributes:
        state: frames carried between slices.
        carry: whether another slice follows, so that frames have to be carried on.
        layout: how planes are cut.
        kernels: the operations with more than one implementation.
        temporal: how convolutions over time are computed; None for conv3d alone.
        check_cancel: called before every block of every convolution; it stops the call by raising. None where it would
            be a part of compiled code, or come long before what a card still has to do.
    """

    state: CarriedFrames = field(default_factory=CarriedFrames)
    carry: bool = False
    layout: Layout = Layout()
    kernels: Kernels = field(default_factory=Kernels)
    temporal: Temporal | None = None
    check_cancel: Callable[[], None] | None = None

    def may_stop(self) -> None:
        """Give the caller the chance to stop the call."""
        if self.check_cancel is not None:
            self.check_cancel()

    def blocks(self, rows: Axis, columns: Axis, cell_bytes: int) -> list[Block]:
        """The blocks a convolution is computed in, row strip by row strip.

        Args:
            cell_bytes: bytes of temporaries per output cell.
        """
        layout = self.layout
        if layout.uncut:
            return [Block(whole(rows), whole(columns))]
        height, width = rows.outputs, columns.outputs
        if layout.workspace is not None:
            height, width = fit(rows, columns, cell_bytes, layout.workspace)
        if layout.rows:
            height = -(-rows.outputs // layout.rows)
        if layout.columns:
            width = -(-columns.outputs // layout.columns)
        return list(blocks(cut(rows, height), cut(columns, width)))


Network = Callable[[torch.Tensor, Execution], torch.Tensor]
"""One slice [B, C, T, H, W] through a network, or through a part of one."""


def empty(shape: tuple[int, ...], like: torch.Tensor, *, device: torch.device | None = None) -> torch.Tensor:
    """Return uninitialised memory of `shape` in the dtype, device and memory layout of the 5-D tensor `like`."""
    layout = torch.channels_last_3d if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=device or like.device, memory_format=layout)


def is_channels_last(x: torch.Tensor) -> bool:
    """Return whether neighbouring channels are neighbours in memory, also for views into a larger tensor."""
    return x.stride(1) == 1 and x.shape[1] > 1


def region(x: torch.Tensor, rows: Span, columns: Span) -> torch.Tensor:
    """Return the view of a tensor [B, C, T, H, W] that a block reads."""
    return x[..., rows.read_start : rows.read_stop, columns.read_start : columns.read_stop]
