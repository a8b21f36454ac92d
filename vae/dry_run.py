"""What a job would have alive at once, without doing it: the very code that will run, run on tensors without data.

So the estimate cannot drift away from the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..memory import LiveBytes
from .config import VaeConfig
from .kernels import Kernels
from .kernels.eager import chunk_bytes
from .network.execution import CarriedFrames, Execution, Layout, Network
from .network.model import VideoVAE
from .network.strips import Axis, Block, blocks, cut
from .network.temporal import Temporal, TransformedKernels


@dataclass(frozen=True)
class Task:
    """One direction through the VAE.

    Attributes:
        stage: "decode" or "encode".
        crop: input cells per latent cell along height and width.
        place: output cells per latent cell along height and width.
        frames: input frames per latent frame, after the first.
    """

    stage: str
    crop: int
    place: int
    frames: int

    def network(self, vae: VideoVAE) -> Network:
        return vae.decode_slice if self.stage == "decode" else vae.encode_slice


def decoding(config: VaeConfig) -> Task:
    return Task("decode", 1, config.spatial_factor, 1)


def encoding(config: VaeConfig) -> Task:
    return Task("encode", config.spatial_factor, 1, config.temporal_factor)


def slices(total: int, size: int, factor: int = 1) -> list[tuple[int, int]]:
    """Return (start, stop) of consecutive slices of a clip: the first holds its first frame and one size more.

    Args:
        total: latent frames (factor 1), or frames of a clip of `factor n + 1` frames.
        size: latent frames per slice, at least 1.
        factor: frames per latent frame.
    """
    step = size * factor
    return list(pairwise([0, *range(1 + step, total, step), total]))


class DryRun:
    """Counts what a job would have alive at once, by running it without data.

    Args:
        shape: [C, T, H, W] of the input.
        size: latent frames per slice.
    """

    def __init__(self, vae: VideoVAE, task: Task, shape: tuple[int, ...], size: int) -> None:
        channels, frames, height, width = shape
        parts = slices(frames, size, task.frames)
        # The pieces of a statistics pass come on top of a strip; none is larger than a frame with all its channels.
        cells = height * width * (vae.config.spatial_factor // task.crop) ** 2
        frame = 4 * cells * max(vae.config.block_out_channels[:2])
        self.statistics_bytes = 2 * min(chunk_bytes(vae.device), frame)
        lengths = tuple(stop - start for start, stop in parts[:2])
        self.case = _Case(vae.config, vae.dtype, task, (channels, height, width), lengths, more=len(parts) > 2)

    def peak(self, layout: Layout, offloaded: bool = False) -> int:
        """Return the bytes alive at once with this layout."""
        live, carried = _count(self.case, Execution, layout)
        return live - carried if offloaded else live

    def base(self, tail_frames: int, offloaded: bool = False) -> int:
        """Return the bytes alive at once with strips of a single cell: the least that any cut needs."""
        live, carried = _count(self.case, _SingleCell, Layout(workspace=1, tail_frames=tail_frames))
        return live - carried if offloaded else live


class _Case(NamedTuple):
    """All that a dry run depends on: the VAE's sizes, the plane, the frames of the first two slices, if more follow."""

    config: VaeConfig
    dtype: torch.dtype
    task: Task
    plane: tuple[int, int, int]
    frames: tuple[int, ...]
    more: bool


class _SingleCell(Execution):
    """An execution that computes one cell of each convolution: everything is allocated, next to nothing is done."""

    def blocks(self, rows: Axis, columns: Axis, cell_bytes: int) -> list[Block]:
        return list(blocks(cut(rows, 1)[:1], cut(columns, 1)[:1]))


@lru_cache(maxsize=256)
def _count(case: _Case, kind: type[Execution], layout: Layout) -> tuple[int, int]:
    """(bytes alive at once, bytes of carried frames among them)."""
    channels, height, width = case.plane
    with _disable_current_modes():  # whoever counts tensors around this counts real ones
        twin = _twin(case.config, case.dtype)
    state = CarriedFrames()
    temporal = Temporal(layout.block_frames, TransformedKernels(keep=layout.keep_kernels))
    with _disable_current_modes(), torch.inference_mode(), LiveBytes(torch.device("meta")) as live:
        for index, frames in enumerate(case.frames):
            x = torch.empty((1, channels, frames, height, width), dtype=case.dtype, device="meta")
            carry = case.more or index < len(case.frames) - 1
            case.task.network(twin)(x, kind(state, carry, layout, Kernels("eager"), temporal))
            del x
    return live.peak, sum(carried.numel() * carried.element_size() for carried in state.frames.values())


@lru_cache(maxsize=8)
def _twin(config: VaeConfig, dtype: torch.dtype) -> VideoVAE:
    """The same VAE without data."""
    with torch.device("meta"):
        return VideoVAE(config).to(dtype).prepare()
