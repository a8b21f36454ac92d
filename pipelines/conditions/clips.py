"""A clip that a run starts from or keeps to: which class takes it, its length and size, and what a call is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ...errors import InputError
from ..classes.forms import class_of, video_to_video_class
from . import ltx
from .arguments.ranges import reference_size
from .keyframes import stride_of
from .kinds import REFERENCE, ROLES, VideoCondition
from .masks import check_values, mask_of, scaled
from .pictures import shape_of
from .rates import LEAST_FRAME_RATE, MOST_FRAME_RATE, keeps_its_rate
from .references import ARGUMENT as REFERENCES
from .references import check_references, named_references, reference_values, references_of, takes_references
from .taking import call_takes

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

Request = TypeVar("Request", bound="SampleRequest")

CLIP_MASKS = ("mask", "mask_video")
"""Arguments of a clip's mask."""
_OWN_STRENGTH = 0.8
_LEADING = ("video", "pose", "control")
"""Roles of clips whose frames those of the result follow one by one."""
_CONTINUES = ("SkyReelsV2DiffusionForcingVideoToVideoPipeline",)
"""Classes that go on where the clip ends: the result is as long as asked for, however long the clip is."""


def clips_of(request: SampleRequest) -> dict[str, VideoCondition]:
    """Role -> clip, of several references the first. Raises InputError where two have another role."""
    found: dict[str, VideoCondition] = {}
    for condition in request.conditions:
        if isinstance(condition, VideoCondition):
            if condition.role in found and condition.role == REFERENCE:
                continue
            if condition.role in found:
                reason = "a run takes one clip of each kind"
                raise InputError(clip_input(condition.role), "two clips", reason, "leave one of them out")
            found[condition.role] = condition
    return found


def named_clips(request: SampleRequest) -> list[tuple[str, VideoCondition]]:
    """Every clip with the name of its input, references last."""
    others = ((clip_input(role), clip) for role, clip in clips_of(request).items() if role != REFERENCE)
    return [*others, *named_references(request)]


def sized_clips(family: Family, request: SampleRequest) -> dict[str, VideoCondition]:
    """Role -> clip of those that are brought to the size of the result; references of MiniMax-H3 keep their own."""
    clips = clips_of(request)
    return {} if REFERENCE in clips and takes_references(family) else clips


def clip_form(family: Family, request: SampleRequest) -> str:
    """The class that takes the request's clips: itself, or its video-to-video form; "" where there is none."""
    clips = clips_of(request)
    pipeline_class = class_of(family)
    if not clips or pipeline_class is None:
        return ""
    name = pipeline_class.__name__
    if all(_argument(name, role) for role in clips):
        return name
    if set(clips) == {REFERENCE} and _argument(ltx.REFERENCE_FORMS.get(name, ""), REFERENCE):
        return ltx.REFERENCE_FORMS[name]
    # The form of two-expert Wan and of its 5B model would leave out what these need.
    if set(clips) != {"video"} or family.second_guidance or family.latent_channels == 48:
        return ""
    return video_to_video_class(pipeline_class)


def takes_clip_mask(family: Family, request: SampleRequest) -> bool:
    """Whether the call that takes the request's clips takes a mask with them."""
    form = clip_form(family, request)
    return bool(form) and any(name in call_takes(form) for name in CLIP_MASKS)


def with_clip_length(family: Family, request: Request) -> Request:
    """The request with what its clip says where nothing is asked: as many frames, brought down to what the family
    takes, and as many of them per second."""
    rate = clip_rate(request)
    if family.video and rate is not None and request.frame_rate is None and not keeps_its_rate(family):
        request = replace(request, frame_rate=rate)
    clip = clips_of(request).get("video")
    if clip is None or request.num_frames or not family.video or getattr(clip.frames, "ndim", 0) != 4:
        return request
    if clip_form(family, request) in _CONTINUES:
        return request
    return replace(request, num_frames=_fitting(family, int(clip.frames.shape[0])))


def clip_rate(request: SampleRequest) -> float | None:
    """Frames per second of the clip that the result is as, None where it is as none, or that has no rate."""
    clips = clips_of(request)
    leads = next((clips[role] for role in _LEADING if role in clips), None)
    rate = None if leads is None else leads.frame_rate
    return rate if rate is not None and LEAST_FRAME_RATE <= rate <= MOST_FRAME_RATE else None


def check_clips(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the clips; [] without one.

    Raises:
        InputError: this model takes none of that kind, or one that is shorter than the result.
    """
    clips, notes = clips_of(request), []
    if not clips:
        return []
    for name, each in named_clips(request):
        shape_of(name, each.frames, "a clip is [frames, height, width, 3]", "give a clip")
    form = clip_form(family, request)
    if not form:
        _refuse_roles(family, request, clips)
    if len(references_of(request)) > 1 and not takes_references(family):
        reason = f"{form} reads one reference"
        raise InputError(clip_input(REFERENCE), f"{len(references_of(request))} clips", reason, "leave the others out")
    itself = form in family.classes
    if request.images and not itself:
        reason, cure = f"{form} takes none beside a clip", "leave images (--image) out"
        cure += ", and make the picture a keyframe at frame 0" if REFERENCE in clips else ""
        raise InputError("images", f"{len(request.images)} image(s)", reason, cure)
    if request.strength < 1.0 and "strength" not in call_takes(form):
        reason = f"{family.name} makes all of its frames anew beside a clip, and has no strength"
        raise InputError("strength", request.strength, reason, "use 1")
    if REFERENCE in clips and takes_references(family):
        return check_references(family, request)
    if not itself and request.strength >= 1.0 and "strength" in call_takes(form):
        if (steps := request.steps or family.steps) * _OWN_STRENGTH < 1:
            reason = f"{form} takes {_OWN_STRENGTH:g} of them beside a clip, so none would be left"
            raise InputError("steps", steps, reason, "use 2 or more")
        notes.append(f"strength: {_OWN_STRENGTH:g}, {form}'s own; a value below 1 takes its place.")
    rate = clip_rate(request)
    if rate is not None and request.frame_rate == rate:
        notes.append(f"frame_rate: {rate:g}, the clip's.")
    elif rate is not None and request.frame_rate is not None:
        notes.append(
            f"frame_rate: {request.frame_rate:g} as asked; the clip has {rate:g}, so it plays at another speed."
        )
    elif rate is not None and family.video and rate != family.frame_rate:
        own = f"{family.frame_rate:g}, with which its sound goes"
        notes.append(f"frame_rate: {own}; the clip has {rate:g}, so it plays at another speed.")
    notes += [f"{clip_input(role)}: its sound is left out." for role, clip in clips.items() if clip.sound is not None]
    notes += _check_lengths(family, request, clips)
    if request.batch > 1 and not itself and REFERENCE not in clips:
        raise InputError("batch", request.batch, f"{form} makes one at a time", "use 1")
    return notes


def _refuse_roles(family: Family, request: SampleRequest, clips: Mapping[str, VideoCondition]) -> NoReturn:
    """Raise InputError for the clip that the model takes none of, or for those that it does not take together."""
    others = [each for each in request.conditions if not isinstance(each, VideoCondition)]
    for role, clip in clips.items():
        if not clip_form(family, replace(request, conditions=(*others, clip))):
            what = "clip to start from" if role == "video" else f"{role} clip"
            raise InputError(clip_input(role), "a clip", f"{family.name} takes no {what}", "leave it out")
    *first, last = map(clip_input, clips)
    raise InputError(
        last, "a clip", f"{family.name} takes none beside {' and '.join(first)}", "leave all clips but one out"
    )


def check_clip_mask(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the mask that a call takes with its clips; [] without one.

    Raises:
        InputError: it is no mask.
    """
    condition = mask_of(request)
    if condition is None:
        return []
    shape, notes, form = check_values(condition), [], clip_form(family, request)
    masks = shape[0] if len(shape) == 3 else 1
    clip = next(iter(clips_of(request).values())).frames
    count = min(int(clip.shape[0]), request.num_frames or int(clip.shape[0]))
    rows, columns = clip.shape[1:3]
    if tuple(shape[-2:]) != (rows, columns):
        notes.append(f"mask: scaled from {shape[-1]}x{shape[-2]} to the clip's {columns}x{rows}.")
    if 1 < masks < count:
        notes.append(f"mask: the last of {masks} holds for the frames after it, up to {count}.")
    if masks > count:
        notes.append(f"mask: the first {count} of {masks} are used.")
    if "VACE" in form and bool(((condition.mask > 0) & (condition.mask < 1)).any()):
        notes.append(f"mask: {form} keeps a pixel or makes it anew, so above 0.5 is made anew, and the rest is kept.")
    return notes


def _check_lengths(family: Family, request: SampleRequest, clips: Mapping[str, VideoCondition]) -> list[str]:
    """Notes on frames that are not used. Raises InputError for a clip that is shorter than the result."""
    leads = "pose" in clips  # the result is as long as the pose's clip
    wanted = int(clips["pose"].frames.shape[0]) if leads else request.num_frames or 0
    notes = []
    if leads and request.num_frames not in (None, 0, wanted):
        notes.append(f"num_frames ignored: the result is as long as the pose clip, {wanted} frames.")
    for role, clip in clips.items() if wanted else ():
        count, name = int(clip.frames.shape[0]), clip_input(role)
        if role == REFERENCE:
            if (used := _used_of_reference(family, request, count)) < count:
                notes.append(f"{name}: the first {used} of its {count} frames are used.")
            continue
        if role == "video" and clip_form(family, request) in _CONTINUES:
            continue
        if count < wanted and role == "video":
            cure = f"use {_fitting(family, count)} or fewer in num_frames (--num-frames), or 0 for the clip's"
            raise InputError(name, f"{count} frames", f"the result has {wanted}", cure)
        if count < wanted:
            whose = "the pose clip" if leads else "the result"
            raise InputError(name, f"{count} frames", f"{whose} has {wanted}", "use clips that are as long")
        if count > wanted and (leads or "video" in clips):
            notes.append(f"{name}: the first {wanted} of its {count} frames are used.")
    return notes


def clip_arguments(form: str, family: Family, request: SampleRequest, to_picture: Any) -> dict[str, Any]:
    """What the call of a class is given for the request's clips, with their mask.

    Args:
        to_picture: [H, W, C] and (width, height) to a picture of Pillow's in that size, by default the result's.
    """
    clips = clips_of(request)
    if not clips:
        return {}
    count = request.num_frames if "video" in clips and form not in _CONTINUES else None
    given: dict[str, Any] = {
        _argument(form, role): [to_picture(frame) for frame in clip.frames[:count]]
        for role, clip in clips.items()
        if role != REFERENCE
    }
    if "driving_video_fps" in call_takes(form) and "video" in clips:
        given["driving_video_fps"] = clips["video"].frame_rate
    if REFERENCE in clips and REFERENCES in call_takes(form):
        given[REFERENCES] = reference_values(family, request, to_picture)
    elif REFERENCE in clips:
        frames, made = clips[REFERENCE].frames, ltx.reference_class(form)
        used = _used_of_reference(family, request, len(frames))
        size = reference_size(family, request, request.width or 0, request.height or 0)
        given[_argument(form, REFERENCE)] = [made(frames=[to_picture(frame, size) for frame in frames[:used]])]
    elif request.strength < 1.0 or form not in family.classes:
        given["strength"] = request.strength if request.strength < 1.0 else _OWN_STRENGTH
    mask, name = mask_of(request), next((name for name in CLIP_MASKS if name in call_takes(form)), "")
    if mask is not None and name:
        first = next(iter(clips.values())).frames[:count]
        given[name] = _mask_frames(mask.mask, first.shape[:3], to_picture)
        if {"background_video", "mode"} <= set(call_takes(form)) and "background" in clips:
            given["mode"] = "replace"
    return given


def _used_of_reference(family: Family, request: SampleRequest, count: int) -> int:
    """How many frames of a reference are read: those that the result has, and whole latent frames of them."""
    stride = stride_of(family)
    return (min(count, request.num_frames or count) - 1) // stride * stride + 1


def _mask_frames(mask: Any, shape: Any, to_picture: Any) -> list[Any]:
    """One picture of the mask for each frame of a clip [T, H, W], the last one's for those that it has none for."""
    count, rows, columns = shape
    planes = scaled(mask, rows, columns)
    grey = planes[..., None].expand(-1, -1, -1, 3)
    return [to_picture(grey[min(index, len(grey) - 1)]).convert("L") for index in range(count)]


def _fitting(family: Family, count: int) -> int:
    """The most frames that the family makes, of a clip of so many."""
    rest, step = family.frame_rest, family.frame_step
    return count if step <= 1 else max(family.min_frames, (count - rest) // step * step + rest)


def clip_input(role: str) -> str:
    """What a clip's input is called."""
    return "video" if role == "video" else f"{role}_video"


def _argument(form: str, role: str) -> str:
    return next((name for name in ROLES[role] if name in call_takes(form)), "")
