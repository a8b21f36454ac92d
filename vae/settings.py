"""The settings of a decode or an encode. Pure data: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, check_choice

MODES = ("auto", "exact", "tiles", "whole")
BLENDINGS = ("smooth", "reference")
FRAME_RULES = ("pad", "strict")
STATE_DEVICES = ("same", "cpu")
COMPILE_SCOPES = ("blocks", "slice")
KERNEL_CHOICES = ("auto", "eager", "plain")
CONVOLUTIONS = ("auto", "conv3d", "fast")
MINIMUM_TILE = 16
"""Pixels; below two latent cells a tile holds nothing but border."""


@dataclass(frozen=True)
class VaeSettings:
    """How one decode or encode runs.

    Attributes:
        mode: "whole" runs planes in one piece; "exact" in row (and column) strips with shared statistics, with the
            same result; "tiles" decodes overlapping tiles by themselves and blends them, which changes the result;
            "auto" is "exact" with strips as small as the memory asks for, and tiles when even those need too much.
        tile_size: tile edge in pixels, one number or (height, width); at least 16.
        tile_overlap: overlap of neighbouring tiles in pixels, one number or (height, width); smaller than the tile.
        blending: "smooth" blends in float32 with weights that add up to one; "reference" repeats the established
            implementation's arithmetic bit for bit, its faults included.
        temporal_slice: latent frames per step, 0 = chosen. Any value gives the same result.
        memory_budget_gib: memory in GiB that may be in use above the weights and the output, 0 = chosen from what is
            free on the device.
        strips: (rows, columns): fixed numbers of strips, (0, 0) = chosen from the budget.
        state_device: where the frames carried from slice to slice wait: "same" device or "cpu".
        frame_rule: what encode does with a clip that is not 4n+1 frames long: "pad" it with its own last frames,
            mirrored, and say so; or be "strict" and refuse it.
        kernels: "auto" takes fused kernels where they work, "eager" and "plain" only PyTorch operations.
        convolution: on a processor, convolutions over time may make several frames at once from sums of frames, with
            half of the multiplications, where that is measured to be faster. "auto": in float32, where the result
            differs by rounding alone; "fast": in half precision too, where such a convolution rounds two or three
            times as much; "conv3d": never. Only with kernels "auto".
        fp16_accumulation: let convolutions also sum in float16 where comfy-kitchen has a kernel for it: less exact, and
            not measured yet. Only with float16 weights and kernels "auto".
        cuda_graphs: record the steady slices of a clip as CUDA graphs. Not measured yet, so it has to be asked for.
        overlap_tiles: work on two tiles at a time on a card, where the memory holds both. Not measured yet either.
        compile: keyword arguments of torch.compile, or None for no compilation; {} compiles with the defaults.
        compile_scope: "blocks" compiles what repeats between the convolutions, once per kind and for all sizes;
            "slice" a slice as one graph, which takes many times as long. Planes that have to be cut into strips are
            not compiled by that.
        compile_trial: run plain code where compiled code is not faster, which the first slices of each shape, run both
            ways, show; False runs compiled code whatever it takes. What they show is kept for later processes with the
            same device and versions.
        compile_headroom_gib: memory in GiB left to compiled code when the budget is chosen from what is free.
        compile_memory_check: False compiles whatever memory says: nothing is left to compiled code, and a cuDNN with
            which it takes several times the memory is no obstacle. The report says what was overruled.
    """

    mode: str = "auto"
    tile_size: int | tuple[int, int] = 512
    tile_overlap: int | tuple[int, int] = 64
    blending: str = "smooth"
    temporal_slice: int = 0
    memory_budget_gib: float = 0.0
    strips: tuple[int, int] = (0, 0)
    state_device: str = "same"
    frame_rule: str = "pad"
    kernels: str = "auto"
    convolution: str = "auto"
    fp16_accumulation: bool = False
    cuda_graphs: bool = False
    overlap_tiles: bool = False
    compile: Mapping[str, Any] | None = field(default=None, hash=False)
    compile_scope: str = "blocks"
    compile_trial: bool = True
    compile_headroom_gib: float = 1.0
    compile_memory_check: bool = True

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("blending", self.blending, BLENDINGS)
        check_choice("state_device", self.state_device, STATE_DEVICES)
        check_choice("frame_rule", self.frame_rule, FRAME_RULES)
        check_choice("kernels", self.kernels, KERNEL_CHOICES)
        check_choice("convolution", self.convolution, CONVOLUTIONS)
        check_choice("compile_scope", self.compile_scope, COMPILE_SCOPES)
        for tile, overlap in zip(pair(self.tile_size), pair(self.tile_overlap), strict=True):
            if tile < MINIMUM_TILE:
                reason = f"a tile is at least {MINIMUM_TILE} pixels"
                raise InputError("tile_size", self.tile_size, reason, f"use {MINIMUM_TILE} or more; 512 is the default")
            if overlap < 0:
                raise InputError("tile_overlap", self.tile_overlap, "it cannot be negative", "use 64")
            if overlap >= tile:
                reason = f"it must be smaller than tile_size ({tile})"
                raise InputError("tile_overlap", self.tile_overlap, reason, f"use {tile // 8}")
        if self.temporal_slice < 0:
            raise InputError("temporal_slice", self.temporal_slice, "it cannot be negative", "use 0 to have it chosen")
        if not 0 <= self.memory_budget_gib < 1 << 20:
            reason = "it must be a number of GiB, 0 or more"
            raise InputError("memory_budget_gib", self.memory_budget_gib, reason, "use 0 to have it chosen")
        if not 0 <= self.compile_headroom_gib < 1 << 20:
            reason = "it must be a number of GiB, 0 or more"
            raise InputError("compile_headroom_gib", self.compile_headroom_gib, reason, "use 1.0")
        if len(self.strips) != 2 or min(self.strips) < 0:
            raise InputError("strips", self.strips, "it is (rows, columns), each 0 or more", "use (0, 0)")


def tile_choices(size: int, overlap: int) -> dict[str, Any]:
    """`tile_size` and `tile_overlap` of `VaeSettings` from what a user chose, in pixels, 0 for nothing chosen: tiles of
    a chosen size overlap by a quarter."""
    chosen = {"tile_size": size, "tile_overlap": overlap or size // 4}
    return {name: value for name, value in chosen.items() if value}


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or as two."""
    return value if isinstance(value, tuple) else (value, value)
