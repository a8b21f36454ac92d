"""What a pipeline class must be given, whatever its signature calls optional, and which argument takes the picture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

PICTURE_ARGUMENTS = ("image", "images", "input_images", "control_image", "cond_image", "reference_images")
"""Where the pictures of a request go: the first of these that a call has."""
LISTS = ("images", "input_images", "reference_images")
"""Those of them that take several."""

READS_ALPHA = ("QwenImageLayeredPipeline", "QwenImage21Pipeline")
"""Classes whose VAE encodes four channels."""

_NEEDS_PICTURE = re.compile(
    r"Img2Img|ImageToImage|I2I|Image(To|2)Video|I2V|(VideoTo|Video2)World|Inpaint|Fill|Edit|ControlNet|Control|Adapter"
    r"|Upscale|SuperResolution|Depth2|Pix2Pix|Variation|Refiner|CycleDiffusion|VisualCloze|StableVideoDiffusion"
)
_NEEDS_VIDEO = re.compile(r"Video(To|2)Video|V2V|LatentUpsample")
_PICTURE_IS_OPTIONAL = ("BriaFiboEditPipeline", "JoyImageEditPipeline", "LTXI2VLongMultiPromptPipeline")
"""Edit models that make a picture from the text alone when there is none."""
_NEVER_OPTIONAL = (
    "conditioning_frames",
    "control_image",
    "control_mask",
    "control_video",
    "mask_image",
    "original_image",
    "task_prompt",
)
"""Arguments whose default of None makes every class that has them fail."""
_FURTHER = {
    "LTX2DFRTemporalRefinePipeline": ("latents", "keyframes_latents", "keyframe_positions", "audio_latents"),
    "StableDiffusionDiffEditPipeline": ("image_latents",),
    "StableDiffusionGLIGENPipeline": ("gligen_phrases", "gligen_boxes"),
    "StableDiffusionGLIGENTextImagePipeline": ("gligen_phrases", "gligen_boxes"),
    "StableDiffusionPix2PixZeroPipeline": ("source_embeds", "target_embeds"),
}


def picture_argument(pipeline_class: type) -> str:
    """The call argument that takes a request's pictures, "" where there is none."""
    parameters = inspect.signature(pipeline_class.__call__).parameters
    return next((name for name in PICTURE_ARGUMENTS if name in parameters), "")


def picture_use(pipeline_class: type) -> str:
    """ "none", "optional" or "required", as `Family.images`."""
    argument = picture_argument(pipeline_class)
    if not argument:
        return "none"
    name = pipeline_class.__name__
    parameter = inspect.signature(pipeline_class.__call__).parameters[argument]
    if parameter.default is parameter.empty:
        return "required"
    if name in _PICTURE_IS_OPTIONAL:
        return "optional"
    needed = argument in _NEVER_OPTIONAL or _NEEDS_PICTURE.search(name) or _is_for_pictures_alone(name)
    return "required" if needed else "optional"


def missing_inputs(pipeline_class: type, text_arguments: tuple[str, ...] = ("prompt",)) -> tuple[str, ...]:
    """The arguments that a call must be given and no request can fill, in the order of the signature."""
    name = pipeline_class.__name__
    parameters = inspect.signature(pipeline_class.__call__).parameters
    filled = ("self", *text_arguments, picture_argument(pipeline_class))
    return tuple(item for item in parameters if item not in filled and _is_needed(name, item, parameters))


def _is_needed(name: str, argument: str, parameters: Mapping[str, inspect.Parameter]) -> bool:
    parameter = parameters[argument]
    if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        return False
    if parameter.default is parameter.empty:
        return True
    if parameter.default is not None:
        return False
    if argument == "video":
        return _NEEDS_VIDEO.search(name) is not None
    return argument in _FURTHER.get(name, ()) or argument in _NEVER_OPTIONAL


def _is_for_pictures_alone(name: str) -> bool:
    """Whether diffusers lists a class for image-to-image and inpainting, and not for text to image."""
    from diffusers.pipelines import auto_pipeline

    def listed(task: str) -> bool:
        mapping = getattr(auto_pipeline, f"AUTO_{task}_PIPELINES_MAPPING", {})
        return any(found.__name__ == name for found in mapping.values())

    return (listed("IMAGE2IMAGE") or listed("INPAINT")) and not listed("TEXT2IMAGE")
