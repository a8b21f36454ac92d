"""The embedded tiny pipelines: real architectures a few layers deep. Nothing here decodes or loads from disk."""

from .build import ONE_EXPERT, PIPELINE_CLASSES, TINY_FAMILIES, TINY_MODULAR, TINY_SOUND_FAMILIES, build, save
from .controlnets import CONTROLNET_CLASSES, build_controlnet, controlnet_class
from .loras import TINY_LORAS, lora_tensors

__all__ = [
    "CONTROLNET_CLASSES",
    "ONE_EXPERT",
    "PIPELINE_CLASSES",
    "TINY_FAMILIES",
    "TINY_LORAS",
    "TINY_MODULAR",
    "TINY_SOUND_FAMILIES",
    "build",
    "build_controlnet",
    "controlnet_class",
    "lora_tensors",
    "save",
]
