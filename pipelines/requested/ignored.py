"""What of a request does nothing for a family, and what is done that nobody asked for: notes for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...optimizations.components import is_modular_class
from ..classes.forms import class_of
from ..conditions.arguments.idle import takes_negative
from ..conditions.forms import form_of
from ..conditions.masks import blends
from ..conditions.taking import call_takes

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest


def ignored_notes(family: Family, request: SampleRequest, guidance: float | None) -> list[str]:
    """Notes on what of a request does nothing.

    Args:
        guidance: of the run.
    """
    notes = []
    if request.prompt.strip() and not family.prompt:
        notes.append(f"prompt ignored: {family.name} takes none.")
    negative = request.negative_prompt if request.positive is None else ""  # else it has been said
    if negative and not (family.negative_prompt or takes_negative(family, request)):
        notes.append(f"negative_prompt ignored: {family.name} has none.")
    elif negative and family.negative_prompt and guidance is not None and guidance <= family.negative_above:
        notes.append(f"negative_prompt ignored: guidance = {guidance:g} switches it off.")
    if request.guidance is not None and not family.guidance_argument:
        notes.append(f"guidance ignored: {family.name} has no guidance scale.")
    if request.guidance_2 is not None and not family.second_guidance:
        notes.append(f"guidance_2 ignored: {family.name} has no second expert.")
    elif request.guidance_2 not in (None, guidance) and guidance is not None and _switches_both_off(family, guidance):
        notes.append(f"guidance_2 ignored: guidance = {guidance:g} switches it off for both experts.")
    if request.frame_rate is not None and not family.video:
        notes.append(f"frame_rate ignored: {family.name} makes single images.")
    length, form = request.max_sequence_length, form_of(family, request) or next(reversed(family.classes), "")
    if length is not None and request.positive is not None:
        notes.append("max_sequence_length ignored: the texts are encoded already.")
    elif length is not None and (takes := call_takes(form)) and "max_sequence_length" not in takes:
        notes.append(f"max_sequence_length ignored: {form} reads as much of a prompt as its text encoders do.")
    if request.latent is not None and request.strength >= 1.0 and not blends(family, request):
        kept = " but for its size" if family.known else ""
        notes.append(f"latent ignored{kept}: strength = 1 starts from noise.")
    return notes


def _switches_both_off(family: Family, guidance: float) -> bool:
    """Whether the first expert's guidance decides alone if there is any; modular pipelines have one for each."""
    pipeline_class = class_of(family)
    return guidance <= 1.0 and pipeline_class is not None and not is_modular_class(pipeline_class)


def assumed_notes(family: Family, request: SampleRequest) -> list[str]:
    """What is done that nobody asked for: the pipeline's own, or a guess."""
    if family.own_strength is not None and request.images and request.strength >= 1.0:
        return [f"strength: {family.name}'s own {family.own_strength:g}; a value below 1 takes its place."]
    if family.steps_less:
        steps = request.steps or family.steps
        return [f"steps: {family.name} makes {steps - family.steps_less} evaluations of {steps} steps."]
    if family.video and family.frame_rate_assumed and request.frame_rate is None:
        rate = f"{family.frame_rate:g}"
        return [f"{rate} frames per second assumed: {family.name} does not say its own; set frame_rate if you know it."]
    return []
