"""The inputs of a case as a request of the pack, and the same inputs as a bare call takes them.

Pictures are brought to 8 bits first, for both: that is what every picture of a request becomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...optimizations.components import is_modular_class
from ...pipelines.arguments import to_pil
from ...pipelines.classes.guidance import GUIDER
from ...pipelines.conditions.arguments.names import objection
from ...pipelines.conditions.kinds import ArgumentCondition, Condition
from ...pipelines.families import Family
from ...pipelines.modular.models import SCALE
from ...pipelines.types import SampleRequest
from .bare import accepted
from .conditions import condition_of, with_limits

_SAME = {
    "num_inference_steps": "steps",
    "guidance_scale_2": "guidance_2",
    "width": "width",
    "height": "height",
    "max_sequence_length": "max_sequence_length",
}
"""Argument of a call -> field of a request, where the values are the same."""
_LEFT_OUT = ("generator", "output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs")


@dataclass(frozen=True)
class Translated:
    """The inputs of a case.

    Attributes:
        request: for the pack.
        call: keyword arguments for bare diffusers, without generator and output type.
        further: those of them that no request carries.
    """

    request: SampleRequest
    call: dict[str, Any]
    further: dict[str, Any]


def translate(pipeline: Any, family: Family, inputs: dict[str, Any]) -> Translated:
    """Split the inputs of a case into what a request says and what it does not."""
    taken = accepted(pipeline)
    given = {name: value for name, value in inputs.items() if name in taken and name not in _LEFT_OUT}
    call = dict(given)
    fields: dict[str, Any] = {"prompt": ""}
    further: dict[str, Any] = {}
    conditions: list[Condition] = []
    for name, value in list(call.items()):
        if value is None:  # the pipeline's own, here too
            continue
        found = condition_of(name, value, family, pictures_of)
        if found is not None:
            condition, call[name] = found
            conditions += condition
        elif name in ("prompt", "negative_prompt"):
            call[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
            if isinstance(call[name], str):
                fields[name] = call[name]
            elif call[name] is not None:
                further[name] = call[name]
        elif name in _SAME:
            fields[_SAME[name]] = value
        elif name == family.guidance_argument and _is_number(value):
            fields["guidance"] = float(value)
        elif name == family.frames_argument:
            fields["num_frames"] = value
        elif name == family.rate_argument and _is_number(value):
            fields["frame_rate"] = float(value)
        elif name == family.image_argument and family.images != "none":
            pictures = pictures_of(value)
            if pictures is None:
                further[name] = value
                continue
            fields["images"] = pictures
            as_list = family.max_images > 1 or family.images_as_list
            shown = [to_pil(picture, family.alpha) for picture in pictures]
            call[name] = shown if as_list else shown[0] if shown else None
        elif name == "last_image" and family.last_image:
            last = pictures_of(value) or (None,)
            fields["last_image"] = last[0]
            call[name] = None if last[0] is None else to_pil(last[0])
        elif name == "strength" and _is_number(value) and _starts_from_something(given, family):
            fields["strength"] = float(value)
        elif value is not None:
            further[name] = value
    fields |= _guiders(pipeline)
    held = with_limits(conditions, further)
    held = (*held, *_arguments(family.classes[-1], family, call, further))
    return Translated(SampleRequest(**fields, conditions=held), call, further)


def _guiders(pipeline: Any) -> dict[str, float]:
    """The scales of a modular pipeline's guiders, which no call gives, as fields of a request."""
    parts = ((GUIDER, "guidance"), (f"{GUIDER}_2", "guidance_2")) if is_modular_class(type(pipeline)) else ()
    configs = {field: getattr(getattr(pipeline, name, None), "config", {}) for name, field in parts}
    return {
        field: float(config[SCALE] if config.get("enabled", True) else 1.0)
        for field, config in configs.items()
        if SCALE in config
    }


def _arguments(
    class_name: str, family: Family, call: dict[str, Any], further: dict[str, Any]
) -> Iterator[ArgumentCondition]:
    """What no other input of a request gives, as arguments, taken out of `further`."""
    for name, value in list(further.items()):
        if objection(family, class_name, name)[0]:
            continue
        pictures = pictures_of(value) if _is_picture(value) else None
        if pictures:
            if len({each.shape for each in pictures}) > 1:
                continue
            shown = [to_pil(each, each.shape[-1] == 4) for each in pictures]
            call[name] = shown if len(shown) > 1 else shown[0]
            yield ArgumentCondition(name, image=torch.stack(pictures))
        elif _is_plain(value):
            yield ArgumentCondition(name, value)
        else:
            continue
        del further[name]


def _is_picture(value: Any) -> bool:
    from PIL.Image import Image

    each = value[0] if isinstance(value, list) and value else value
    return isinstance(each, Image)


def _is_plain(value: Any) -> bool:
    """Whether it is what an argument of a request may be."""
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return value is None or isinstance(value, str | int | float | bool | torch.Tensor)


def _starts_from_something(given: dict[str, Any], family: Family) -> bool:
    """Whether a call's strength is a request's: of the picture or the clip that it starts from."""
    return bool({"image", "video"} & set(given)) and (family.images != "none" or "video" in given)


def pictures_of(value: Any) -> tuple[torch.Tensor, ...] | None:
    """Each picture as float [H, W, C] in 0..1 with 8 bits; None for what is no picture."""
    import numpy
    from PIL.Image import Image

    if value is None:
        return ()
    if isinstance(value, list | tuple):
        parts = [pictures_of(each) for each in value]
        return None if None in parts else tuple(picture for part in parts for picture in part or ())
    if isinstance(value, Image):
        mode = "RGBA" if value.mode == "RGBA" else "RGB"
        return (torch.from_numpy(numpy.array(value.convert(mode))).float() / 255,)
    if isinstance(value, numpy.ndarray):
        value = torch.from_numpy(value).movedim(-1, -3)
    if not isinstance(value, torch.Tensor) or value.ndim not in (3, 4) or value.shape[-3] not in (3, 4):
        return None
    pictures = value[None] if value.ndim == 3 else value
    rounded = (pictures.float().clamp(0, 1) * 255).round() / 255
    return tuple(picture.permute(1, 2, 0).contiguous() for picture in rounded)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
