"""The frame rate of a request: of a model that makes sound to its own rate, no other will do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import InputError
from ..classes.forms import class_of
from ..classes.outputs import SOUNDS, returned_fields
from ..modular.blocks import blocks_of, outputs
from .taking import call_takes, modular_class

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest


LEAST_FRAME_RATE, MOST_FRAME_RATE = 0.001, 1000.0


def keeps_its_rate(family: Family) -> bool:
    """Whether a model makes sound beside its frames, and its call is not told how many of these there are a second."""
    if not family.video or not family.classes:
        return False
    return family.rate_argument not in call_takes(family.classes[-1]) and _makes_sound(family)


def check_rate(rate: float) -> None:
    """Raise InputError for a frame rate that no video file can say."""
    if not LEAST_FRAME_RATE <= rate <= MOST_FRAME_RATE:
        reason = f"it must be between {LEAST_FRAME_RATE:g} and {MOST_FRAME_RATE:g}"
        raise InputError("frame_rate", rate, reason, "use 24")


def check_frame_rate(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the frame rate.

    Raises:
        InputError: it is none, or picture and sound would go out of step.
    """
    rate = request.frame_rate
    if rate is None:
        return []
    check_rate(rate)
    if rate == family.frame_rate or not keeps_its_rate(family):
        return []
    if family.frame_rate_assumed:
        return [f"frame_rate: {rate:g} for the frames alone; {family.name} is not told, and its sound stays as it is."]
    reason = f"{family.name} makes its sound for {family.frame_rate:g} frames per second, and they would go out of step"
    raise InputError("frame_rate", rate, reason, f"leave it out, or use {family.frame_rate:g}")


def check_sound_length(family: Family, request: SampleRequest, per_second: float | None) -> None:
    """Raise InputError for a clip that is over so soon that no sound goes with it, where a model always makes one.

    Args:
        request: completed.
        per_second: latents of sound that the model makes a second, None of one that makes none.
    """
    rate, frames = request.frame_rate, request.num_frames
    if not per_second or not rate or not frames or round(frames / rate * per_second) > 0:
        return
    # diffusers rounds frames / rate * per_second, a half to the even number: 0
    most = math.ceil(2 * frames * per_second) - 1
    least = math.floor(rate / per_second / 2) + 1
    reason = (
        f"{frames} frames are then {frames / rate:.3g} s, too short for the sound that {family.name} makes with them"
    )
    cure = f"use at most {most} frames per second, or at least {least} frames"
    raise InputError("frame_rate", rate, reason, cure)


def _makes_sound(family: Family) -> bool:
    modular, found = modular_class(family.classes[-1]), class_of(family)
    given = returned_fields(found) if modular is None and found is not None else ()
    given = outputs(blocks_of(modular)) if modular is not None else given
    return family.sound or bool(set(given) & set(SOUNDS))
