"""A modular pipeline from a checked folder: component by component, each from where its entry says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .blocks import all_components, default_blocks, without_enhancers
from .index import BLOCKS, component_folder


def build(
    folder: Path,
    index: Mapping[str, Any],
    classes: Mapping[str, type],
    *,
    dtypes: Mapping[str, Any],
    variant: str | None = None,
    quantization: Any = None,
) -> Any:
    """Read the weights of a modular pipeline into CPU memory.

    Args:
        folder: where its index is.
        index: as `as_model_index` makes it.
        classes: component -> the class that is loaded; the others stay empty.
        dtypes: component -> torch dtype, and "default".
        variant: of the weight files, "fp16" say; a component without it loads its plain files.
        quantization: a `PipelineQuantizationConfig` with a configuration for each component, or None.

    Raises:
        Exception: whatever a component's class raises, where diffusers would log it and go on without.
    """
    import diffusers
    import torch
    from diffusers.utils import logging

    pipeline_class = getattr(diffusers, index["_class_name"])
    blocks = type(default_blocks(pipeline_class, index.get(BLOCKS)))()
    pipeline = pipeline_class(blocks=blocks)
    settings = {name: _as_saved(index[name]) for name in pipeline._config_specs if name in index}
    if settings:
        pipeline.update_components(**settings)
    specs = all_components(blocks)
    loaded = {}
    for name in logging.tqdm([name for name in classes if name in specs]):  # the loader's progress looks at it
        own_class: Any = classes[name]
        options: dict[str, Any] = {"local_files_only": True}
        if _is_model(own_class):
            options |= {"use_safetensors": True, "dtype": dtypes.get(name, dtypes["default"])}
            files = component_folder(folder, index, name)
            if variant is not None and any(f".{variant}." in file.name for file in files.iterdir()):
                options["variant"] = variant
            if quantization is not None and name in quantization.quant_mapping:
                options["quantization_config"] = quantization.quant_mapping[name]
        if own_class.__name__.startswith("Auto"):
            options["trust_remote_code"] = False  # of itself it would ask on the terminal
        component = own_class.from_pretrained(str(component_folder(folder, index, name)), **options)
        if isinstance(component, torch.nn.Module):
            component.eval()
        loaded[name] = component
    pipeline.update_components(**loaded)
    without_enhancers(pipeline._blocks, pipeline.components)
    return pipeline


def assemble(pipeline_class: Any, parts: Mapping[str, Any]) -> Any:
    """A modular pipeline of loaded components and settings, of which it takes those that it knows.

    Args:
        parts: by name; None where there is none.
    """
    blocks = type(default_blocks(pipeline_class))()
    pipeline = pipeline_class(blocks=blocks)
    taken = {*all_components(blocks), *pipeline._config_specs}
    pipeline.update_components(**{name: part for name, part in parts.items() if name in taken and part is not None})
    without_enhancers(pipeline._blocks, pipeline.components)
    return pipeline


def _as_saved(setting: Any) -> Any:
    return list(setting) if isinstance(setting, tuple) else setting


def _is_model(own_class: type) -> bool:
    import torch

    return issubclass(own_class, torch.nn.Module) or own_class.__name__.startswith("AutoModel")
