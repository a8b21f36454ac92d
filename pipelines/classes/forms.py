"""Other classes around the same models: what a text-only pipeline turns into when it is given a picture, or a mask."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..families import Family
from .inputs import missing_inputs

_IMAGE_TO_VIDEO = {
    "LTX2Pipeline": "LTX2ImageToVideoPipeline",
    "SanaVideoPipeline": "SanaImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingPipeline": "SkyReelsV2DiffusionForcingImageToVideoPipeline",
}
"""Class -> the class that starts from a first frame with the very same models, beyond what diffusers itself lists."""


_NO_INPAINT_FORMS = (
    "KandinskyInpaintCombinedPipeline",  # its UNet is another one
    "KandinskyV22InpaintCombinedPipeline",
    "QwenImageEditInpaintPipeline",  # makes a megapixel, whatever size it is asked for
)
"""Inpaint classes that do not stand in for the class that they are listed beside."""


def class_of(family: Family) -> type | None:
    """The diffusers class of a family, None where the installed release has none of its name."""
    import diffusers

    found = getattr(diffusers, family.classes[-1], None) if family.classes else None
    return found if isinstance(found, type) else None


def image_to_image_class(pipeline_class: type) -> str:
    """Name of the class that starts from a picture with a strength, "" where there is none."""
    found = _listed(pipeline_class, "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING") or _named(pipeline_class, "Img2Img")
    return found if _takes(found, "image", "strength") else ""


def image_to_video_class(pipeline_class: type) -> str:
    """Name of the class that takes a first frame, "" where there is none with the same models."""
    name = pipeline_class.__name__
    found = _IMAGE_TO_VIDEO.get(name) or _listed(pipeline_class, "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING")
    return found if found != name and _takes(found, "image") else ""


def inpaint_class(pipeline_class: type) -> str:
    """Name of the class that repaints part of a picture with the same models, "" where there is none.

    A class that takes a mask itself is its own.
    """
    name = pipeline_class.__name__
    if _takes(name, "mask_image") or _takes(name, "control_mask"):
        return name
    found = _listed(pipeline_class, "AUTO_INPAINT_PIPELINES_MAPPING") or _named(pipeline_class, "Inpaint")
    if found in _NO_INPAINT_FORMS or not _takes(found, "image", "mask_image"):
        return ""
    return found if set(_missing(found)) <= {"mask_image"} else ""


def video_to_video_class(pipeline_class: type) -> str:
    """Name of the class that starts from a clip with the same models, "" where there is none."""
    found = _listed(pipeline_class, "AUTO_VIDEO2VIDEO_PIPELINES_MAPPING") or _named(pipeline_class, "VideoToVideo")
    return found if _takes(found, "video") and set(_missing(found)) <= {"video"} else ""


def around(pipeline: Any, form: str, **further: Any) -> Any:
    """A pipeline of class `form` around the models of `pipeline`: it loads nothing and is thrown away after a run.

    Args:
        further: parts that `pipeline` has not.
    """
    import diffusers

    from ...optimizations.components import unet_with_a_size

    form_class = getattr(diffusers, form)
    wanted = inspect.signature(form_class.__init__).parameters
    settings = {name: value for name, value in pipeline.config.items() if name in wanted and not name.startswith("_")}
    parts = {name: part for name, part in pipeline.components.items() if name in wanted}
    with unet_with_a_size(parts.get("unet")):
        return form_class(**settings | parts | further)


def _listed(pipeline_class: type, mapping: str) -> str:
    """The class for the other task that diffusers lists under the same key."""
    from diffusers.pipelines import auto_pipeline

    name = pipeline_class.__name__
    for task in ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AUTO_TEXT2VIDEO_PIPELINES_MAPPING"):
        for key, listed in getattr(auto_pipeline, task, {}).items():
            if listed.__name__ == name:
                other = getattr(auto_pipeline, mapping, {}).get(key)
                return other.__name__ if other is not None and other.__name__ != name else ""
    return ""


def _named(pipeline_class: type, task: str) -> str:
    """The class of the same name with the task before "Pipeline", around the same components."""
    import diffusers

    name = pipeline_class.__name__.removesuffix("Pipeline") + f"{task}Pipeline"
    other = getattr(diffusers, name, None)
    if not isinstance(other, type):
        return ""
    return name if _components(other) <= _components(pipeline_class) else ""


def _components(pipeline_class: type) -> set[str]:
    parameters = inspect.signature(pipeline_class).parameters.values()
    return {item.name for item in parameters if item.default is item.empty}


def _missing(form: str) -> tuple[str, ...]:
    import diffusers

    return missing_inputs(getattr(diffusers, form))


def call_parameters(form: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of the call of diffusers' class of that name; none where there is no such class."""
    import diffusers

    form_class = getattr(diffusers, form, None) if form else None
    return inspect.signature(form_class.__call__).parameters if isinstance(form_class, type) else {}


def _takes(form: str, *arguments: str) -> bool:
    return bool(form) and set(arguments) <= set(call_parameters(form))
