"""The embedded tiny pipelines: real architectures a few layers deep, trained or random. Nothing here decodes."""

from .build import (
    ONE_EXPERT,
    PIPELINE_CLASSES,
    TINY_FAMILIES,
    TINY_MODULAR,
    TINY_SOUND_FAMILIES,
    build,
    identity,
    save,
)
from .controlnets import CONTROLNET_CLASSES, build_controlnet, controlnet_class
from .image_prompts import IMAGE_PROMPT_FAMILIES, image_prompt_file
from .loras import TINY_LORAS, lora_tensors
from .trained import trained_folder

__all__ = [
    "CONTROLNET_CLASSES",
    "IMAGE_PROMPT_FAMILIES",
    "ONE_EXPERT",
    "PIPELINE_CLASSES",
    "TINY_FAMILIES",
    "TINY_LORAS",
    "TINY_MODULAR",
    "TINY_SOUND_FAMILIES",
    "build",
    "build_controlnet",
    "controlnet_class",
    "identity",
    "image_prompt_file",
    "lora_tensors",
    "save",
    "trained_folder",
]
