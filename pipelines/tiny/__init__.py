"""The embedded tiny pipelines: real architectures a few layers deep, trained or random. Nothing here decodes."""

from .build import PIPELINE_CLASSES, TINY_FAMILIES, TINY_SOUND_FAMILIES, build, identity, save
from .loras import TINY_LORAS, lora_tensors
from .trained import trained_folder

__all__ = [
    "PIPELINE_CLASSES",
    "TINY_FAMILIES",
    "TINY_LORAS",
    "TINY_SOUND_FAMILIES",
    "build",
    "identity",
    "lora_tensors",
    "save",
    "trained_folder",
]
