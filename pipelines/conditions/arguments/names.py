"""Which arguments of a call may be given by name, and which of them another input gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ....errors import InputError
from ..kinds import (
    ROLES,
    ArgumentCondition,
    ControlCondition,
    ImagePromptCondition,
    KeyframeCondition,
    MaskCondition,
    VideoCondition,
)
from ..taking import call_takes

if TYPE_CHECKING:
    from ...families import Family
    from ...types import SampleRequest

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
    "latents": "the sampler node's latent",
    "mask_image": "Mask Condition (--mask)",
    "control_image": "Control Condition (--control-image)",
    "control_mode": "Control Condition (--control-mode)",
    "video": "Video Condition (--video)",
    "references": "Video Condition with the role reference (--reference-video)",
}
"""Argument -> the input that gives it."""
_WITH_IMAGES = {"image": "images (--image)", "strength": "strength", "mask_image": "Mask Condition (--mask)"}
"""Argument that the class for texts lacks, where the form for images of the same models has it -> the input."""
_NEVER = ("self", "kwargs", "args")
_DECIDED = ("output_type", "return_dict", "callback", "callback_steps")
"""What this pack gives the call itself, beside `callback_on_...`."""
_UNUSABLE = {
    "padding_mask_crop": (
        "with it the class lays the part that it made back into the picture itself, and here it is decoded outside",
        "leave it out, or cut the part out of image and mask",
    )
}
"""Argument -> (why no run here can use it, what to do about it)."""
_OF_ADAPTERS = tuple(f"{sign}ip_adapter_image{kind}" for sign in ("", "negative_") for kind in ("", "_embeds"))
"""Arguments that an IP-Adapter reads."""
_MOST_NAMES = 12


def json_or_text(name: str, text: str) -> Any:
    """What the value of an argument that a person wrote stands for as JSON; the text itself where it is none.

    Raises:
        InputError: there is none.
    """
    if not text.strip():
        raise InputError(f"argument {name}", text, "it has no value", 'write "" for an empty text')
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
    if _is_decided(name):
        return "this pack gives it, so that it gets the result", "leave it out"
    if name in _UNUSABLE:
        return _UNUSABLE[name]
    takes = [each for each in call_takes(form) if each not in _NEVER and not _is_decided(each)]
    given_by = _given_by(family)
    if name not in takes and name in _WITH_IMAGES and (family.images != "none" or family.image_to_image):
        return f"the call of {form} takes none of that name", f"use {_WITH_IMAGES[name]}"
    if name not in takes:
        close = get_close_matches(name, takes, 3, 0.5)
        meant = dict.fromkeys(each if each in family.required else given_by.get(each, each) for each in close)
        free = [each for each in takes if each not in given_by]
        others = "among others " if len(free) > _MOST_NAMES else ""
        taken = f"it takes {others}{', '.join(free[:_MOST_NAMES])}" if free else "leave it out"
        cure = f"use {' or '.join(meant)}" if meant else taken
        return f"the call of {form} takes none of that name", cure
    if name not in family.required and name in given_by:
        return f"{given_by[name]} gives it", _start_cure(family) if name == "latents" else f"use {given_by[name]}"
    return "", ""


def without_adapter(family: Family, request: SampleRequest, name: str) -> tuple[str, str]:
    """As `objection`, for an argument that an IP-Adapter would have to read in a run without one."""
    has_one = any(isinstance(condition, ImagePromptCondition) for condition in request.conditions)
    if name not in _OF_ADAPTERS or name in family.required or has_one:
        return "", ""
    return "an IP-Adapter reads it, and this run has none", f"use {CALLED[ImagePromptCondition]} for the picture"


def _start_cure(family: Family) -> str:
    """What to start from instead of a latent that is given by name; a command has no option for a latent."""
    start = "give a picture with --image and a --strength below 1" if family.image_to_image else "leave it out"
    return f"use that node in ComfyUI; on the command line, which takes no latent, {start}"


def _is_decided(name: str) -> bool:
    """Whether this pack gives the call an argument itself."""
    return name in _DECIDED or name.startswith("callback_on")


def _given_by(family: Family) -> dict[str, str]:
    """Argument of the call -> the input that gives it."""
    scale = {"guidance_scale": "guidance"} if not family.guidance_argument else {}
    return {
        **_OWN_INPUTS,
        **scale,
        family.guidance_argument: "guidance",
        **({"guidance_scale_2": "guidance_2"} if family.second_guidance else {}),
        **({family.image_argument: "images (--image)"} if family.images != "none" else {}),
        **({family.frames_argument: "num_frames", family.rate_argument: "frame_rate"} if family.video else {}),
    }


def given_already(family: Family, request: SampleRequest) -> Iterator[tuple[str, str]]:
    """(argument, the input of this request that gives it) for what no argument may give beside it."""
    texts = ("prompt", "prompt_2", "prompt_3", "prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_mask")
    if request.positive is not None:
        yield from ((name, "positive") for text in texts for name in (text, f"negative_{text}"))
    elif request.prompt.strip():
        yield "prompt_embeds", "prompt"
    if request.negative_prompt.strip():
        yield "negative_prompt_embeds", "negative_prompt"
    if request.images or request.latent is not None:
        yield from ((name, "images") for name in ("image", "image_latents") if request.strength < 1.0)
    for condition in request.conditions:
        yield from ((name, CALLED[type(condition)]) for name in _names_of(condition))


CALLED = {
    ArgumentCondition: "Pipeline Argument (--argument)",
    ControlCondition: "Control Condition (--control-image)",
    ImagePromptCondition: "Image Prompt Condition (--image-prompt)",
    KeyframeCondition: "Keyframe Condition (--keyframe)",
    MaskCondition: "Mask Condition (--mask)",
    VideoCondition: "Video Condition",
}
"""Condition -> its node, and its option."""
_GIVES: dict[type, tuple[str, ...]] = {
    ControlCondition: (
        "control_image",
        "controlnet_conditioning_scale",
        "control_guidance_start",
        "control_guidance_end",
    ),
    KeyframeCondition: ("conditions",),
    MaskCondition: ("mask_image", "control_mask", "mask_video", "mask"),
}


def _names_of(condition: Any) -> tuple[str, ...]:
    """The arguments that a condition gives."""
    if isinstance(condition, VideoCondition):
        return ROLES[condition.role]
    if isinstance(condition, ImagePromptCondition):
        embeddings = ("prompt_2", "prompt_embeds", "pooled_prompt_embeds")
        return embeddings if condition.model.redux else ("ip_adapter_image", "ip_adapter_image_embeds")
    return _GIVES.get(type(condition), ())
