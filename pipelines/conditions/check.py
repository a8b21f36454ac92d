"""What can be said of a request's conditions before a model is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import InputError
from .arguments.names import arguments_of
from .arguments.ranges import reference_size
from .clips import check_clip_mask, check_clips, clip_input, clips_of, named_clips, sized_clips, takes_clip_mask
from .control import check_controls, controls_of
from .forms import form_of
from .further import check_arguments
from .image_prompts.keys import check_image_prompts, image_prompts_of
from .keyframes import check_keyframes, keyframes_of
from .kinds import REFERENCE, ROLES
from .masks import MASK_ARGUMENTS, check_mask, mask_of, repaints
from .pictures import check_values, is_clear
from .references import reference_facts

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

ROUNDED = 0.04
"""Relative difference between the sides that a size's multiple may make without a note."""
_GIVEN_BY = {
    **dict.fromkeys(MASK_ARGUMENTS, ("a mask", "use Mask Condition (--mask)")),
    "control_image": ("a control picture", "use Control Condition (--control-image)"),
    **{
        name: ("a clip", "use Video Condition (--video)")
        if role == "video"
        else (f"a {role} clip", f"use Video Condition with role {role} (--{role}-video)")
        for role, names in ROLES.items()
        for name in names
    },
}
"""Argument that a call fails without -> what it is, and what gives it."""


def check_conditions(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the conditions.

    Raises:
        InputError: one of them cannot be kept to.
    """
    clips = [*check_clips(family, request), *check_keyframes(family, request)]
    with_clip = takes_clip_mask(family, request)
    notes = clips + (check_clip_mask(family, request) if with_clip else check_mask(family, request))
    masked, repainted = mask_of(request) is not None, bool(repaints(family, request))
    notes += check_image_prompts(family, request)
    notes += check_controls(family, request, masked, repainted)
    return notes + check_arguments(family, request, form_of(family, request))


def deciding_inputs(family: Family, request: SampleRequest) -> tuple[str, ...]:
    """What of a request decides which blocks of a modular pipeline run: names of inputs beside the prompt."""
    masked, begun = mask_of(request) is not None, request.latent is not None and request.strength < 1.0
    found = {family.image_argument, "image"} if request.images else set()
    found |= {"last_image"} if request.last_image is not None else set()
    found |= {"image", "image_latents"} if begun else set()
    found |= set(MASK_ARGUMENTS) if masked else set()
    found |= {"control_image"} if (controls := controls_of(request)) else set()
    found |= {"control_mode"} if any(control.mode is not None for control in controls) else set()
    found |= {"ip_adapter_image"} if image_prompts_of(request) else set()
    found |= {name for role in clips_of(request) for name in ROLES[role]}
    found |= {"conditions"} if keyframes_of(request) else set()
    return tuple(sorted(found))


def scaled_notes(family: Family, request: SampleRequest, width: int | None, height: int | None) -> list[str]:
    """Notes on what is brought to the size of the result, in pixels; None where that is not known.

    Raises:
        InputError: as `reference_size`.
    """
    if not width or not height:
        return []
    size, clips = (width, height), sized_clips(family, request)
    sizes = {role: reference_size(family, request, *size) if role == REFERENCE else size for role in clips}
    given = [("control_image", control.image[0], False, size) for control in controls_of(request)]
    given += [(clip_input(role), clip.frames[0], False, sizes[role]) for role, clip in clips.items()]
    given += [("keyframe", keyframe.image[0], True, size) for keyframe in keyframes_of(request)]
    notes = []
    for name, picture, cut, (width, height) in given:
        rows, columns = picture.shape[:2]
        if (rows, columns) == (height, width):
            continue
        note = f"{name}: scaled from {columns}x{rows} to {width}x{height}"
        if rows * width != columns * height:
            note += ", and what stands out on two sides is cut off" if cut else ", which changes its proportions"
        notes.append(f"{note}.")
    return notes + [
        f"{name}: of {columns}x{rows} where the result is {width}x{height}, {what}."
        for name, (rows, columns), what in _brought_to_size(family, request)
        if abs(math.log(rows * width / (columns * height))) > ROUNDED
    ]


def _brought_to_size(family: Family, request: SampleRequest) -> list[tuple[str, tuple[int, int], str]]:
    """The pictures that are given the size of the result: their rows and columns, and what becomes of the shape."""
    if not request.images or clips_of(request):
        return []
    here = (request.strength < 1.0 and request.latent is None) or repaints(family, request)
    if not here and not (family.video and family.max_images == 1):
        return []
    pictures = [("images[0]", request.images[0])]
    pictures += [] if request.last_image is None else [("last_image", request.last_image)]
    what = "which changes its proportions" if here else f"so {family.name} stretches or cuts it"
    return [(name, (picture.shape[0], picture.shape[1]), what) for name, picture in pictures]


def pixel_notes(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what of the values of pictures and clips is not read.

    Raises:
        InputError: they are those of no picture.
    """
    given = [(f"images[{index}]", image, family.alpha) for index, image in enumerate(request.images)]
    given += [] if request.last_image is None else [("last_image", request.last_image, family.alpha)]
    given += [("control_image", control.image[:1], False) for control in controls_of(request)]
    given += [("image_prompt", prompt.image[:1], False) for prompt in image_prompts_of(request)]
    given += [("keyframe", keyframe.image[:1], False) for keyframe in keyframes_of(request)]
    given += [(name, clip.frames, False) for name, clip in named_clips(request)]
    further = arguments_of(request).items()
    given += [(f"argument {name}", each.image, True) for name, each in further if each.image is not None]
    notes = [note for name, pixels, _ in given for note in check_values(name, pixels)]
    clear = [name for name, pixels, alpha in given if not alpha and is_clear(pixels)]
    if clear:
        notes.append(f"transparency of {', '.join(clear)} ignored: {family.name} reads the colours alone.")
    return notes


def condition_facts(family: Family, request: SampleRequest) -> dict[str, str]:
    """What a run was held to beside its control models, for the report."""
    mask, clips, keyframes = mask_of(request), sized_clips(family, request), keyframes_of(request)
    facts = {}
    if mask is not None:
        facts["mask"] = f"{mask.mask.shape[-1]}x{mask.mask.shape[-2]}"
    if clips:
        shapes = {clip_input(role): clip.frames.shape for role, clip in clips.items()}
        facts["clips"] = "; ".join(f"{name} {of[0]} frames of {of[2]}x{of[1]}" for name, of in shapes.items())
    elif references := reference_facts(request):
        facts["references"] = references
    if further := arguments_of(request):
        facts["arguments"] = ", ".join(further)
    if keyframes:
        facts["keyframes"] = "; ".join(f"frame {each.frame}, strength {each.strength:g}" for each in keyframes)
    return facts


def still_missing(family: Family, request: SampleRequest) -> None:
    """Raise InputError for what the model's call fails without, and the request does not give."""
    given = set(MASK_ARGUMENTS) if mask_of(request) is not None else set()
    given |= {"control_image"} if controls_of(request) else set()
    given |= {name for role in clips_of(request) for name in ROLES[role]}
    given |= {"ip_adapter_image"} if image_prompts_of(request) else set()
    given |= set(arguments_of(request))
    missing = [name for name in family.required if name not in given]
    unknown = [name for name in missing if name not in _GIVEN_BY]
    if unknown:
        reason = f"{family.name} makes nothing without {', '.join(unknown)}"
        raise InputError(", ".join(unknown), "none", reason, "give each with Pipeline Argument (--argument NAME=VALUE)")
    if missing:
        things, cures = zip(*(_GIVEN_BY[name] for name in missing), strict=True)
        reason = f"{family.name} works with {' and '.join(things)}"
        raise InputError(", ".join(missing), "none", reason, "; ".join(dict.fromkeys(cures)))
