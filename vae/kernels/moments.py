"""Mean and variance of parts of a frame, merged into those of the frame: what makes strips exact."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Statistics(NamedTuple):
    """What a GroupNorm needs to know of its input. Attributes: mean, rstd, each float32 [B, T, groups]."""

    mean: torch.Tensor
    rstd: torch.Tensor


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of some part of each frame and group.

    Attributes: count: numbers per group; mean, deviations: float32 [B, T, groups].
    """

    count: int
    mean: torch.Tensor
    deviations: torch.Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both parts together (Chan, Golub, LeVeque 1979: no cancellation, whatever the mean is)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        deviations = self.deviations + other.deviations + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, deviations)

    def statistics(self, eps: float) -> Statistics:
        """Mean and reciprocal standard deviation, `1 / sqrt(variance + eps)`."""
        return Statistics(self.mean, torch.rsqrt(self.deviations / self.count + eps))
