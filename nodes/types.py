"""The pack's own socket types, each declared once, and what travels through them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakValueDictionary

from comfy_api.latest import io

CATEGORY = "FastDiffusers"

Pipeline = io.Custom("FASTDIFFUSERS_PIPELINE")
"""Carries `pipelines.types.PipelineHandle`: which pipeline, never its weights."""

CompileSettings = io.Custom("FASTDIFFUSERS_COMPILE_SETTINGS")
"""Carries `optimizations.settings.CompileSettings`."""

OptimizationSettings = io.Custom("FASTDIFFUSERS_OPTIMIZATION_SETTINGS")
"""Carries `optimizations.settings.OptimizationSettings`."""

Conditions = io.Custom("FASTDIFFUSERS_CONDITIONS")
"""Carries a tuple of `pipelines.conditions.kinds.Condition`: masks and the like, one node's after the other's."""

ControlNet = io.Custom("FASTDIFFUSERS_CONTROLNET")
"""Carries `pipelines.conditions.kinds.ControlNetKey`: which control model, never its weights."""

ImagePromptModel = io.Custom("FASTDIFFUSERS_IMAGE_PROMPT_MODEL")
"""Carries `pipelines.conditions.kinds.ImagePromptKey`: what reads a picture as a prompt, never its weights."""

Cluster = io.Custom("FASTDIFFUSERS_CLUSTER")
"""Carries `cluster.settings.ClusterSettings`."""

VideoVae = io.Custom("FASTDIFFUSERS_VIDEO_VAE")
"""Carries `VideoVaeHandle`: which video VAE, never its weights."""

Report = io.Custom("FASTDIFFUSERS_REPORT")
"""Carries `report.OptimizationReport`."""


@dataclass(frozen=True, eq=False)
class VideoVaeFile:
    """A checkpoint as it is loaded. Equal ones are one object, and the loaded weights live as long as it does.

    Attributes:
        path: absolute.
        identity: size and change time of the file, so that an edited one is loaded again.
        dtype: "auto", "float32", "bfloat16" or "float16".
    """

    path: str
    identity: str
    dtype: str = "auto"


_files: WeakValueDictionary[tuple[str, str, str], VideoVaeFile] = WeakValueDictionary()
_guard = threading.Lock()


def video_vae_file(path: str, identity: str, dtype: str = "auto") -> VideoVaeFile:
    """Return the one `VideoVaeFile` with these attributes."""
    with _guard:
        return _files.setdefault((path, identity, dtype), VideoVaeFile(path, identity, dtype))


@dataclass(frozen=True)
class VideoVaeHandle:
    """A video VAE as it travels between nodes.

    Attributes:
        file: the checkpoint.
        kernels, cuda_graphs, overlap_tiles, fp16_accumulation, convolution: how it runs, as `vae.VaeSettings` has them.
    """

    file: VideoVaeFile
    kernels: str = "auto"
    cuda_graphs: bool = False
    overlap_tiles: bool = False
    fp16_accumulation: bool = False
    convolution: str = "auto"

    def settings(self) -> dict[str, Any]:
        """Return the settings for every decode and encode, as keyword arguments of `vae.VaeSettings`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "file"}
