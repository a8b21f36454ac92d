"""Which class is called for a request: the pipeline's own, or a form of it for what the request gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clips import clip_form, clips_of
from .control import control_form_of, control_models
from .keyframes import keyframe_form, keyframes_of
from .kinds import REFERENCE
from .masks import repaints

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest


def form_of(family: Family, request: SampleRequest) -> str:
    """Name of the class that is called instead of the pipeline's own, "" for that."""
    if form := repaints(family, request):
        return form
    if keyframes_of(request) and REFERENCE not in clips_of(request):  # the class that takes those takes both
        return keyframe_form(family)
    if form := clip_form(family, request):
        return form
    if control_models(request):
        return control_form_of(family, request, False)
    with_picture = family.image_to_video if request.images else ""
    return family.image_to_image if request.strength < 1.0 else with_picture
