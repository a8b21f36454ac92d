"""The conditions that a request can carry. Pure data: torch is imported for type checkers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


ROLES = {
    "video": ("video",),
    "control": ("control_video", "conditioning_frames"),
    "pose": ("pose_video",),
    "face": ("face_video",),
    "background": ("background_video",),
}
"""What a clip is for -> the arguments of a call that take it."""


@dataclass(frozen=True, eq=False)
class MaskCondition:
    """Which part of a picture is made anew.

    Attributes:
        mask: float [B, H, W] or [H, W] in 0..1; 1 is made anew, 0 is kept. Any size: it is scaled to the picture's.
        of_latent: it came with a latent, and holds for that, not for a picture.
    """

    mask: torch.Tensor
    of_latent: bool = False


@dataclass(frozen=True)
class ControlNetKey:
    """A control model: which, never its weights.

    Attributes:
        source: absolute path of its folder, or "tiny:<family>" for an embedded one.
        identity: fingerprint of its files, so that an edited one is read again.
        class_name: its class in diffusers.
    """

    source: str
    identity: str
    class_name: str


@dataclass(frozen=True, eq=False)
class ControlCondition:
    """A picture that the result is to keep to, as a control model reads it.

    Attributes:
        image: float [B, H, W, 3] in 0..1, of which the first is used: edges, depth, a pose.
        model: what reads it; None where the pipeline's own class does.
        strength: 0..10, 1 = as it was trained.
        start, end: share of the steps in which it acts, 0..1.
    """

    image: torch.Tensor
    model: ControlNetKey | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, eq=False)
class VideoCondition:
    """A clip that the result starts from or keeps to.

    Attributes:
        frames: float [T, H, W, 3] in 0..1.
        role: one of `ROLES`: "video" to start from or to edit, "control", or the "pose", "face" or "background" of an
            animated person.
        frame_rate: frames per second, None where it has none.
        sound: it has sound, which no run reads.
    """

    frames: torch.Tensor
    role: str = "video"
    frame_rate: float | None = None
    sound: bool = False


@dataclass(frozen=True, eq=False)
class KeyframeCondition:
    """A picture at a place of a clip.

    Attributes:
        image: float [B, H, W, 3] in 0..1, of which the first is used.
        frame: 0 is the first frame, -1 the last.
        strength: how much it holds, above 0 and at most 1.
    """

    image: torch.Tensor
    frame: int = 0
    strength: float = 1.0


Condition = MaskCondition | ControlCondition | VideoCondition | KeyframeCondition
