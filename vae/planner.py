"""Choosing how a decode or an encode is cut, so that it fits the memory: the budget and the decision.

What a way to cut takes is no formula: see `dry_run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..errors import InputError
from ..memory import GIB, device_memory
from .dry_run import DryRun, Task, decoding, encoding, slices
from .network.execution import Layout
from .network.model import VideoVAE
from .processor_layouts import block_frames, cuts
from .settings import VaeSettings, pair

__all__ = ["Plan", "Task", "budget_of", "decoding", "encoding", "make_plan", "overlap_refusal", "slices"]

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
    most = block_frames(vae, settings.kernels, settings.convolution)
    if settings.mode == "whole" or any(settings.strips):
        rows, columns = (0, 0) if settings.mode == "whole" else (max(count, 1) for count in settings.strips)
        layout = Layout(rows, columns, block_frames=most)
        return Plan((), layout, size, offload, dry.peak(layout, offload), budget, "asked for")
    whole_planes = on_card or settings.compile is not None
    if not whole_planes:
        plan = _large(vae, task, shape, settings, budget, most)
        if plan is not None:
            return plan
    peak = 0
    for offloaded in (True,) if offload or not on_card else (False, True):
        offloaded = offloaded and on_card
        for layout, peak in _layouts(dry, budget, offloaded, most, whole_planes=whole_planes):
            if peak <= budget:
                reason = _reason(layout)
                reason += ", carried frames in main memory" if offloaded else ""
                return Plan((), layout, size, offloaded, peak, budget, reason)
    if settings.mode == "auto":
        reason = f"even the smallest strips need {peak / GIB:.2f} GiB"
        return _tiled(vae, task, shape, settings, budget, reason)
    reason = f"even the smallest strips need {peak / GIB:.3f} GiB"
    cure = f"give {peak / GIB + 0.001:.3f} or more, or use tiles"
    raise InputError("memory_budget_gib", settings.memory_budget_gib, reason, cure)


def _reason(layout: Layout) -> str:
    return "whole planes fit" if layout.uncut else "strips with shared statistics"


def _large(
    vae: VideoVAE, task: Task, shape: tuple[int, ...], settings: VaeSettings, budget: int, most: int
) -> Plan | None:
    """The fastest of a processor's ways to cut that fits; None where only single frames in small strips may.

    Transformed kernels that the VAE keeps already are in what is not free any more, unless the budget is given.
    """
    _, length, height, width = shape
    frames = 1 + (length - 1) // task.frames
    cells = vae.config.frames(frames) * height * width * (vae.config.spatial_factor // task.crop) ** 2
    kept = 0 if settings.memory_budget_gib else vae.transformed.nbytes(f"{task.stage}r.")
    for size, layout in cuts(vae, frames, cells, settings.temporal_slice, most):
        peak = DryRun(vae, task, shape, size).peak(layout)
        if peak - (kept if layout.keep_kernels else 0) <= budget:
            return Plan((), layout, size, False, peak, budget, _reason(layout))
    return None


def _layouts(
    dry: DryRun, budget: int, offloaded: bool, most: int, *, whole_planes: bool
) -> Iterator[tuple[Layout, int]]:
    """Ways to cut planes, fastest first, each with the bytes it needs; the last one needs the least.

    Args:
        most: frames of the largest block of a convolution over time, where planes stay whole.
        whole_planes: whether those are tried first: on a card, and where code is compiled. A processor has tried what
            is faster than strips of single frames.
    """
    if whole_planes:
        for tail in TAILS:
            layout = Layout(tail_frames=tail, block_frames=most)
            yield layout, dry.peak(layout, offloaded)
    base = dry.base(1, offloaded) + dry.statistics_bytes
    yield Layout(workspace=STRIP, tail_frames=1, keep_kernels=False), base + STRIP
    workspace = max(budget - base, 1)
    yield Layout(workspace=workspace, tail_frames=1, keep_kernels=False), base + workspace


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
