"""Pictures at places of a clip: which class takes them, and in which of its frames they come to lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..classes.forms import class_of
from . import ltx
from .kinds import KeyframeCondition
from .pictures import shape_of
from .taking import call_takes

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest


def keyframes_of(request: SampleRequest) -> list[KeyframeCondition]:
    """The keyframes of a request, in their order."""
    return [condition for condition in request.conditions if isinstance(condition, KeyframeCondition)]


def keyframe_form(family: Family) -> str:
    """The class that takes keyframes: itself, or one around the same models; "" where there is none."""
    pipeline_class = class_of(family)
    if pipeline_class is None:
        return ""
    form = ltx.keyframe_form(pipeline_class.__name__)
    return form if "conditions" in call_takes(form) else ""


def check_keyframes(family: Family, request: SampleRequest) -> list[str]:
    """Notes on where the keyframes come to lie; [] without one.

    Raises:
        InputError: this model takes none, or there is no such frame.
    """
    keyframes, notes = keyframes_of(request), []
    if not keyframes:
        return []
    if not keyframe_form(family):
        cure = "leave the keyframes out"
        if family.last_image:
            cure += ", or give images (--image) and last_image (--last-image) instead"
        raise InputError("keyframe", f"{len(keyframes)} keyframe(s)", f"{family.name} takes no keyframes", cure)
    if request.images:
        cure = "leave images (--image) out, and make the picture a keyframe at frame 0"
        raise InputError(
            "images", f"{len(request.images)} image(s)", "with keyframes there is no other first frame", cure
        )
    count = request.num_frames or family.num_frames
    exact, stride = keyframe_form(family) in ltx.EXACT, stride_of(family)
    taken: dict[int, int] = {}
    for keyframe in keyframes:
        shape = shape_of("keyframe", keyframe.image, "a keyframe is [batch, height, width, 3 or 4]")
        if not -1 <= keyframe.frame < count:
            reason = f"there are {count} frames"
            raise InputError("keyframe frame", keyframe.frame, reason, f"use 0 to {count - 1}, or -1 for the last")
        if not 0.0 < keyframe.strength <= 1.0:
            raise InputError("keyframe strength", keyframe.strength, "it must be above 0 and at most 1", "use 1")
        place = keyframe.frame % count if exact else _latent_frame(keyframe.frame, count, stride)
        at = place if exact else first_frame(place, stride)
        if place in taken:
            reason = f"both come to lie at frame {at} of {family.name}, which takes one there"
            cure = "leave one of them out"
            if not exact:
                cure += f", or put them nearer to two of frames 0, 1, {1 + stride}, {1 + 2 * stride} and so on"
            raise InputError("keyframe frame", f"{taken[place]} and {keyframe.frame}", reason, cure)
        taken[place] = keyframe.frame
        asked = keyframe.frame % count
        if at != asked:
            notes.append(f"keyframe: at frame {at} instead of {asked}, the nearest that {family.name} takes.")
        if shape[0] > 1:
            notes.append(f"keyframe: the first of {shape[0]} pictures is used.")
    return notes


def check_keyframe_scheduler(form: str, request: SampleRequest, scheduler_of: Callable[[], Any]) -> None:
    """Raise InputError where the class that takes keyframes cannot use the model's scheduler.

    Args:
        scheduler_of: gives the model's own, or None where it is not known.
    """
    scheduler = scheduler_of() if keyframes_of(request) and form in ltx.EXACT else None
    if scheduler is not None and scheduler.config.get("use_dynamic_shifting"):
        reason = f"{form} cannot use a scheduler that shifts its steps by the size of the clip, as this model's does"
        cure = "use LTX-Video 0.9.5 or newer, or leave the keyframes out"
        raise InputError("keyframe", f"{len(keyframes_of(request))} keyframe(s)", reason, cure)


def keyframe_arguments(form: str, family: Family, request: SampleRequest, to_picture: Any) -> dict[str, Any]:
    """What the call of a form is given for the keyframes."""
    keyframes = keyframes_of(request)
    if not keyframes:
        return {}
    made = ltx.keyframe_class(form)
    count = request.num_frames or 0
    if form in ltx.EXACT:
        exactly = [(to_picture(item.image[0]), item.frame % count, float(item.strength)) for item in keyframes]
        return {"conditions": [made(image=i, frame_index=frame, strength=s) for i, frame, s in exactly]}
    return {
        "conditions": [
            made(
                frames=to_picture(item.image[0]),
                index=_latent_frame(item.frame, count, stride_of(family)),
                strength=float(item.strength),
            )
            for item in keyframes
        ]
    }


def _latent_frame(frame: int, count: int, stride: int) -> int:
    """The latent frame that a frame of `count` comes to lie in; -1 is the last. There are as many as diffusers makes
    of `count`, and it skips a keyframe behind them.

    Args:
        stride: frames in one latent frame after the first.
    """
    last = (count - 1) // stride
    if frame < 1:
        return 0 if frame == 0 else last
    return min(round((frame - 1) / stride) + 1, last)


def stride_of(family: Family) -> int:
    """Frames in one latent frame after the first: the model's, or LTX-2's where only its class is known."""
    return family.temporal_stride if family.temporal_stride > 1 else ltx.STRIDE


def first_frame(latent_frame: int, stride: int) -> int:
    return 0 if latent_frame < 1 else (latent_frame - 1) * stride + 1
