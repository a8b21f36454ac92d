"""Which classes of LTX-Video and LTX-2 take keyframes and reference clips, and what one of these is to each of them."""

from __future__ import annotations

import importlib
from typing import Any

_TEXT, _PICTURE = "LTX2Pipeline", "LTX2ImageToVideoPipeline"
KEYFRAME_FORMS = {
    **dict.fromkeys((_TEXT, _PICTURE), "LTX2ConditionPipeline"),
    **dict.fromkeys(("LTXPipeline", "LTXImageToVideoPipeline"), "LTXConditionPipeline"),
}
"""Class -> the class around the same models that takes keyframes."""
REFERENCE_FORMS = dict.fromkeys((_TEXT, _PICTURE), "LTX2InContextPipeline")
"""Class -> the class around the same models that takes a reference clip."""
EXACT = ("LTXConditionPipeline",)
"""Classes whose keyframes lie at any frame."""
STRIDE = 8
"""Frames of LTX-2 in one latent frame after the first."""

_LTX2 = "diffusers.pipelines.ltx2.pipeline_ltx2_"
_KEYFRAMES = {
    **dict.fromkeys(
        ("LTX2ConditionPipeline", "LTX2InContextPipeline", "LTX2ModularPipeline", "LTX25ModularPipeline"),
        (f"{_LTX2}condition", "LTX2VideoCondition"),
    ),
    "LTXConditionPipeline": ("diffusers.pipelines.ltx.pipeline_ltx_condition", "LTXVideoCondition"),
}
"""Class -> where the class of one of its keyframes is."""
_REFERENCE = (f"{_LTX2}ic_lora", "LTX2ReferenceCondition")
_REFERENCES = {"LTX2HDRPipeline": (f"{_LTX2}hdr_lora", "LTX2HDRReferenceCondition")}
"""Class -> where the class of its reference clips is, if it is not that of the others."""


def keyframe_form(name: str) -> str:
    """The class that takes keyframes in place of the class of that name, itself where it does; "" where none does."""
    return name if name in _KEYFRAMES else KEYFRAME_FORMS.get(name, "")


def keyframe_class(form: str) -> Any:
    """diffusers' class of one keyframe of a class that takes them."""
    return _found(_KEYFRAMES[form])


def reference_class(form: str) -> Any:
    """diffusers' class of one reference clip of a class that takes them."""
    return _found(_REFERENCES.get(form, _REFERENCE))


def _found(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(module), name)
