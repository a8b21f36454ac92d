"""A family for a class that is not in the table: what its call says about itself, its arguments and their defaults.

A default of None stays None: what it stands for is the pipeline's to decide, by its models' configuration.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from ..families import MAX_FRAMES, Family
from .forms import image_to_image_class, image_to_video_class
from .frame_rates import ASSUMED, frame_rate_of
from .guidance import guidance_rules
from .inputs import LISTS, READS_ALPHA, missing_inputs, picture_argument, picture_use
from .outputs import makes, makes_sound_alone
from .scheduling import scheduler_use

RATE_ARGUMENTS = ("frame_rate", "fps", "target_fps")
FRAMES_ARGUMENTS = ("num_frames", "frames", "video_length")
MOST_PICTURES = 8
"""Given to a class that takes a list; its model may have a limit of its own."""


# wan/pipeline_wan_vace.py: latents and decode as Wan's own, after the frames of the reference pictures
LATENTS: dict[str, dict[str, Any]] = {
    "WanVACEPipeline": {
        "layout": "video",
        "latent_channels": 16,
        "temporal_stride": 4,
        "comfy_format": "Wan21",
        "size_multiple": 16,
        "images_in_front": True,
    },
}
"""Class outside the table whose latents are known -> fields of its `Family`."""


def family_from_signature(pipeline_class: type) -> Family:
    """The family of a class that is not in the table."""
    parameters = inspect.signature(pipeline_class.__call__).parameters

    def default(name: str) -> Any:
        value = parameters[name].default if name in parameters else None
        return None if value is inspect.Parameter.empty or isinstance(value, list | tuple) else value

    name = pipeline_class.__name__
    frames = next((item for item in FRAMES_ARGUMENTS if item in parameters), "")
    rate_argument = next((item for item in RATE_ARGUMENTS if item in parameters), "")
    rate = default(rate_argument) or frame_rate_of(name)
    picture = picture_argument(pipeline_class)
    video_form = _form(image_to_video_class(pipeline_class)) if frames and not picture else ""
    use = scheduler_use(pipeline_class)
    family = Family(
        name,
        (name,),
        **guidance_rules(pipeline_class),
        prompt="prompt" in parameters,
        steps=int(default("num_inference_steps") or 28),
        width=int(default("width") or 0),
        height=int(default("height") or 0),
        size_multiple=8,
        video=bool(frames),
        num_frames=int(default(frames) or 0) if frames else 1,
        frame_rate=float(rate or ASSUMED) if frames else None,
        frame_rate_assumed=bool(frames) and not rate,
        rate_argument=rate_argument or "frame_rate",
        frames_argument=frames or "num_frames",
        required=missing_inputs(pipeline_class),
        makes=makes(pipeline_class),
        sound_alone=makes_sound_alone(pipeline_class),
        frame_step=4 if frames and name.startswith("Wan") else 1,
        max_frames=MAX_FRAMES if frames else 1,
        images="optional" if video_form else picture_use(pipeline_class),
        image_argument=picture or "image",
        alpha=name in READS_ALPHA,
        max_images=MOST_PICTURES if picture in LISTS else 1 if picture or video_form else 0,
        last_image="last_image" in parameters,
        timestep_arguments=use.timestep_arguments,
        own_flow_sigmas=use.own_flow_sigmas,
        scheduling=use,
        own_strength=_own_strength(default("strength")) if "image" in parameters else None,
        image_to_image="" if frames else _from_image(pipeline_class),
        image_to_video=video_form,
    )
    return replace(family, **LATENTS.get(name, {}))


def _own_strength(default: Any) -> float | None:
    """A strength of 1 keeps nothing of the picture, or means something else (LTX-Video's conditions)."""
    return float(default) if isinstance(default, int | float) and default < 1 else None


def _from_image(pipeline_class: type) -> str:
    """The class itself where it takes a picture and a strength, else its image-to-image form."""
    parameters = inspect.signature(pipeline_class.__call__).parameters
    itself = "image" in parameters and "strength" in parameters
    return pipeline_class.__name__ if itself else _form(image_to_image_class(pipeline_class))


def _form(name: str) -> str:
    """A form that asks for nothing but a prompt and one picture; "" for one that asks for more."""
    import diffusers

    return name if name and not missing_inputs(getattr(diffusers, name)) else ""
