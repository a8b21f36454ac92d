"""The family of a modular pipeline: the entry of its classical form where there is one, and what its blocks say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..classes.frame_rates import ASSUMED, frame_rate_of
from ..classes.guidance import GUIDER
from ..families import MAX_FRAMES, Family
from .blocks import LEAST, default_blocks, guiders, inputs, outputs, running_blocks
from .models import CLASSICAL, MODELS, SCALE

RATE_ARGUMENTS = ("frame_rate", "fps")
_PICTURES = ("image", "images", "reference_images")
_MOST_REFERENCES = 8
_FILLED = ("prompt", *_PICTURES, "num_frames", "num_inference_steps", "width", "height")


def classical_class(pipeline_class: type) -> str:
    """The class of the same model's classical pipeline, where its latents and its rules are the same; "" for none."""
    return CLASSICAL.get(pipeline_class.__name__, "")


def modular_family(pipeline_class: type, classical: Family | None = None) -> Family:
    """The family of a modular pipeline class.

    Args:
        classical: entry of the class that `classical_class` names.
    """
    name = pipeline_class.__name__
    blocks = default_blocks(pipeline_class)
    takes, given = inputs(blocks), outputs(blocks)
    described = _guidance(blocks, takes) | {"batch_by_prompts": False, "empty_negative": None, "unguided": ()}
    described |= {"image_to_image": name if {"image", "strength"} <= set(takes) else "", "image_to_video": ""}
    if classical is not None:
        if described["guidance"] is not None and described["guidance"] > 1.0:
            described["guidance"] = classical.guidance or described["guidance"]
        if described["guidance_argument"] != GUIDER:
            described["guidance"] = classical.guidance
        return replace(classical, classes=(*classical.classes, name), **described)
    video = "videos" in given
    rate_argument = next((item for item in RATE_ARGUMENTS if item in takes), "")
    rate = takes.get(rate_argument) or frame_rate_of(name)
    picture = next((item for item in _PICTURES if item in takes), "")
    family = Family(
        name,
        (name,),
        prompt="prompt" in takes,
        steps=int(takes.get("num_inference_steps") or 28),
        width=int(takes.get("width") or 0),
        height=int(takes.get("height") or 0),
        video=video,
        num_frames=int(takes.get("num_frames") or 0) if video else 1,
        frame_rate=float(rate or ASSUMED) if video else None,
        frame_rate_assumed=video and not rate,
        rate_argument=rate_argument or "frame_rate",
        required=_required(blocks),
        makes=_makes(given),
        max_frames=MAX_FRAMES if video else 1,
        images=_picture_use(blocks, picture),
        image_argument=picture or "image",
        max_images=_MOST_REFERENCES if picture == "reference_images" else 1 if picture else 0,
        last_image="last_image" in takes,
        sound=False,
    )
    return replace(family, **described | MODELS.get(name, {}))


def _guidance(blocks: Any, takes: Mapping[str, Any]) -> dict[str, Any]:
    """How the blocks are guided, as fields of `Family`."""
    found = guiders(blocks)
    config = found.get(GUIDER, {})
    argument = SCALE if SCALE in takes else GUIDER if GUIDER in found else ""
    own = takes.get(SCALE) if argument == SCALE else config.get(SCALE)
    off = 0.0 if config.get("use_original_formulation") else 1.0
    if config.get("enabled") is False:
        own = off
    return {
        "guidance_argument": argument,
        "guidance": float(own) if isinstance(own, int | float) else None,
        "guidance_2": found.get(f"{GUIDER}_2", {}).get(SCALE),
        "second_guidance": f"{GUIDER}_2" in found,
        "negative_prompt": "negative_prompt" in takes,
        "negative_above": off,
    }


def _required(blocks: Any) -> tuple[str, ...]:
    """Inputs that a call fails without and that no request can fill."""
    running = running_blocks(blocks, LEAST)
    first = [item for item in running.inputs if item.name is not None and item.required and item.default is None]
    return tuple(item.name for item in first if item.name not in _FILLED)


def _picture_use(blocks: Any, argument: str) -> str:
    """ "none", "optional" or "required", as `Family.images`."""
    if not argument:
        return "none"
    needed = any(item.required for item in blocks.inputs if item.name == argument)
    workflows = getattr(blocks, "_workflow_map", None) or {}
    from_text = not workflows or any(name.startswith(("text2", "t2")) for name in workflows)
    return "required" if needed or not from_text else "optional"


def _makes(given: tuple[str, ...]) -> str:
    return (
        "" if {"images", "videos", "audio", "audios", "sound"} & set(given) else f"no picture, but {', '.join(given)}"
    )
