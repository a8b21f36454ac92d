"""The embedded tiny pipelines: real architectures a few layers deep. Nothing here decodes or loads from disk."""

from .build import PIPELINE_CLASSES, TINY_FAMILIES, TINY_SOUND_FAMILIES, build, save

__all__ = ["PIPELINE_CLASSES", "TINY_FAMILIES", "TINY_SOUND_FAMILIES", "build", "save"]
