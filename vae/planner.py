"""Choosing how a decode or an encode is cut, so that it fits the memory: the budget, the estimate, the decision.

The estimate is no formula: the very code that will run is run once on tensors without data ("meta"), and what would be
alive at once is counted. So it cannot drift away from the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from ..errors import InputError
from ..memory import GIB, LiveBytes, device_memory
from .config import VaeConfig
from .kernels import Kernels
from .kernels.eager import chunk_bytes
from .network.execution import CarriedFrames, Execution, Layout, Network
from .network.model import VideoVAE
from .network.strips import Axis, Block, blocks, cut
from .settings import VaeSettings, pair

FREE_SHARE = 0.85
"""Share of the free memory that is used; the estimate does not see library workspaces and fragmentation."""
STRIP = 16 << 20
"""Bytes of temporaries per strip on a processor: they stay near its caches, larger ones are slower."""
SMALLEST_TILE = 64
"""Pixels; "auto" makes no smaller tiles."""
TAILS = (0, 2, 1)
"""Frames at a time at full resolution where planes stay whole, tried in this order; 0 is all of a slice: on an H200 two
at a time take 1.08 times as long and 0.8 times the memory. Strips take one: two are no faster by more than the noise,
and take a tenth more memory."""


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


@dataclass(frozen=True)
class Plan:
    """How one job is cut.

    Attributes:
        tiles: (height, width) in pixels of the independent tiles that planes are cut into; () for none.
        layout: strips inside the networks.
        temporal_slice: latent frames per slice.
        offload_state: whether carried frames wait in main memory.
        peak: estimated bytes above weights and output.
        budget: bytes that were allowed.
        reason: how it was decided.
        tiles_at_a_time: tiles at work at the same time.
    """

    tiles: tuple[int, ...]
    layout: Layout
    temporal_slice: int
    offload_state: bool
    peak: int
    budget: int
    reason: str
    tiles_at_a_time: int = 1


def budget_of(settings: VaeSettings, device: torch.device) -> tuple[int, str]:
    """Return the bytes that may be used above weights and output, and where the number comes from."""
    if settings.memory_budget_gib:
        return int(settings.memory_budget_gib * GIB), "given"
    free = device_memory(device).free
    budget, origin = int(FREE_SHARE * free), f"{FREE_SHARE:.0%} of {free / GIB:.1f} GiB free"
    if settings.compile is not None and settings.compile_headroom_gib and settings.compile_memory_check:
        budget = max(1, budget - int(settings.compile_headroom_gib * GIB))
        origin += f" but {settings.compile_headroom_gib:g} GiB for compiled code"
    return budget, origin


def make_plan(vae: VideoVAE, task: Task, shape: tuple[int, ...], settings: VaeSettings, budget: int) -> Plan:
    """Cut a job so that it stays within the budget.

    Args:
        shape: [C, T, H, W] of the input, one item of a batch.
        budget: bytes above weights and output.

    Raises:
        InputError: "memory_budget_gib" is too small for even the smallest cut; names the least that works.
    """
    if settings.mode == "tiles":
        return _tiled(vae, task, shape, settings, budget, "asked for")
    on_card = vae.device.type != "cpu"
    offload = settings.state_device == "cpu" and on_card
    size = settings.temporal_slice or 1
    dry = DryRun(vae, task, shape, size)
    if settings.mode == "whole" or any(settings.strips):
        rows, columns = settings.strips
        layout = Layout() if settings.mode == "whole" else Layout(max(rows, 1), max(columns, 1))
        return Plan((), layout, size, offload, dry.peak(layout, offload), budget, "asked for")
    peak = 0
    for offloaded in (True,) if offload or not on_card else (False, True):
        offloaded = offloaded and on_card
        for layout, peak in _layouts(dry, budget, offloaded, whole_planes=on_card or settings.compile is not None):
            if peak <= budget:
                reason = "whole planes fit" if layout.uncut else "strips with shared statistics"
                reason += ", carried frames in main memory" if offloaded else ""
                return Plan((), layout, size, offloaded, peak, budget, reason)
    if settings.mode == "auto":
        reason = f"even the smallest strips need {peak / GIB:.2f} GiB"
        return _tiled(vae, task, shape, settings, budget, reason)
    reason = f"even the smallest strips need {peak / GIB:.3f} GiB"
    cure = f"give {peak / GIB + 0.001:.3f} or more, or use tiles"
    raise InputError("memory_budget_gib", settings.memory_budget_gib, reason, cure)


def _layouts(dry: DryRun, budget: int, offloaded: bool, *, whole_planes: bool) -> Iterator[tuple[Layout, int]]:
    """Ways to cut planes, fastest first, each with the bytes it needs; the last one needs the least.

    Args:
        whole_planes: whether those are fastest. They are on a card, and what is compiled; a processor runs strips that
            its caches hold as fast as anything.
    """
    if whole_planes:
        for tail in TAILS:
            layout = Layout(tail_frames=tail)
            yield layout, dry.peak(layout, offloaded)
    base = dry.base(1, offloaded) + dry.statistics_bytes
    yield Layout(workspace=STRIP, tail_frames=1), base + STRIP
    workspace = max(budget - base, 1)
    yield Layout(workspace=workspace, tail_frames=1), base + workspace


def _tiled(vae: VideoVAE, task: Task, shape: tuple[int, ...], settings: VaeSettings, budget: int, reason: str) -> Plan:
    """Tiles of the size asked for, in strips where they must be; in "auto", smaller tiles where even that is too much.

    The reference blending stays with its sizes: others would blend otherwise.
    """
    factor = vae.config.spatial_factor
    channels, frames, height, width = shape
    sizes = pair(settings.tile_size)
    while True:
        tile = [max(1, size // factor) * task.crop for size in sizes]
        tile_shape = (channels, frames, min(height, tile[0]), min(width, tile[1]))
        try:
            inner = make_plan(vae, task, tile_shape, replace(settings, mode="exact"), budget)
        except InputError:
            if settings.mode != "auto" or settings.blending == "reference" or min(sizes) // 2 < SMALLEST_TILE:
                raise
            sizes = (sizes[0] // 2, sizes[1] // 2)
            continue
        if sizes != pair(settings.tile_size):
            reason += f", and so do tiles larger than {sizes[0]} x {sizes[1]}"
        several = tile_shape[2:] != (height, width) and not overlap_refusal(settings, vae.device)
        both = 2 * inner.peak
        if several and both <= budget:
            return replace(inner, tiles=sizes, reason=reason, tiles_at_a_time=2, peak=both)
        return replace(inner, tiles=sizes, reason=reason)


def overlap_refusal(settings: VaeSettings, device: torch.device) -> str:
    """Return why two tiles are not worked on at a time, or "" where only their memory decides."""
    if not settings.overlap_tiles:
        return "off"
    if device.type != "cuda":
        return "there is no CUDA device"
    return "CUDA graphs work on one slice at a time" if settings.cuda_graphs else ""


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
    twin = _twin(case.config, case.dtype)
    channels, height, width = case.plane
    state = CarriedFrames()
    with torch.inference_mode(), LiveBytes(torch.device("meta")) as live:
        for index, frames in enumerate(case.frames):
            x = torch.empty((1, channels, frames, height, width), dtype=case.dtype, device="meta")
            carry = case.more or index < len(case.frames) - 1
            case.task.network(twin)(x, kind(state, carry, layout, Kernels("eager")))
            del x
    return live.peak, sum(carried.numel() * carried.element_size() for carried in state.frames.values())


@lru_cache(maxsize=8)
def _twin(config: VaeConfig, dtype: torch.dtype) -> VideoVAE:
    """The same VAE without data."""
    with torch.device("meta"):
        return VideoVAE(config).to(dtype).prepare()
