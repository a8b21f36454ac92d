"""Frames that a clip was filled up with before it was encoded, which a decode leaves out again.

A latent may be cut or joined between the two; then its length says nothing any more. So what the encode gave is kept
beside the length: it is followed only where the latent at hand still has as many frames, and no more clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...report import OptimizationReport

CLIP_LENGTH = "clip_length"
"""Key in a LATENT and in the metadata of a latent's file: frames of the clip before it was filled up to what its VAE
encodes."""
LATENT_FRAMES = "clip_latent_frames"
"""The same: frames of the latent that it was encoded to."""
CLIPS = "clip_count"
"""The same: clips that were encoded together, all of that length."""
PADDING_KEYS = (CLIP_LENGTH, LATENT_FRAMES, CLIPS)


def padding_of(length: int, made: int, latent_shape: Sequence[int]) -> dict[str, int]:
    """What a LATENT or a latent's file says of clips that were filled up; {} for others.

    Args:
        length: frames of each clip that was given.
        made: frames that a decode will give.
        latent_shape: [B, C, T, h, w] of what it was encoded to.
    """
    if made <= length:
        return {}
    return {CLIP_LENGTH: length, LATENT_FRAMES: latent_shape[2], CLIPS: latent_shape[0]}


def without_padding(
    frames: torch.Tensor, latent_shape: Sequence[int], said: Mapping[str, Any], report: OptimizationReport
) -> torch.Tensor:
    """The frames of clips [B, T, H, W, C] that were encoded, said in the report; pictures [B, H, W, C] as they are.

    Args:
        latent_shape: of the latent that was decoded, [B, C, T, h, w] or [B, C, h, w].
        said: the LATENT, or the metadata of the latent's file.
    """
    made = frames.shape[1] if frames.ndim == 5 else 0
    if CLIP_LENGTH not in said or not made:
        return frames
    length = _number(said[CLIP_LENGTH])
    doubt = "it is no number of frames" if length is None else _doubt(length, made, latent_shape, said)
    if doubt:
        report.note(f"{CLIP_LENGTH} = {str(said[CLIP_LENGTH])[:20]} not followed: {doubt}")
    if doubt or length is None or length >= made:
        return frames
    report.note(f"{made - length} padding frames cut off behind frame {length}")
    size = str(report.facts.get("size", ""))
    if size.endswith(f"x{made}"):
        report.facts["size"] = size.removesuffix(str(made)) + str(length)
    return frames[:, :length]


def _doubt(length: int, made: int, latent_shape: Sequence[int], said: Mapping[str, Any]) -> str:
    """Why the length may not be that of the latent at hand; "" where it is."""
    clips, has = latent_shape[0], latent_shape[2] if len(latent_shape) == 5 else 1
    encoded, together = _number(said.get(LATENT_FRAMES)), _number(said.get(CLIPS))
    if together is not None and clips > together:
        return f"the latent holds {clips} clips, the encode gave {together}: others may be longer"
    if encoded is not None:
        joined = f"the latent has {has} frames, the encode gave {encoded}: it was cut or joined since"
        return "" if has == encoded else joined
    # Of an earlier version, which kept the length alone. It is that of this latent where one latent frame fewer would
    # not have held the clip, in a VAE that gives as many frames for each behind the first.
    per_frame, rest = divmod(made - 1, has - 1) if has > 1 else (0, 0)
    if rest or made - length >= max(per_frame, 1):
        return f"the latent does not say what it was encoded to, and decodes to {made} frames: it may be cut or joined"
    return ""


def _number(value: Any) -> int | None:
    """A count of 1 or more, also as text; None for everything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 9:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
