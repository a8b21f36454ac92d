"""Masks, control pictures, clips and keyframes of a case as conditions of the pack, and as a bare call takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...pipelines.arguments import to_pil
from ...pipelines.conditions.clips import CLIP_MASKS
from ...pipelines.conditions.keyframes import first_frame, stride_of
from ...pipelines.conditions.kinds import (
    REFERENCE,
    ROLES,
    Condition,
    ControlCondition,
    KeyframeCondition,
    MaskCondition,
    VideoCondition,
)
from ...pipelines.conditions.masks import MASK_ARGUMENTS
from ...pipelines.families import Family

CONTROL_LIMITS = {
    "controlnet_conditioning_scale": "strength",
    "control_guidance_start": "start",
    "control_guidance_end": "end",
}
"""Argument of a call -> what it is of a control picture."""
_ROLE_OF = {argument: role for role, arguments in ROLES.items() for argument in arguments}
Pictures = Callable[[Any], "tuple[torch.Tensor, ...] | None"]


def condition_of(name: str, value: Any, family: Family, pictures_of: Pictures) -> tuple[list[Condition], Any] | None:
    """What an argument is as conditions of a request, and as a bare call takes it; None for any other argument.

    Args:
        pictures_of: each picture of a value, float [H, W, C] in 0..1 with 8 bits; None for what is no picture.
    """
    if name in (*MASK_ARGUMENTS, *CLIP_MASKS) and name != family.image_argument:
        return _mask(name, value)
    if _ROLE_OF.get(name) == REFERENCE:
        found = _clip(getattr(value, "frames", None), REFERENCE, pictures_of)
        return None if found is None else (found[0], [replace(value, frames=found[1])])
    if name in _ROLE_OF:
        return _clip(value, _ROLE_OF[name], pictures_of)
    if name == "control_image" and name != family.image_argument:
        pictures = pictures_of(value)
        if not pictures:
            return None
        shown = [to_pil(picture) for picture in pictures]
        return [ControlCondition(picture[None]) for picture in pictures], shown if len(shown) > 1 else shown[0]
    if name == "conditions":
        return _keyframes(value, stride_of(family), pictures_of)
    return None


def with_limits(conditions: list[Condition], further: dict[str, Any]) -> tuple[Condition, ...]:
    """The conditions, those of control pictures with strength, start and end, which are taken out of `further`.

    Args:
        further: arguments of a call that no request carries, by name.
    """
    controls = [each for each in conditions if isinstance(each, ControlCondition)]
    for name, field in CONTROL_LIMITS.items() if controls else ():
        value = further.get(name)
        values = value if isinstance(value, list | tuple) else [value] * len(controls)
        if len(values) == len(controls) and all(isinstance(each, int | float) for each in values):
            del further[name]
            given: list[dict[str, Any]] = [{field: float(one or 0)} for one in values]
            controls = [replace(each, **one) for each, one in zip(controls, given, strict=True)]
    left = iter(controls)
    return tuple(next(left) if isinstance(each, ControlCondition) else each for each in conditions)


def _mask(name: str, value: Any) -> tuple[list[Condition], Any] | None:
    planes = _planes(value)
    if planes is None:
        return None
    shown = [to_pil(plane[..., None].expand(-1, -1, 3)).convert("L") for plane in planes]
    return [MaskCondition(planes)], shown if name in CLIP_MASKS else shown[0]


def _planes(value: Any) -> torch.Tensor | None:
    """A mask as float [B, H, W] in 0..1 with 8 bits, None for what is none."""
    import numpy
    from PIL.Image import Image

    if isinstance(value, list | tuple):
        parts = [_planes(each) for each in value]
        alike = len({tuple(part.shape[-2:]) for part in parts if part is not None}) == 1
        return torch.cat([part for part in parts if part is not None]) if alike and None not in parts else None
    if isinstance(value, Image):
        value = torch.from_numpy(numpy.array(value.convert("L")) / numpy.float32(255))
    elif isinstance(value, numpy.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or value.ndim < 2:
        return None
    if value.ndim > 3:
        # A request's mask has one channel.
        value = value.float().mean(1) if value.shape[1] in (1, 3) else value.squeeze(-1)
    if value.ndim > 3:
        return None
    return (value.float().clamp(0, 1) * 255).round().reshape(-1, *value.shape[-2:]) / 255


def _clip(value: Any, role: str, pictures_of: Pictures) -> tuple[list[Condition], Any] | None:
    pictures = pictures_of(value)
    if not pictures or len({picture.shape for picture in pictures}) != 1:
        return None
    return [VideoCondition(torch.stack(pictures)[..., :3], role)], [to_pil(picture) for picture in pictures]


def _keyframes(value: Any, stride: int, pictures_of: Pictures) -> tuple[list[Condition], Any] | None:
    items = value if isinstance(value, list | tuple) else [value]
    made: list[Condition] = []
    for item in items:
        shown = getattr(item, "frames", None)
        pictures = pictures_of(getattr(item, "image", None) if shown is None else shown)
        if pictures is None or len(pictures) != 1:
            return None
        place = getattr(item, "frame_index", None)
        frame = first_frame(int(getattr(item, "index", 0)), stride) if place is None else int(place)
        made.append(KeyframeCondition(pictures[0][None], frame, float(getattr(item, "strength", 1.0))))
    return made, value
