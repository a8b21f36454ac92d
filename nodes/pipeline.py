"""Load Diffusers Pipeline: which model, in which precision, and where its weights live."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..errors import FastDiffusersError
from ..optimizations.settings import MEMORY_MODES
from ..pipelines.loading import loader, sources
from ..pipelines.types import PipelineHandle
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import (
    CUSTOM,
    comfyui_folder,
    default_pipeline,
    download_folder,
    pipeline_choices,
    pipeline_source,
)


class LoadPipeline(io.ComfyNode):
    """Widgets -> `PipelineHandle`. Weights are read when a sampler or a decode first needs them, and then shared."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = pipeline_choices()
        return schema(
            node_id="FastDiffusersLoadPipeline",
            display_name="Load Diffusers Pipeline",
            category=types.CATEGORY,
            search_aliases=[
                *("diffusers", "load model", "flux", "sdxl", "wan", "qwen image", "sd3", "z-image", "hub"),
                *("low vram", "memory", "offload"),
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=choices,
                    default=default_pipeline(choices),
                    tooltip="Folders with a model_index.json or a modular_model_index.json, and .safetensors files, "
                    "under every 'diffusers' path (those of extra_model_paths.yaml too), .safetensors checkpoints, and "
                    "the tiny pipelines embedded in this pack: no download, to try a graph. Flux knows drawn "
                    "landscapes, the others have random weights. Where several paths have one of the same name, the "
                    f"name alone is the first path's; the others say their path. {CUSTOM} takes the field below.",
                ),
                io.String.Input(
                    "custom_model",
                    default="",
                    tooltip=f"Used when model is {CUSTOM}: the path of a diffusers folder or a .safetensors file, or a "
                    "Hugging Face Hub id such as owner/name, which is downloaded on the first run, into the first "
                    "'diffusers' path. What is there, or in the Hub's own cache, is not fetched again.",
                ),
                io.Combo.Input("dtype", options=list(loader.DTYPES), default="auto"),
                io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default="auto"),
                io.Combo.Input("quantization", options=list(loader.QUANTIZATION_CHOICES), default="none", **ADVANCED),
                io.Combo.Input("device", options=comfy_bridge.device_choices(), default="auto", **ADVANCED),
                io.String.Input("revision", default="", **ADVANCED),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str, custom_model: str) -> bool | str:
        # ComfyUI asks this before anything runs. Naming `model` here also replaces its own "value not in list".
        try:
            source = pipeline_source(model, custom_model)
            if sources.is_local(source):
                loader.resolve(source)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, custom_model: str, **how: Any) -> str:
        # The identity of local files is part of it, so that an edited model folder runs again.
        source = pipeline_source(model, custom_model)
        if not sources.is_local(source):
            return source
        key = loader.resolve(source)
        return f"{key.source} {key.identity}"

    @classmethod
    def execute(
        cls, model: str, custom_model: str, dtype: str, memory_mode: str, quantization: str, device: str, revision: str
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        with progress.running() as callbacks:
            key = loader.resolve(
                pipeline_source(model, custom_model),
                revision=revision.strip(),
                dtype=dtype,
                device=comfy_bridge.device_name(device),
                quantization=quantization,
                library=download_folder(),
                comfyui=comfyui_folder(),
                callbacks=callbacks,
            )
        return io.NodeOutput(memory_management.keep_while_alive(PipelineHandle(key=key, memory_mode=memory_mode)))
