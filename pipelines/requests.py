"""What a request must be like, and what fills the gaps: everything that can be said before a model is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ..errors import InputError
from .classes.guidance import OWN_SCHEDULES
from .conditions.check import check_conditions, pixel_notes, scaled_notes, still_missing
from .conditions.clips import clip_form, sized_clips, with_clip_length
from .conditions.control import without_idle
from .conditions.keyframes import keyframes_of
from .conditions.masks import mask_of, repaints
from .conditions.pictures import check_image
from .conditions.rates import check_frame_rate
from .conditions.references import with_references
from .embeddings.check import check_texts
from .families import Family
from .requested.ignored import assumed_notes, ignored_notes
from .requested.references import check_references, check_references_of_clip
from .requested.sizes import fit
from .results import refuse_without_picture
from .schedulers import SCHEDULERS, SHORT_NAMES, known_name
from .types import SampleRequest

if TYPE_CHECKING:
    pass

MAX_STEPS = 1000
"""The schedulers divide 1000 training timesteps."""
MAX_BATCH = 64
MAX_SEQUENCE_LENGTH = 4096
MAX_FLOW_SHIFT = 100.0
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
SCHEDULER_DEFAULT = "model default"


def check_request(family: Family, request: SampleRequest) -> list[str]:
    """Check a request against a family, in microseconds.

    Returns:
        Notes: what will be ignored or brought to what the family takes, and why.

    Raises:
        InputError: the first thing that cannot be done, naming the input, its value, the reason and the cure.
    """
    request, left_out = without_idle(family, request)
    _check_purpose(family, request)
    _check_range("steps", request.steps, family.min_steps, MAX_STEPS, f"{family.steps} is recommended")
    _check_range("batch", request.batch, 1, MAX_BATCH, "run it several times for more")
    _check_range("seed", request.seed, 0, 2**64 - 1, "use any number in that range")
    for name in ("guidance", "guidance_2"):
        cure = "leave it out for the model's own" if family.guidance is None else f"{family.guidance:g} is recommended"
        _check_range(name, getattr(request, name), 0.0, 1000.0, cure)
    _check_range("flow_shift", request.flow_shift, 0.01, MAX_FLOW_SHIFT, "leave it out for the model's own")
    request, fitted = fit(family, with_clip_length(family, with_references(family, request)))
    _check_aspect(family, request)
    fitted += check_frame_rate(family, request)
    own = "leave it out for the model's own"
    _check_range("max_sequence_length", request.max_sequence_length, 1, MAX_SEQUENCE_LENGTH, own)
    _check_guided_steps(family, request)
    _check_prompt(request)
    _check_scheduler_name(request.scheduler)
    conditioned = check_conditions(family, request)
    _check_images(family, request)
    conditioned += scaled_notes(family, request, *_size(family, request)) + pixel_notes(family, request)
    texts = check_texts(family, request, scale := complete_guidance(family, request), negative_acts(family, scale))
    ignored = ignored_notes(family, request, scale)
    return [*left_out, *fitted, *conditioned, *texts, *ignored, *assumed_notes(family, request)]


@dataclass(frozen=True)
class ReadyRequest(SampleRequest):
    """A request that was checked against a family and has no gaps.

    Attributes:
        asked: the request as it came.
        family: what it was checked against.
        notes: what will be ignored or brought to what the family takes, and why.
    """

    asked: SampleRequest = field(kw_only=True)
    family: Family = field(kw_only=True)
    notes: tuple[str, ...] = field(kw_only=True)


def ready(family: Family, request: SampleRequest) -> ReadyRequest:
    """Check a request and fill its gaps; one that is ready for this family already is returned as it is.

    Before a pipeline is loaded only its class may be known, so the family of the loaded one can be another variant.

    Raises:
        InputError: as `check_request`.
    """
    if isinstance(request, ReadyRequest):
        if request.family == family:
            return request
        request = request.asked
    notes = tuple(check_request(family, request))
    return ReadyRequest(**vars(complete(family, request)), asked=request, family=family, notes=notes)


def complete(family: Family, request: SampleRequest) -> SampleRequest:
    """The request brought to what the family takes, and every gap filled by what it recommends.

    The size follows a reference image's aspect. A control picture of strength 0 is left out.
    """
    request, _ = without_idle(family, with_references(family, request))
    request, _ = fit(family, with_clip_length(family, request))
    guidance = complete_guidance(family, request)
    guidance_2 = request.guidance_2
    if guidance_2 is None and request.guidance is None:
        guidance_2 = family.guidance_2
    width, height = _size(family, request)
    return replace(
        request,
        steps=request.steps or family.steps,
        guidance=guidance,
        guidance_2=guidance if guidance_2 is None else guidance_2,
        width=width,
        height=height,
        num_frames=request.num_frames or family.num_frames or None,
        frame_rate=(request.frame_rate or family.frame_rate) if family.video else None,
        scheduler=known_name(request.scheduler),
    )


def complete_guidance(family: Family, request: SampleRequest) -> float | None:
    """The guidance of a run: as asked, else what the family recommends."""
    return family.guidance if request.guidance is None else request.guidance


def negative_acts(family: Family, guidance: float | None) -> bool:
    """Whether a negative prompt changes anything."""
    return family.negative_prompt and not (guidance is not None and guidance <= family.negative_above)


def seeds(request: SampleRequest) -> tuple[int, ...]:
    """The seed of each item of the batch: seed, seed + 1, ... (starting over at 2**64)."""
    return tuple((request.seed + index) % 2**64 for index in range(request.batch))


def _check_purpose(family: Family, request: SampleRequest) -> None:
    """Refuse a class that makes something else than pictures, or that needs more than a request can say."""
    refuse_without_picture(family)
    still_missing(family, request)


def _check_guided_steps(family: Family, request: SampleRequest) -> None:
    schedule = OWN_SCHEDULES.get(family.name)
    if schedule is not None and request.guidance is None and request.steps not in (None, schedule.steps):
        reason = f"{family.name}'s own guidance is a list for {schedule.steps} steps"
        raise InputError("steps", request.steps, reason, f"use {schedule.steps}, or set guidance too")


def _check_range(name: str, value: float | None, low: float, high: float, cure: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        least, most = (str(end) if isinstance(end, int) else f"{end:g}" for end in (low, high))
        raise InputError(name, value, f"it must be between {least} and {most}", cure)


def _check_aspect(family: Family, request: SampleRequest) -> None:
    width, height = request.width or family.width, request.height or family.height
    if family.most_aspect and max(width, height) > family.most_aspect * min(width, height):
        most = f"{family.most_aspect:g}"
        reason = f"{family.name} makes pictures from 1:{most} to {most}:1"
        raise InputError("size", f"{width}x{height}", reason, f"use {family.width}x{family.height}, say")


def _check_prompt(request: SampleRequest) -> None:
    """Any text will do, none too: a picture may come of it, as of ComfyUI's own nodes."""
    if not isinstance(request.prompt, str):
        raise InputError("prompt", request.prompt, "it must be text", "give a text")
    for name in ("prompt", "negative_prompt"):
        if _NO_TEXT.search(getattr(request, name) or ""):
            reason = "it holds a NUL or half a surrogate pair, which no tokenizer reads"
            raise InputError(name, getattr(request, name), reason, "leave that character out")


def _check_scheduler_name(name: str) -> None:
    known = (SCHEDULER_DEFAULT, *SHORT_NAMES, *SCHEDULERS)
    if known_name(name) not in known:
        close = get_close_matches(name, known, 3, 0.4)
        meant = f"use {' or '.join(close)}" if close else f"use {SCHEDULER_DEFAULT!r}"
        cure = f"{meant}; short names are {', '.join(SHORT_NAMES)}"
        raise InputError("scheduler", name, "it is none of the general schedulers of diffusers", cure)


def _check_images(family: Family, request: SampleRequest) -> None:
    for index, image in enumerate(request.images):
        check_image(f"images[{index}]", image)
    if request.last_image is not None:
        check_image("last_image", request.last_image)
        if not family.last_image:
            reason = f"{family.name} has no last frame to be given"
            raise InputError("last_image", "given", reason, "leave last_image (--last-image) out")
    if not 0.0 < request.strength <= 1.0:
        raise InputError("strength", request.strength, "it must be above 0 and at most 1", "1 starts from noise")
    count = len(request.images)
    check_references_of_clip(family, request)
    if family.own_strength is not None and count and request.strength >= 1.0:
        _check_steps_left(family, request, family.own_strength)
    if repaints(family, request) or clip_form(family, request):
        if request.strength < 1.0:
            _check_steps_left(family, request, request.strength)
    elif request.strength < 1.0:
        _check_image_to_image(family, request)
    elif family.images == "none" and count and mask_of(request) is None:
        other = "set strength below 1 to start from it" if family.image_to_image else "choose an edit model"
        cure = f"{other}, or leave images (--image) out"
        raise InputError("images", f"{count} image(s)", f"{family.name} is a text-only model", cure)
    elif family.images == "required" and count < family.min_images and not keyframes_of(request):
        cure = f"give {'one' if family.min_images == 1 else 'them'} in images (--image)"
        raise InputError("images", count or "none", f"{family.name} works on {family.pictures}", cure)
    elif count > (most := max(1, family.max_images)):
        raise InputError("images", f"{count} images", f"{family.name} takes at most {most}", "leave the others out")
    else:
        check_references(family, request)


def _check_image_to_image(family: Family, request: SampleRequest) -> None:
    if not family.image_to_image:
        raise InputError("strength", request.strength, f"{family.name} has no image-to-image form", "use 1")
    if not request.images and request.latent is None:
        cure = "give a picture in images (--image) or a latent, or set strength to 1"
        raise InputError("strength", request.strength, "below 1 there must be something to start from", cure)
    _check_steps_left(family, request, request.strength)
    if len(request.images) > 1:
        cure = "leave the others out, or run it once for each"
        raise InputError("images", f"{len(request.images)} images", "with a strength a run starts from one", cure)
    if request.images and request.latent is not None:
        reason = "the latent is what the run starts from"
        raise InputError("images", "1 image(s)", reason, "leave images (--image) out, or the latent")
    if request.latent is not None:
        from .latents import check_latent, check_start

        if not family.known:
            reason = f"how {family.name} lays its latents out is not known here"
            raise InputError("latent", "given", reason, "give a picture in images (--image) instead")
        check_latent(request.latent, family)
        check_start(family, request)


def _check_steps_left(family: Family, request: SampleRequest, strength: float) -> None:
    """A run that starts from a picture takes that part of the steps."""
    steps = request.steps or family.steps
    if int(steps * strength) < 1:
        cure = f"use at least {math.ceil(100 / steps) / 100:g} or more steps"
        raise InputError("strength", strength, f"of {steps} steps, none would be left", cure)


def _size(family: Family, request: SampleRequest) -> tuple[int | None, int | None]:
    """Width and height in pixels: as asked, else the latent's, else the first image's aspect at the family's area.

    None where that is left to the pipeline.
    """
    width, height = family.width, family.height
    multiple = family.size_multiple
    if request.latent is not None and request.latent.ndim >= 4 and family.known:
        height, width = (edge * family.latent_stride for edge in request.latent.shape[-2:])
    elif not family.width or not family.height:
        return request.width, request.height
    elif request.images or (clips := sized_clips(family, request)):
        first = request.images[0] if request.images else next(iter(clips.values())).frames[0]
        rows, columns = first.shape[:2]
        scale = math.sqrt(family.width * family.height / (rows * columns))
        width, height = (max(1, round(edge * scale / multiple)) * multiple for edge in (columns, rows))
    clip = lambda edge: min(max(edge // multiple, 1) * multiple, family.max_size // multiple * multiple)
    return request.width or clip(width), request.height or clip(height)
