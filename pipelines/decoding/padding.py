"""Frames that a clip was filled up with before it was encoded, which a decode leaves out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ...report import OptimizationReport

CLIP_LENGTH = "clip_length"
"""Key in a LATENT and in the metadata of a latent's file: frames of the clip before it was filled up to what its VAE
encodes."""
MOST_PADDING = 17
"""Frames at a time in which a VAE takes a clip: more than that is not filled up (MiniMax H3 takes 17 at a time)."""


def without_padding(frames: torch.Tensor, length: int | None, report: OptimizationReport) -> torch.Tensor:
    """The frames of clips [B, T, H, W, C] that were encoded, said in the report; pictures [B, H, W, C] as they are.

    Args:
        length: frames before filling up; None where none were added. One that cannot belong to these frames is not
            followed: a latent may have been cut or joined since.
    """
    made = frames.shape[1] if frames.ndim == 5 else 0
    if length is None or not 0 < length < made < length + MOST_PADDING:
        return frames
    report.note(f"{made - length} padding frames cut off behind frame {length}")
    size = str(report.facts.get("size", ""))
    if size.endswith(f"x{made}"):
        report.facts["size"] = size.removesuffix(str(made)) + str(length)
    return frames[:, :length]
