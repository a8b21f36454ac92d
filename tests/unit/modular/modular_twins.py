"""Small modular pipelines with random weights, saved as folders: the embedded tiny models in their modular form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from fastdiffusers.pipelines import tiny

MODULAR_CLASSES = {
    "flux": "FluxModularPipeline",
    "flux-kontext": "FluxKontextModularPipeline",
    "flux2-klein": "Flux2KleinBaseModularPipeline",
    "sdxl": "StableDiffusionXLModularPipeline",
    "sd3": "StableDiffusion3ModularPipeline",
    "qwenimage": "QwenImageModularPipeline",
    "qwenimage-edit": "QwenImageEditModularPipeline",
    "zimage": "ZImageModularPipeline",
    "wan22-t2v": "Wan22ModularPipeline",
    "wan22-i2v": "Wan22Image2VideoModularPipeline",
}
"""Embedded tiny pipeline -> the modular class that takes its components."""
ROUNDING = 1e-4
"""Of latents: weights of two files, or of a file and of none, lie otherwise in memory, where a processor may round
otherwise."""


def save_twin(name: str, folder: Path) -> Path:
    """Save the modular form of an embedded tiny pipeline."""
    classical: Any = tiny.build(name)
    pipeline = getattr(diffusers, MODULAR_CLASSES[name])()
    return save(pipeline, {**classical.config, **classical.components}, folder)


def save(pipeline: Any, parts: dict[str, Any], folder: Path) -> Path:
    """Save a modular pipeline with those of the components and settings that it has a use for."""
    wanted = {*pipeline.component_names, *pipeline._config_specs}
    pipeline.update_components(**{n: part for n, part in parts.items() if n in wanted and part is not None})
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def bare(folder: Path) -> Any:
    """The folder as diffusers itself loads it."""
    pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components(dtype=torch.float32)
    for block in _loops(pipeline._blocks):
        block.set_progress_bar_config(disable=True)
    return pipeline


def _loops(blocks: Any) -> list[Any]:
    found = []
    for block in blocks.sub_blocks.values():
        found += [block] if hasattr(block, "set_progress_bar_config") else _loops(block)
    return found
