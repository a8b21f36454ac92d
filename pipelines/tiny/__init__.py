"""The embedded tiny pipelines: real architectures a few layers deep. Nothing here decodes or loads from disk."""

from .build import PIPELINE_CLASSES, TINY_FAMILIES, TINY_SOUND_FAMILIES, build, save
from .loras import TINY_LORAS, lora_tensors

__all__ = ["PIPELINE_CLASSES", "TINY_FAMILIES", "TINY_LORAS", "TINY_SOUND_FAMILIES", "build", "lora_tensors", "save"]
