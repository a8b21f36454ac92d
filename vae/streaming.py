"""Cutting a clip into temporal slices. Integers only; the frames carried between slices make the cut exact."""

from __future__ import annotations

from itertools import pairwise


def slices(total: int, size: int, factor: int = 1) -> list[tuple[int, int]]:
    """(start, stop) of consecutive slices: the first holds the clip's first frame and one size, the others one size.

    Args:
        total: latent frames (factor 1), or frames of a clip of `factor n + 1` frames.
        size: latent frames per slice, at least 1.
        factor: frames per latent frame.
    """
    step = size * factor
    edges = [0, *range(1 + step, total, step), total]
    return list(pairwise(edges))
