"""Sizes, frames and steps: brought to the nearest that a family takes, and refused where none is near."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..conditions.arguments.schedules import steps_given

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest


def fit(family: Family, request: SampleRequest) -> tuple[SampleRequest, list[str]]:
    """Bring width, height and frames to the nearest that the family takes; of two as near, the larger.

    Steps that nobody asks for are as many as an argument gives values.

    Returns:
        The request, and a note for everything that was changed or has no meaning for this family.

    Raises:
        InputError: no whole number, none above 0, or more than the family can make at all.
    """
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for name in ("width", "height"):
        value = getattr(request, name)
        fitted = _fit_size(name, value, family)
        if fitted != value:
            changes[name] = fitted
            notes.append(
                f"{name}: {fitted} instead of {value}; {family.name} takes multiples of {family.size_multiple}."
            )
    frames = request.num_frames
    fitted = _fit_frames(frames, family)
    if fitted != frames:
        changes["num_frames"] = fitted
        rule = _rule(family)
        changed = f"num_frames: {fitted} instead of {frames}; {family.name} makes {rule}."
        notes.append(changed if family.video else f"num_frames ignored: {family.name} makes single images.")
    given = steps_given(request)
    if given is not None and request.steps is None:
        changes["steps"] = given  # the run says it, whose scheduler may make one less
    return (replace(request, **changes) if changes else request), notes


def _fit_size(name: str, value: int | None, family: Family) -> int | None:
    if value is None:
        return None
    multiple, most = family.size_multiple, family.max_size // family.size_multiple * family.size_multiple
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= family.max_size:
        reason = f"{family.name} takes multiples of {multiple}, from {multiple} to {most}"
        raise InputError(name, value, reason, f"the nearest: {_nearest(value, multiple, multiple, most)}")
    return min(max(multiple, _to_step(value, multiple)), most)


def _fit_frames(frames: int | None, family: Family) -> int | None:
    if frames is None:
        return None
    whole = isinstance(frames, int) and not isinstance(frames, bool)
    if not family.video:
        if not whole or frames < 1:
            raise InputError("num_frames", frames, f"{family.name} makes single images", "use 1, or batch for more")
        return 1
    step, least = family.frame_step, family.min_frames
    if not whole or not least <= frames <= family.max_frames:
        cure = f"the nearest: {_nearest(frames, step, least, family.max_frames)}"
        recommended = f"; {family.num_frames} is recommended" if family.num_frames else ""
        limits = f"at least {least} and at most" if least > 1 else "at most"
        reason = f"{family.name} makes {_rule(family)}, {limits} {family.max_frames}"
        raise InputError("num_frames", frames, reason, cure + recommended)
    most = least + (family.max_frames - least) // step * step
    return min(least + _to_step(frames - least, step), most)


def _rule(family: Family) -> str:
    """How many frames it makes, in words."""
    return f"{family.frame_step}n + {family.frame_rest} frames" if family.frame_step > 1 else "frames"


def _to_step(value: int, step: int) -> int:
    """The nearest multiple of `step`; of two as near, the larger."""
    return (2 * value + step) // (2 * step) * step


def _nearest(value: float, step: int, low: int, high: int) -> str:
    """The valid values (low + a multiple of step) on both sides of `value`, as text."""
    below = low + math.floor((min(max(value, low), high) - low) / step) * step
    options = [below] if below == value or below + step > high or value < low else [below, below + step]
    return " or ".join(str(option) for option in options)
