"""Bare diffusers with the pipeline of a case: its call, and the pipeline read again from a folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import first_line
from ...optimizations.components import is_modular_class
from ...pipelines.modular.blocks import blocks_of, loop_blocks, outputs, stages, without_enhancers
from ...pipelines.modular.run import accepted as accepted_by_blocks
from .compare import leaves


def accepted(pipeline: Any) -> Mapping[str, Any]:
    """What a call takes, by name: the arguments of a classical pipeline, the inputs of a modular one's blocks."""
    if is_modular_class(type(pipeline)):
        return accepted_by_blocks(pipeline)
    call = getattr(pipeline, "__call__", None)  # noqa: B004 - whether it has one of its own
    return {} if call is None else inspect.signature(call).parameters


def call(pipeline: Any, arguments: dict[str, Any]) -> tuple[Any, str]:
    """(what the bare call returns with seed 0, None and why it fails)"""
    generator = torch.Generator().manual_seed(0)
    further = {"generator": generator, "output_type": "np"}
    if isinstance(arguments.get("generator"), list):
        count = len(arguments["generator"])
        further["generator"] = [torch.Generator().manual_seed(index) for index in range(count)]
    taken = accepted(pipeline)
    torch.manual_seed(0)
    try:
        made = pipeline(**{**arguments, **{name: value for name, value in further.items() if name in taken}})
    except Exception as error:  # noqa: BLE001 - whatever a pipeline raises
        return None, line(error)
    if is_modular_class(type(pipeline)):
        decoded = {name for _, block in stages(blocks_of(pipeline))[1] for name in outputs(block)}
        made = {name: made.get(name) for name in sorted(decoded - {"latents"})}
    return (made, "") if leaves(made) else (None, "it returned nothing")


def quiet(pipeline: Any) -> Any:
    """The pipeline, without progress bars."""
    if not is_modular_class(type(pipeline)):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    for block in loop_blocks(blocks_of(pipeline)):
        block.set_progress_bar_config(disable=True)
    return pipeline


def again(folder: str, pipeline_class: type) -> Any:
    """The pipeline of a folder, None where bare diffusers cannot read it."""
    import diffusers

    try:
        if not is_modular_class(pipeline_class):
            return quiet(diffusers.DiffusionPipeline.from_pretrained(folder))
        pipeline: Any = diffusers.ModularPipeline.from_pretrained(folder)
        pipeline.load_components(dtype=torch.float32)
        without_enhancers(pipeline._blocks, pipeline.components)
    except Exception:  # noqa: BLE001
        return None
    return quiet(pipeline)


def line(error: BaseException) -> str:
    """An error as one line of at most 300 characters."""
    return first_line(error)[:300]
