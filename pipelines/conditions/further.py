"""Arguments of a pipeline's call that no other input of a request gives: `eta`, `pag_scale`, `image_embeds` ..."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .kinds import ArgumentCondition
from .taking import call_takes

if TYPE_CHECKING:
    import torch

    from ..families import Family
    from ..types import SampleRequest

_OWN_INPUTS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "width": "width",
    "height": "height",
    "generator": "seed",
    "num_images_per_prompt": "batch",
    "num_videos_per_prompt": "batch",
    "max_sequence_length": "max_sequence_length",
    "strength": "strength",
    "last_image": "last_image",
    "latents": "latent",
    "mask_image": "Mask Condition",
    "control_image": "Control Condition",
    "video": "Video Condition",
}
"""Argument -> the input that gives it."""
_NEVER = ("self", "output_type", "return_dict", "callback", "callback_steps", "kwargs", "args")


def json_or_text(name: str, text: str) -> Any:
    """What the value of an argument that a person wrote stands for as JSON; the text itself where it is none.

    Raises:
        InputError: there is none.
    """
    if not text.strip():
        raise InputError(name, text, "it has no value", 'write "" for an empty text')
    try:
        return json.loads(text)
    except ValueError:
        return text


def arguments_of(request: SampleRequest) -> dict[str, ArgumentCondition]:
    """Name -> argument. Raises InputError where one is given twice."""
    found: dict[str, ArgumentCondition] = {}
    for condition in request.conditions:
        if isinstance(condition, ArgumentCondition):
            if condition.name in found:
                raise InputError("argument", condition.name, "it is given twice", "leave one of them out")
            found[condition.name] = condition
    return found


def objection(family: Family, form: str, name: str) -> tuple[str, str]:
    """(why an argument cannot be given, what to do about it), both "" where it can.

    Args:
        form: the class that is called.
    """
    takes = [each for each in call_takes(form) if each not in _NEVER and not each.startswith("callback_on")]
    if name not in takes:
        close = get_close_matches(name, takes, 3, 0.5)
        cure = f"use {' or '.join(close)}" if close else "leave it out"
        return f"the call of {form} takes none of that name", cure
    if name in family.required:
        return "", ""
    given_by = {
        **_OWN_INPUTS,
        family.guidance_argument: "guidance",
        **({family.image_argument: "images"} if family.images != "none" else {}),
        **({family.frames_argument: "num_frames", family.rate_argument: "frame_rate"} if family.video else {}),
    }
    if name in given_by:
        return f"{given_by[name]} gives it", f"use {given_by[name]}"
    return "", ""


def check_arguments(family: Family, request: SampleRequest, form: str) -> None:
    """Raise InputError for an argument that the call has not, or that another input gives.

    Args:
        form: the class that is called for this request.
    """
    for name in arguments_of(request):
        reason, cure = objection(family, form or family.classes[-1], name)
        if reason:
            raise InputError("argument", name, reason, cure)


def argument_values(request: SampleRequest, to_picture: Any, device: torch.device | None) -> dict[str, Any]:
    """What the call is given for the arguments of a request.

    Args:
        to_picture: [H, W, C] to a picture of Pillow's.
        device: where tensors go.
    """
    given: dict[str, Any] = {}
    for name, argument in arguments_of(request).items():
        value = argument.value
        if argument.image is not None:
            pictures = [to_picture(each) for each in argument.image]
            value = pictures if len(pictures) > 1 else pictures[0]
        given[name] = _placed(value, device)
    return given


def _placed(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_placed(each, device) for each in value)
    return value.to(device) if hasattr(value, "to") and device is not None else value
