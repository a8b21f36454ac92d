"""What a pipeline class returns: its outputs' fields, and what it makes where that is neither picture nor sound."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

CLIPS = ("frames", "video", "videos")
PICTURES = ("images", "image", "prediction", "rgb")
SOUNDS = ("audio", "audios", "sound")

_MAKES = {
    "DiffusionGemma": "text",
    "LEditsPP": "edits of a picture that it has to invert first",
    "LLaDA2": "text",
    "RFD4Proteina": "proteins",
    "VisualCloze": "what a grid of example pictures leaves out, and no input here gives such a grid",
}
"""Beginning of a class name -> what it makes, where its outputs' fields say something else, or nothing."""


def makes(pipeline_class: type) -> str:
    """What a class makes instead of pictures, clips or sound, in words; "" for one that makes those."""
    name = pipeline_class.__name__
    told = next((what for beginning, what in _MAKES.items() if name.startswith(beginning)), "")
    if not any("__call__" in vars(each) for each in pipeline_class.__mro__):
        return "nothing by itself: it has no call, but parts that are called one by one"
    names = returned_fields(pipeline_class)
    if told or not names or set(names) & {*CLIPS, *PICTURES, *SOUNDS}:
        return told
    listed = ", ".join(names)
    embeddings = all("embed" in each for each in names)
    return f"embeddings for another pipeline: {listed}" if embeddings else f"no picture, clip or sound, but {listed}"


def makes_sound_alone(pipeline_class: type) -> bool:
    """Whether there is sound in what a class returns, and nothing to be seen."""
    names = set(returned_fields(pipeline_class))
    return bool(names & set(SOUNDS)) and not names & {*CLIPS, *PICTURES}


def returned_fields(pipeline_class: type) -> tuple[str, ...]:
    """Fields of the output classes that the code of `__call__` names; () where it hands on what another one returns."""
    call: Any = inspect.unwrap(pipeline_class.__call__)
    code = getattr(call, "__code__", None)  # a stand-in for a class that cannot be imported has none
    named = [call.__globals__.get(name) for name in code.co_names] if code is not None else []
    outputs = [each for each in named if is_dataclass(each) and issubclass(each, Mapping)]  # type: ignore[arg-type]
    return tuple(dict.fromkeys(field.name for output in outputs for field in fields(output)))
