"""The conditions that a request can carry. Pure data: torch is imported for type checkers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class MaskCondition:
    """Which part of a picture is made anew.

    Attributes:
        mask: float [B, H, W] or [H, W] in 0..1; 1 is made anew, 0 is kept. Any size: it is scaled to the picture's.
        of_latent: it came with a latent, and holds for that, not for a picture.
    """

    mask: torch.Tensor
    of_latent: bool = False


Condition = MaskCondition
