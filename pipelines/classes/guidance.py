"""Which argument of a pipeline class is its guidance, and when its negative prompt acts.

Several classes have two: a `guidance_scale` that a distilled model takes as an input, and a `true_cfg_scale` that runs
the model twice. What is on by default is what the model was made for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

GUIDER = "guider"
"""The component that takes the guidance scale, in the place of an argument, where a pipeline has one."""
_MAIN = {
    "StableVideoDiffusionPipeline": "max_guidance_scale",
    "StableCascadeCombinedPipeline": "prior_guidance_scale",
    "WuerstchenCombinedPipeline": "prior_guidance_scale",
    "UnCLIPPipeline": "decoder_guidance_scale",
    "UnCLIPImageVariationPipeline": "decoder_guidance_scale",
    "HunyuanImagePipeline": "distilled_guidance_scale",
    "HunyuanImageRefinerPipeline": "distilled_guidance_scale",
    "DreamLiteMobilePipeline": "",
}
"""Class -> its guidance argument, where it has another name or does nothing. The last frame of Stable Video Diffusion
is guided most, the prior of Stable Cascade follows the prompt (its decoder runs unguided), unCLIP's decoder paints the
picture. DreamLite's mobile model was distilled without one, and only warns."""


class OwnSchedule(NamedTuple):
    """A guidance for each step, which a class has by default. Attributes: argument, which has to be None where a single
    guidance is given beside it; steps that it is made for."""

    argument: str
    steps: int


OWN_SCHEDULES = dict.fromkeys(("Ideogram4Pipeline", "Ideogram4ModularPipeline"), OwnSchedule("guidance_schedule", 48))
"""Class -> its own schedule of guidances."""


def guidance_argument(pipeline_class: type) -> str:
    """The call argument that takes the guidance scale, `GUIDER` or "" where there is none."""
    if pipeline_class.__name__ in _MAIN:
        return _MAIN[pipeline_class.__name__]
    parameters = inspect.signature(pipeline_class.__call__).parameters
    if "true_cfg_scale" in parameters and ("guidance_scale" not in parameters or _cfg_is_on(parameters)):
        return "true_cfg_scale"
    if "guidance_scale" in parameters:
        return "guidance_scale"
    return GUIDER if GUIDER in inspect.signature(pipeline_class).parameters else ""


def _cfg_is_on(parameters: Any) -> bool:
    default = parameters["true_cfg_scale"].default
    return isinstance(default, int | float) and default > 1


def guidance_rules(pipeline_class: type) -> dict[str, Any]:
    """What a class says about guidance, as fields of `Family`."""
    parameters = inspect.signature(pipeline_class.__call__).parameters
    argument = guidance_argument(pipeline_class)
    default = parameters[argument].default if argument in parameters else None
    negative = "negative_prompt" in parameters
    if argument == "guidance_scale" and "true_cfg_scale" in parameters:
        # The negative prompt belongs to the true CFG, which is off; but some only have the argument and never read it.
        negative = negative and hasattr(pipeline_class, "do_classifier_free_guidance")
    # Without one, the guidance of the first does nothing, and EasyAnimate fails.
    empty = " " if argument == "true_cfg_scale" else "" if pipeline_class.__name__.startswith("EasyAnimate") else None
    return {
        "guidance_argument": argument,
        "guidance": float(default) if isinstance(default, int | float) else None,
        "second_guidance": "guidance_scale_2" in parameters,
        "negative_prompt": negative,
        "negative_above": 0.0 if _acts_below_one(pipeline_class) else 1.0,
        "empty_negative": empty,
    }


def _acts_below_one(pipeline_class: type) -> bool:
    """Whether the negative prompt acts with a guidance of 0.5 (Krea 2, Z-Image), as the class itself answers."""
    answer = inspect.getattr_static(pipeline_class, "do_classifier_free_guidance", None)
    if not isinstance(answer, property) or answer.fget is None:
        return False
    try:
        return bool(answer.fget(SimpleNamespace(_guidance_scale=0.5, guidance_scale=0.5)))
    except AttributeError:  # it asks for more than the scale: for a model
        return False


def guidance_of_model(pipeline_class: type, embeds: bool | None, argument: str) -> str:
    """The guidance argument that acts with the model at hand, where that depends on it.

    Args:
        embeds: whether the model takes a guidance scale as an input, as its configuration says; None = it does not say.
        argument: of the class.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters
    if embeds and argument == "true_cfg_scale" and "guidance_scale" in parameters:
        # Distilled Qwen models refuse to run without; SkyReels takes both, and has its own for the other.
        return "guidance_scale" if parameters["guidance_scale"].default is None else argument
    if embeds is False and argument == "guidance_scale":
        if hasattr(pipeline_class, "do_classifier_free_guidance"):
            return argument
        return "true_cfg_scale" if pipeline_class.__name__ == "HunyuanVideoImageToVideoPipeline" else ""
    if embeds is False and argument == "distilled_guidance_scale":
        return GUIDER
    return argument


@contextmanager
def guided(pipeline: Any, argument: str, scale: float | None) -> Iterator[None]:
    """Let the guiders of `pipeline` work with another scale while the block runs, where they are the guidance."""
    names = [name for name in (GUIDER, f"ocr_{GUIDER}") if getattr(pipeline, name, None) is not None]
    originals = {name: getattr(pipeline, name) for name in names} if argument == GUIDER and scale is not None else {}
    for name, original in originals.items():
        setattr(pipeline, name, original.new(guidance_scale=scale))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(pipeline, name, original)
