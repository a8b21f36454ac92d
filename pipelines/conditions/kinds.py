"""The conditions that a request can carry. Pure data: torch is imported for type checkers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


REFERENCE = "reference"
ROLES = {
    "video": ("video", "driving_video"),
    "control": ("control_video", "conditioning_frames", "controls"),
    "pose": ("pose_video",),
    "face": ("face_video",),
    "background": ("background_video",),
    REFERENCE: ("reference_conditions", "references"),
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
        source: absolute path of its folder or its file, or "tiny:<family>" for an embedded one.
        identity: fingerprint of its files, so that an edited one is read again.
        class_name: its class in diffusers.
        modes: how many kinds of pictures it tells apart by a number; 0 for one that reads one kind.
    """

    source: str
    identity: str
    class_name: str
    modes: int = 0

    @property
    def shown(self) -> str:
        """Its name in messages: that of its folder or file."""
        return self.source.replace("\\", "/").rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class ControlCondition:
    """A picture that the result is to keep to, as a control model reads it.

    Attributes:
        image: float [B, H, W, 3] in 0..1, of which the first is used: edges, depth, a pose.
        model: what reads it; None where the pipeline's own class does.
        strength: 0..10, 1 = as it was trained.
        start, end: share of the steps in which it acts, 0..1.
        mode: of a control model that reads several kinds of pictures, which kind this is: 0 to its modes - 1.
    """

    image: torch.Tensor
    model: ControlNetKey | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None


@dataclass(frozen=True, eq=False)
class Sound:
    """The sound of a clip. Attributes: waveform, float [channels, samples]; sample rate in Hz."""

    waveform: torch.Tensor
    sample_rate: int


@dataclass(frozen=True, eq=False)
class VideoCondition:
    """A clip that the result starts from or keeps to.

    Attributes:
        frames: float [T, H, W, 3] in 0..1.
        role: one of `ROLES`: "video" to start from or to edit, "control", or the "pose", "face" or "background" of an
            animated person, or a "reference": of an LTX-2 LoRA made for one, or of MiniMax-H3, for which one frame is
            a picture.
        frame_rate: frames per second, None where it has none.
        sound: None where it has none.
        given_as: what it came as, "" for a clip of its role.
    """

    frames: torch.Tensor
    role: str = "video"
    frame_rate: float | None = None
    sound: Sound | None = None
    given_as: str = ""


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


@dataclass(frozen=True)
class ImagePromptKey:
    """What reads a picture as a prompt: which, never its weights.

    Attributes:
        source: absolute path of an IP-Adapter's .safetensors file, or of a Flux Redux folder.
        encoder: folder of the vision model that an IP-Adapter was trained with; "" for Redux, which has its own.
        identity: fingerprint of the files, so that an edited one is read again.
        redux: it is Flux Redux.
    """

    source: str
    encoder: str
    identity: str
    redux: bool = False


@dataclass(frozen=True, eq=False)
class ImagePromptCondition:
    """A picture that says, beside the text, what is to be made.

    Attributes:
        image: float [B, H, W, 3] in 0..1, of which the first is used.
        model: what reads it.
        strength: how much it says, 0..2, 1 = as it was trained.
    """

    image: torch.Tensor
    model: ImagePromptKey
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class ArgumentCondition:
    """A value for an argument of the pipeline's call that no other input gives.

    Attributes:
        name: of the argument.
        value: number, text, truth value, None, a list or dictionary of these, or a tensor.
        image: float [B, H, W, 3 or 4] in 0..1, handed over as a picture, or a list of several, in place of `value`.
    """

    name: str
    value: Any = None
    image: torch.Tensor | None = None


Condition = (
    MaskCondition | ControlCondition | VideoCondition | KeyframeCondition | ImagePromptCondition | ArgumentCondition
)
