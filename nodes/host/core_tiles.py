"""How an image or a video is cut into tiles of nearly the same size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

TILE_EDGES = (2048, 1536, 1024, 768, 512, 384, 256, 128, 64)
"""Tile edges in pixels to choose from: `auto` takes the largest that fits, an OOM goes on to the next smaller one."""


@dataclass(frozen=True)
class Tiles:
    """Tiles over the last two or three dimensions of a tensor, in its own elements.

    Attributes:
        sizes: tile size in each dimension.
        overlaps: elements that neighbours share in each dimension.
        count: tiles per batch item.
        text: the tiles in pixels, for a person.
    """

    sizes: tuple[int, ...]
    overlaps: tuple[int, ...]
    count: int
    text: str

    def __str__(self) -> str:
        return self.text

    def shape(self, data: torch.Tensor) -> tuple[int, ...]:
        """Shape of one tile of `data` [B, C, ...]."""
        return (1, data.shape[1], *(min(a, b) for a, b in zip(self.sizes, data.shape[2:], strict=True)))


def plan_tiles(
    lengths: Sequence[int],
    edge: int,
    overlap: int,
    frames: int,
    unit: int,
    frames_per_unit: int,
    grain: int,
    time_grain: int = 1,
) -> Tiles:
    """Cut `lengths` ([T,] H, W) into tiles.

    Tiles of the asked size would leave a sliver at the far edge, which decodes badly for want of surroundings; so the
    same number of tiles is made equally large instead.

    Args:
        lengths: size of the tensor in each dimension, in its own elements.
        edge: the largest tile edge, in pixels.
        overlap: pixels that neighbours share; 0 = a quarter of `edge`; at most half of it.
        frames: the largest number of frames in a tile, 0 = no cut in time.
        unit: pixels per element.
        frames_per_unit: frames per element in time.
        grain: sizes and overlaps are multiples of this many elements in height and width.
        time_grain: the same in time, where it is cut: a slice that began within a latent's frame would leave a gap.
    """
    shared = min(overlap or edge // 4, edge // 2)
    wanted = [(edge // unit, shared // unit, grain)] * 2
    if len(lengths) == 3:
        slice_length = max(2, frames // frames_per_unit) if frames else lengths[0]
        step = time_grain if slice_length < lengths[0] else 1
        wanted.insert(0, (slice_length, max(step, slice_length // 4) if frames else 1, step))
    sizes, overlaps, count = [], [], 1
    for length, (size, common, step) in zip(lengths, wanted, strict=True):
        size = max(step, size // step * step)
        common = min(common // step * step, size - step)
        if length > size:
            number = math.ceil((length - common) / (size - common))
            size = common + math.ceil((length - common) / number / step) * step
            count *= math.ceil((length - common) / (size - common))
        sizes.append(size)
        overlaps.append(common)
    text = f"{count} tiles of {sizes[-1] * unit}x{sizes[-2] * unit} px, overlap {overlaps[-1] * unit} px"
    return Tiles(tuple(sizes), tuple(overlaps), count, text)
