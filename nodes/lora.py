"""Load LoRA (Diffusers): which LoRAs a pipeline runs with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..errors import FastDiffusersError
from ..pipelines import lora, lora_files
from ..pipelines.types import LoraSpec
from . import types
from .host import memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import lora_choices, lora_path

if TYPE_CHECKING:
    from ..pipelines.types import PipelineHandle


class LoadLora(io.ComfyNode):
    """A `PipelineHandle` with one LoRA more. The file is read, and checked against the model, when a sampler runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadLora",
            display_name="Load LoRA (Diffusers)",
            category=types.CATEGORY,
            search_aliases=["lora", "lora loader", "style", "adapter", "lightning", "high noise", "low noise"],
            inputs=[
                types.Pipeline.Input("pipeline"),
                io.Combo.Input("lora_name", options=lora_choices()),
                io.Float.Input(
                    "strength", default=1.0, min=-lora.MAX_STRENGTH, max=lora.MAX_STRENGTH, step=0.05, round=0.0001
                ),
                io.Combo.Input("expert", options=list(lora.EXPERTS), default="both", **ADVANCED),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str, strength: float) -> bool | str:
        # Naming an input here switches ComfyUI's own check of it off, "value not in list" and the range: both are made
        # by `check_loras`, which gives the reason.
        try:
            lora.check_loras((LoraSpec(lora_path(lora_name), strength),))
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **how: Any) -> str:
        # An edited file runs again under the same name.
        path = lora_path(lora_name)
        return f"{path} {lora_files.stamp(path)}"

    @classmethod
    def execute(cls, pipeline: PipelineHandle, lora_name: str, strength: float, expert: str) -> io.NodeOutput:
        added = LoraSpec(lora_path(lora_name), strength, expert)
        lora.check_loras((added,))
        return io.NodeOutput(memory_management.keep_while_alive(replace(pipeline, loras=(*pipeline.loras, added))))
