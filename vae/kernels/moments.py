"""Mean and variance of parts of a frame, merged into those of the frame: what makes strips exact."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Statistics(NamedTuple):
    """What a GroupNorm needs to know of its input. Attributes: mean, rstd, each float32 [B, T, groups]."""

    mean: torch.Tensor
    rstd: torch.Tensor


class Moments(NamedTuple):
    """How many numbers some part of each frame and group has, their mean and the sum of their squared deviations.

    Attributes: size: numbers per group; mean, deviations: float32 [B, T, groups].
    """

    size: int
    mean: torch.Tensor
    deviations: torch.Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both parts together (Chan, Golub, LeVeque 1979: no cancellation, whatever the mean is)."""
        size = self.size + other.size
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.size / size)
        deviations = self.deviations + other.deviations + delta.square() * (self.size * other.size / size)
        return Moments(size, mean, deviations)

    def statistics(self, eps: float) -> Statistics:
        """Mean and reciprocal standard deviation, `1 / sqrt(variance + eps)`."""
        return Statistics(self.mean, torch.rsqrt(self.deviations / self.size + eps))
