"""A control picture: the form of a pipeline that takes it, what is refused, and what a call is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..classes.forms import class_of
from .controls.modes import check_modes, check_own_modes, is_union, with_modes
from .controls.several import annotation, check_several
from .kinds import ControlCondition, ControlNetKey
from .pictures import shape_of
from .taking import call_takes, component_classes, modular_class

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

MOST_STRENGTH = 10.0
_WANTED: dict[str, set[str]] = {"Img2Img": {"image", "strength"}, "Inpaint": {"image", "mask_image", "strength"}}
"""Task -> what a form for it takes."""
_SAME = (
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
    "block_out_channels",
    "joint_attention_dim",
    "pooled_projection_dim",
    "attention_head_dim",
    "num_attention_heads",
    "in_channels",
    "dim",
)
"""Entries of a control model's configuration that are those of the denoiser it was made for."""


def controls_of(request: SampleRequest) -> list[ControlCondition]:
    """The control pictures of a request, in their order."""
    return [condition for condition in request.conditions if isinstance(condition, ControlCondition)]


def control_models(request: SampleRequest) -> list[ControlNetKey]:
    """The control models among them."""
    return [condition.model for condition in controls_of(request) if condition.model is not None]


def control_form(family: Family, task: str = "", union: bool = False) -> str:
    """The class around the same models that takes a control model, "" where there is none.

    Args:
        task: "" from text, "Img2Img" from a picture with a strength, "Inpaint" with a mask.
        union: one for the control models that have classes of their own, where this model has such classes.
    """
    import diffusers

    pipeline_class = class_of(family)
    if pipeline_class is None:
        return ""
    wanted = _WANTED.get(task, set())
    if modular_class(pipeline_class.__name__) is not None:
        name = pipeline_class.__name__
        itself = bool(component_classes(name, "controlnet")) and wanted | {"control_image"} <= set(call_takes(name))
        return name if itself else ""
    start = pipeline_class.__name__.removesuffix("Pipeline")
    kind = "Union" if union and hasattr(diffusers, f"{start}ControlNetUnionPipeline") else ""
    name = f"{start}ControlNet{kind}{task}Pipeline"
    form = getattr(diffusers, name, None)
    if not isinstance(form, type):
        return ""
    # Z-Image's inpaint form has no strength: its control model reads mask and picture.
    return name if wanted <= set(call_takes(name)) else ""


def accepted_models(form: str) -> tuple[str, ...]:
    """Names of the control model classes that a form takes, by its own signature or its blocks."""
    if own := component_classes(form, "controlnet"):
        return own
    names = {
        word.strip("'>").rsplit(".", 1)[-1] for word in annotation(form).replace("[", " ").replace("]", " ").split()
    }
    return tuple(sorted(name for name in names if name.endswith("Model") and "Multi" not in name))


def check_controls(family: Family, request: SampleRequest, masked: bool, repainted: bool) -> list[str]:
    """Notes on what becomes of the control pictures; [] without one.

    Args:
        masked: part of a picture or of a latent is kept. `repainted`: by an inpaint class.

    Raises:
        InputError: this model takes none, or a control model of another kind.
    """
    controls = controls_of(request)
    notes = [note for control in controls for note in _check_values(control)]
    models = control_models(request)
    if not controls:
        return []
    if not models:
        return notes + _check_own_control(family, controls)
    if len(models) < len(controls):
        raise InputError("controlnet", "none", "one of the control pictures has no control model", "give each its own")
    return notes + _check_form(family, request, controls, masked, repainted)


def without_idle(family: Family, request: SampleRequest) -> tuple[SampleRequest, list[str]]:
    """The request without the control pictures whose strength for a control model is 0, and a note on each.

    Those of Flux and Qwen-Image would change the result all the same: their forms draw random numbers of the run to
    encode the picture. A class with a control model of its own keeps its picture.

    Raises:
        InputError: the other values of one make no sense.
    """
    notes, kept = [], list(request.conditions)
    for control in () if "control_image" in family.required else controls_of(request):
        if control.model is not None and control.strength == 0.0:
            _check_values(control)
            kept.remove(control)
            notes.append(f"control_image for {control.model.shown} left out: control strength is 0.")
    return (replace(request, conditions=tuple(kept)), notes) if notes else (request, [])


def _check_values(control: ControlCondition) -> list[str]:
    """A note where only the first of several pictures is used. Raises InputError for values that make no sense."""
    shape = shape_of("control_image", control.image, "a control picture is [batch, height, width, 3 or 4]")
    if not 0.0 <= control.strength <= MOST_STRENGTH:
        reason = f"it must be between 0 and {MOST_STRENGTH:g}"
        raise InputError("control strength", control.strength, reason, "1 is as it was trained")
    if not 0.0 <= control.start < control.end <= 1.0:
        reason = "start and end are shares of the steps, 0 <= start < end <= 1"
        raise InputError("control start", f"{control.start:g} to {control.end:g}", reason, "use 0 and 1")
    return [f"control_image: the first of {shape[0]} is used."] if shape[0] > 1 else []


def _check_own_control(family: Family, controls: list[ControlCondition]) -> list[str]:
    if "control_image" not in family.required:
        if not control_form(family):
            reason = f"{family.name} takes none, neither by itself nor with a control model"
            raise InputError("control_image", "given", reason, "leave the control picture out")
        cure = "give one: Load ControlNet (Diffusers), or --controlnet"
        raise InputError("controlnet", "none", f"{family.name} takes a control picture with a control model", cure)
    if len(controls) != family.own_controls:
        each = f"{family.own_controls}, one for each of its control models" if family.own_controls > 1 else "one"
        raise InputError("control_image", f"{len(controls)} picture(s)", f"{family.name} takes {each}", "give as many")
    takes = call_takes(family.classes[-1])
    check_own_modes(family.classes[-1], controls)
    changed = {
        "controlnet_conditioning_scale": ("strength", controls[0].strength != 1.0),
        "control_guidance_start": ("start", controls[0].start != 0.0),
        "control_guidance_end": ("end", controls[0].end != 1.0),
        "control_mode": ("mode", controls[0].mode is not None),
    }
    return [
        f"control {name} ignored: {family.name} has none."
        for argument, (name, asked) in changed.items()
        if asked and argument not in takes
    ]


def _check_form(
    family: Family, request: SampleRequest, controls: list[ControlCondition], masked: bool, repainted: bool
) -> list[str]:
    union = is_union(controls)
    plain = control_form(family, union=union)
    models = control_models(request)
    name = models[0].shown
    if not plain:
        reason = f"{family.name} has no form that takes a control model"
        raise InputError("controlnet", name, reason, "leave the control picture out")
    for model in models:
        if model.class_name not in accepted_models(plain):
            if model.class_name in (one_kind := accepted_models(control_form(family))):
                reason = "a run takes control models of one kind, and another one of this run is a ControlNet Union"
                raise InputError("controlnet", model.shown, reason, "leave one kind out")
            wanted = " or ".join(one_kind)
            reason = f"it is a {model.class_name}, made for another kind of model: {family.name} takes a {wanted}"
            raise InputError("controlnet", model.shown, reason, "choose one that was made for this model")
    if request.strength < 1.0 and not repainted and not control_form(family, "Img2Img", union):
        reason = f"{family.name} has no form that takes a control model and starts from a picture"
        raise InputError("strength", request.strength, reason, "use 1")
    if request.images and not masked and request.strength >= 1.0:
        reason = f"with a control model {family.name} takes no pictures beside it"
        raise InputError(
            "images", f"{len(request.images)} image(s)", reason, "leave images (--image) out, or add a mask"
        )
    check_several(plain, models)
    form = control_form_of(family, request, repainted)
    check_modes(controls, form, call_takes(form), request.batch)
    if "control_guidance_start" not in call_takes(form):
        if all((control.start, control.end) == (0.0, 1.0) for control in controls):
            return []
        return [f"control start and end ignored: {form} has none, and holds to the control picture in every step."]
    for control in controls:
        acts, steps = acting_steps(form, family, request, control)
        if not acts:
            between = f"{control.start:g} to {control.end:g}"
            reason = f"of {steps} steps none lies between start and end, so the control model would do nothing"
            cure = f"set start and end at least {math.ceil(100 / steps) / 100:g} apart, or use more steps"
            raise InputError("control start and end", between, reason, cure)
    return []


def control_form_of(family: Family, request: SampleRequest, repainted: bool) -> str:
    """The class that takes the control models of this request.

    Args:
        repainted: an inpaint class keeps to the request's mask.
    """
    task = "Inpaint" if repainted else "Img2Img" if request.strength < 1.0 else ""
    return control_form(family, task, is_union(controls_of(request)))


def acting_steps(form: str, family: Family, request: SampleRequest, control: ControlCondition) -> tuple[int, int]:
    """(steps in which a control model acts, steps of the run), as diffusers counts both."""
    import diffusers

    steps = request.steps or family.steps
    cut = getattr(getattr(diffusers, form), "get_timesteps", None)
    if cut is not None and request.strength < 1.0:
        alone = SimpleNamespace(scheduler=SimpleNamespace(timesteps=range(steps), order=1))
        steps = len(cut(alone, steps, request.strength, None)[0])
    if "control_guidance_start" not in call_takes(form):
        return steps, steps
    return sum(index / steps >= control.start and (index + 1) / steps <= control.end for index in range(steps)), steps


def check_fits(key: ControlNetKey, held: Mapping[str, Any], denoiser: Mapping[str, Any], name: str) -> None:
    """Raise InputError for a control model whose layers are not those of the denoiser.

    Args:
        held: configuration of the control model; `denoiser`: of the model it is to steer.
        name: the pipeline, in words.
    """
    for entry in _SAME:
        ours, theirs = held.get(entry), denoiser.get(entry)
        ours, theirs = (list(value) if isinstance(value, list | tuple) else value for value in (ours, theirs))
        if ours is not None and theirs is not None and ours != theirs:
            reason = f"it was made for another model: its {entry} is {ours}, that of {name} is {theirs}"
            raise InputError("controlnet", key.shown, reason, "choose one that was made for this model")


def control_arguments(form: str, request: SampleRequest, to_picture: Any) -> dict[str, Any]:
    """What the call of a control form is given for its control pictures.

    Args:
        to_picture: [H, W, C] to a picture of Pillow's.
    """
    controls = controls_of(request)
    if not controls:
        return {}
    takes = call_takes(form)
    name = "control_image" if "control_image" in takes else "image"
    pictures = [to_picture(control.image[0]) for control in controls]
    values = {
        name: pictures,
        "controlnet_conditioning_scale": [float(control.strength) for control in controls],
        "control_guidance_start": [float(control.start) for control in controls],
        "control_guidance_end": [float(control.end) for control in controls],
    }
    return with_modes(values, controls, form, takes, request.batch)


def described(family: Family, request: SampleRequest, repainted: bool) -> list[str]:
    """The control models of a request, for the report."""
    found = []
    for control in controls_of(request):
        if control.model is not None:
            form = control_form_of(family, request, repainted)
            acts, steps = acting_steps(form, family, request, control)
            said = f"{control.model.shown} {control.strength:g}"
            if (control.start, control.end) == (0.0, 1.0) or "control_guidance_start" not in call_takes(form):
                found.append(f"{said}, 0 to 1 of the steps")
            else:
                found.append(f"{said}, {control.start:g} to {control.end:g} of the steps, {acts} of {steps}")
    return found
