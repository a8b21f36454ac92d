"""A mask: which class repaints with it, or that latents are blended; what a call is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...optimizations.components import is_modular_class
from ..classes.forms import class_of, inpaint_class
from ..modular.blocks import blocks_of, inputs
from .control import control_form_of, control_models
from .kinds import REFERENCE, MaskCondition, VideoCondition
from .taking import call_takes

if TYPE_CHECKING:
    import torch

    from ..families import Family
    from ..types import SampleRequest

MASK_ARGUMENTS = ("mask_image", "control_mask")
"""Where a mask goes: the first of these that a call has."""
_GIVEN, _LEAVE = "given", "leave the mask out"
_REFERENCE = "image_reference"
"""Argument of some inpaint classes for a second picture, to look at."""


def mask_of(request: SampleRequest) -> MaskCondition | None:
    """The mask of a request. Raises InputError where it has several."""
    found = [condition for condition in request.conditions if isinstance(condition, MaskCondition)]
    if len(found) > 1:
        raise InputError("mask", f"{len(found)} masks", "a run keeps to one", "join them, or leave all but one out")
    return found[0] if found else None


def has_clip(request: SampleRequest) -> bool:
    """Whether a clip comes with the request: the mask then holds for that."""
    return any(isinstance(condition, VideoCondition) for condition in request.conditions)


def inpaint_form(family: Family) -> str:
    """The class that repaints with this family's models: itself where it takes a mask, "" where there is none."""
    pipeline_class = class_of(family)
    if pipeline_class is None:
        return ""
    if is_modular_class(pipeline_class):
        # The base of all modular classes has no blocks; an edit model's bring picture and mask to a megapixel, whatever
        # size is asked for.
        apt = getattr(pipeline_class, "default_blocks_name", None) and family.images != "required"
        takes = inputs(blocks_of(pipeline_class)) if apt else ()
        return pipeline_class.__name__ if {"image", "mask_image"} <= set(takes) else ""
    return inpaint_class(pipeline_class)


def repaints(family: Family, request: SampleRequest) -> str:
    """The class whose call takes the mask of this request; "" where there is no mask, or latents are blended."""
    mask = mask_of(request)
    if mask is None or mask.of_latent or not request.images or has_clip(request):
        return ""
    form = control_form_of(family, request, True) if control_models(request) else inpaint_form(family)
    return "" if form and keeps_nothing(family, request, form) else form


def blends(family: Family, request: SampleRequest) -> bool:
    """Whether the mask is kept to by blending latents after every step, as ComfyUI's samplers do."""
    if mask_of(request) is None or has_clip(request) or repaints(family, request):
        return False
    return not keeps_nothing(family, request, inpaint_form(family))


def keeps_nothing(family: Family, request: SampleRequest, form: str) -> bool:
    """Whether the mask is 1 everywhere, so that the run is the one without a mask: another class would draw other
    noise for it. A class that takes a mask itself runs in any case."""
    mask = mask_of(request)
    if mask is None or set(MASK_ARGUMENTS) & set(family.required) or float(mask.mask.min()) < 1.0:
        return False
    return request.strength >= 1.0 or bool(family.image_to_image)


def check_mask(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the mask; [] without one.

    Raises:
        InputError: it is no mask, there is nothing for it to keep, or this model has no way to keep it.
    """
    condition = mask_of(request)
    if condition is None:
        return []
    if has_clip(request):
        roles = {each.role for each in request.conditions if isinstance(each, VideoCondition)}
        what = "a reference" if roles == {REFERENCE} else "a clip"
        raise InputError("mask", _GIVEN, f"{family.name} takes no mask with {what}", _LEAVE)
    check_values(condition)
    form = repaints(family, request)
    if keeps_nothing(family, request, inpaint_form(family)):
        return ["mask: it is 1 everywhere, so nothing is kept, and the run is the one without a mask."]
    if not form:
        return _check_blending(family, request, condition)
    most = 2 if _REFERENCE in call_takes(form) else 1
    if len(request.images) > most:
        raise InputError(
            "images", f"{len(request.images)} images", f"{form} takes at most {most}", "leave the others out"
        )
    notes = _resized(condition, tuple(request.images[0].shape[:2]), "the picture's")
    notes += _surplus(condition, 1)
    if bool(((condition.mask > 0) & (condition.mask < 1)).any()):
        notes.append(f"mask: {form} keeps a pixel or makes it anew, so 0.5 and above is made anew, and less is kept.")
    return notes


def check_values(condition: MaskCondition) -> list[int]:
    """The shape of a mask. Raises InputError for what is none."""
    shape = list(getattr(condition.mask, "shape", ()))
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            "mask", f"shape {shape}", "a mask is [batch, height, width]", "give a mask, as of a grey picture"
        )
    low, high = float(condition.mask.min()), float(condition.mask.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(
            "mask", f"{low:g} to {high:g}", "a mask is between 0 and 1", "give a mask, as of a grey picture"
        )
    return shape


def _check_blending(family: Family, request: SampleRequest, condition: MaskCondition) -> list[str]:
    if not family.known:
        reason = f"{_no_form(family, request)}, and how it lays its latents out is not known here"
        raise InputError("mask", _GIVEN, reason, _LEAVE)
    if family.images_in_front and request.latent is None:
        cure = f"give the clip that it is for in a Video Condition (--video), or {_LEAVE}"
        raise InputError("mask", _GIVEN, _no_form(family, request), cure)
    if family.images_in_front and request.images:
        cure = "leave images (--image) out, or the mask"
        raise InputError("mask", _GIVEN, f"{family.name} takes no latent to keep a part of beside pictures", cure)
    if request.latent is None and family.video:
        cure = f"{_LEAVE}; in ComfyUI, give the clip's latent with Set Latent Noise Mask"
        raise InputError("mask", _GIVEN, f"{family.name} has no clip to keep a part of", cure)
    if request.latent is None and not request.images:
        cure = "give the picture in images (--image), or leave the mask out"
        raise InputError("mask", _GIVEN, "there is no picture for it to keep", cure)
    if family.layout == "tokens" and request.images:
        reason = f"{family.name} makes the frames after a first frame by themselves, without a mask"
        raise InputError("mask", _GIVEN, reason, "leave images (--image) out, or the mask")
    surplus = _surplus(condition, 0 if family.video else request.batch)
    if request.latent is None:
        return [
            *_resized(condition, tuple(request.images[0].shape[:2]), "the picture's"),
            *surplus,
            f"mask: {_no_form(family, request)}, so the latent is kept outside of the mask after every step.",
        ]
    from ..latents import check_start

    check_start(family, request)
    rows, columns = (edge * family.latent_stride for edge in request.latent.shape[-2:])
    return [*_resized(condition, (rows, columns), "the latent's"), *surplus]


def _no_form(family: Family, request: SampleRequest) -> str:
    beside = " with a control model" if control_models(request) and inpaint_form(family) else ""
    return f"{family.name} has no inpaint form{beside}"


def _surplus(condition: MaskCondition, used: int) -> list[str]:
    """A note on masks that are not used. Those of a clip's frames all are: `used` is 0 for them."""
    count = condition.mask.shape[0] if condition.mask.ndim == 3 else 1
    if not 0 < used < count:
        return []
    return [f"mask: the first of {count} is used." if used == 1 else f"mask: the first {used} of {count} are used."]


def _resized(condition: MaskCondition, size: tuple[int, ...], whose: str) -> list[str]:
    rows, columns = condition.mask.shape[-2:]
    if (rows, columns) == size:
        return []
    return [f"mask: scaled from {columns}x{rows} to {whose} {size[1]}x{size[0]}."]


def scaled(mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A mask [B, H, W] or [H, W] in another size, as ComfyUI scales it: bilinear, without antialiasing."""
    from torch.nn.functional import interpolate

    planes = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return interpolate(planes, size=(rows, columns), mode="bilinear").squeeze(1)


def mask_arguments(
    takes: Mapping[str, Any],
    family: Family,
    request: SampleRequest,
    picture: Any,
    reference: Any,
    *,
    itself: bool,
    as_lists: bool,
) -> dict[str, Any]:
    """What the call of an inpaint form is given of picture, mask and strength.

    Args:
        takes: names that the call has.
        picture: the picture to repaint, as Pillow has it, in the size of the result where that is known.
        reference: another one to look at, or None.
        itself: the pipeline's own class repaints; its own strength holds where none was chosen.
        as_lists: one picture and one mask for each item of the batch.
    """
    from PIL.Image import Resampling, fromarray

    condition = mask_of(request)
    assert condition is not None  # noqa: S101 - the form was chosen for it
    rows, columns = request.images[0].shape[:2]
    pixels = (scaled(condition.mask, rows, columns)[0].cpu() * 255).round().byte().numpy()
    mask = fromarray(pixels, mode="L")
    if mask.size != picture.size:
        mask = mask.resize(picture.size, resample=Resampling.LANCZOS)
    copies = request.batch if as_lists else 1
    name = next((name for name in MASK_ARGUMENTS if name in takes), MASK_ARGUMENTS[0])
    image = family.image_argument if itself else "image"
    given = {image: [picture] * copies, name: [mask] * copies} if copies > 1 else {image: picture, name: mask}
    own = itself and request.strength >= 1.0
    return {**given, "strength": None if own else request.strength, _REFERENCE: reference}
