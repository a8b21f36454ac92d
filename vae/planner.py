"""Choosing how a decode or an encode is cut, so that it fits the memory: the budget, the estimate, the decision.

The estimate is no formula: the very code that will run is run once on tensors without data ("meta"), and what would be
alive at once is counted. So it cannot drift away from the code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..errors import InputError
from .config import VaeConfig
from .execution import Execution, Layout, StreamState
from .kernels import Kernels
from .memory import LiveBytes, free_bytes
from .model import VideoVAE
from .settings import Optimizations, VaeSettings, pair
from .streaming import slices
from .strips import Axis, Block, blocks, cut

GIB = 1 << 30
FREE_SHARE = 0.85
"""Of the free memory; the rest is for library workspaces and fragmentation, which the estimate does not see."""
CHUNKS = 8 << 20
"""What the pieces of a statistics pass may take besides a strip."""
WORKSPACE = 64 << 20
"""Bytes of temporaries per strip where memory is no concern: past this size a strip gains nothing."""


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

    def network(self, vae: VideoVAE) -> Callable[[torch.Tensor, Execution], torch.Tensor]:
        return vae.decode_slice if self.stage == "decode" else vae.encode_slice


def decoding(config: VaeConfig) -> Task:
    return Task("decode", 1, config.spatial_factor, 1)


def encoding(config: VaeConfig) -> Task:
    return Task("encode", config.spatial_factor, 1, config.temporal_factor)


@dataclass(frozen=True)
class Plan:
    """How one job is cut.

    Attributes:
        tiled: whether planes are cut into independent tiles.
        layout: strips inside the networks.
        temporal_slice: latent frames per slice.
        offload_state: whether carried frames wait in main memory.
        peak: estimated bytes above weights and output.
        budget: bytes that were allowed, or None for no limit.
        reason: how it was decided.
    """

    tiled: bool
    layout: Layout
    temporal_slice: int
    offload_state: bool
    peak: int
    budget: int | None
    reason: str


def budget_of(settings: VaeSettings, device: torch.device) -> tuple[int | None, str]:
    """Bytes that may be used above weights and output, and where the number comes from; None = no limit known."""
    if settings.memory_budget_gib:
        return int(settings.memory_budget_gib * GIB), "given"
    free = free_bytes(device)
    if free is None:
        return None, "free memory unknown"
    return int(FREE_SHARE * free), f"{FREE_SHARE:.0%} of {free / GIB:.1f} GiB free"


def make_plan(vae: VideoVAE, task: Task, shape: tuple[int, ...], settings: VaeSettings, budget: int | None) -> Plan:
    """Cut a job so that it stays within the budget.

    Args:
        shape: [C, T, H, W] of the input, one item of a batch.
        budget: bytes above weights and output, or None for no limit.

    Raises:
        InputError: "memory_budget_gib" is too small for even the smallest cut; names the least that works.
    """
    if settings.mode == "tiles":
        return _tiled(vae, task, shape, settings, budget, "asked for")
    offload = settings.state_device == "cpu" and vae.device.type != "cpu"
    size = settings.temporal_slice or 1
    dry = DryRun(vae, task, shape, size, settings.optimizations)
    uncut = Plan(False, Layout(), size, offload, dry.peak(Layout(), offload), budget, "")
    if settings.mode == "whole":
        return replace(uncut, reason="asked for")
    if any(settings.strips):
        rows, columns = settings.strips
        layout = Layout(max(rows, 1), max(columns, 1))
        return replace(uncut, layout=layout, peak=dry.peak(layout, offload), reason="strips asked for")
    offloads = (offload,) if offload or settings.mode == "exact" or vae.device.type == "cpu" else (False, True)
    least = uncut.peak
    for offloaded in offloads:
        for tail in (0, 4, 2, 1):
            base = dry.base(tail, offloaded) + CHUNKS
            least = min(least, base)
            if budget is None or base + WORKSPACE <= budget:
                workspace = WORKSPACE
            elif tail == 1 and base < budget:
                workspace = budget - base
            else:
                continue
            layout = Layout(workspace=workspace, tail_frames=tail)
            reason = "strips with shared statistics" + (", carried frames in main memory" if offloaded else "")
            return Plan(False, layout, size, offloaded, base + workspace, budget, reason)
    if settings.mode == "auto":
        reason = f"even the smallest strips need {least / GIB:.2f} GiB of {budget / GIB if budget else 0:.2f} GiB"
        return _tiled(vae, task, shape, settings, budget, reason)
    reason = f"even the smallest strips need {least / GIB:.3f} GiB"
    raise InputError("memory_budget_gib", settings.memory_budget_gib, reason, f"give {least / GIB + 0.001:.3f} or more")


def _tiled(
    vae: VideoVAE, task: Task, shape: tuple[int, ...], settings: VaeSettings, budget: int | None, reason: str
) -> Plan:
    """Tiles of the size asked for, cut into strips where even one tile does not fit."""
    factor = vae.config.spatial_factor
    channels, frames, height, width = shape
    tile = [max(1, size // factor) * task.crop for size in pair(settings.tile_size)]
    tile_shape = (channels, frames, min(height, tile[0]), min(width, tile[1]))
    inner = make_plan(vae, task, tile_shape, replace(settings, mode="exact"), budget)
    return replace(inner, tiled=True, reason=reason)


class DryRun:
    """Counts what a job would have alive at once, by running it without data.

    Args:
        shape: [C, T, H, W] of the input.
        size: latent frames per slice.
    """

    def __init__(
        self, vae: VideoVAE, task: Task, shape: tuple[int, ...], size: int, optimizations: Optimizations
    ) -> None:
        self.twin = _twin(vae.config, vae.dtype, optimizations.channels_last)
        self.task = task
        self.shape = shape
        self.parts = slices(shape[1], size, task.frames)[:2]
        self.optimizations = optimizations

    def peak(self, layout: Layout, offloaded: bool = False) -> int:
        """Bytes alive at once with this layout."""
        return self._run(Execution, layout, offloaded)

    def base(self, tail_frames: int, offloaded: bool = False) -> int:
        """The same with strips of a single cell: what no cut can avoid."""
        return self._run(_SingleCell, Layout(workspace=1, tail_frames=tail_frames), offloaded)

    def _run(self, kind: type[Execution], layout: Layout, offloaded: bool) -> int:
        state = StreamState()
        channels, _, height, width = self.shape
        with torch.inference_mode(), LiveBytes() as live:
            for index, (start, stop) in enumerate(self.parts):
                x = torch.empty((1, channels, stop - start, height, width), dtype=self.twin.dtype, device="meta")
                more = index < len(self.parts) - 1 or self.parts[-1][1] < self.shape[1]
                run = kind(state, more, layout, self.optimizations, Kernels("eager"))
                self.task.network(self.twin)(x, run)
                del x
        carried = sum(frames.numel() * frames.element_size() for frames in state.frames.values())
        return live.peak - carried if offloaded else live.peak


class _SingleCell(Execution):
    """An execution that computes one cell of each convolution: everything is allocated, next to nothing is done."""

    def blocks(self, rows: Axis, columns: Axis, cell_bytes: int) -> list[Block]:
        return list(blocks(cut(rows, 1)[:1], cut(columns, 1)[:1]))


@lru_cache(maxsize=8)
def _twin(config: VaeConfig, dtype: torch.dtype, channels_last: bool) -> VideoVAE:
    """The same VAE without data."""
    with torch.device("meta"):
        return VideoVAE(config).to(dtype).prepare(channels_last=channels_last)
