"""Load Diffusers Pipeline: which model, in which precision, and where its weights live."""

from __future__ import annotations

from comfy_api.latest import io

from ..errors import FastDiffusersError
from ..optimizations.settings import MEMORY_MODES
from ..pipelines.loading import loader
from ..pipelines.types import PipelineHandle
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import CUSTOM, default_pipeline, download_folder, pipeline_choices, pipeline_source


class LoadPipeline(io.ComfyNode):
    """Widgets -> `PipelineHandle`. Weights are read when a sampler or a decode first needs them, and then shared."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = pipeline_choices()
        return schema(
            node_id="FastDiffusersLoadPipeline",
            display_name="Load Diffusers Pipeline",
            category=types.CATEGORY,
            description="Chooses a diffusers pipeline. Its weights are read when a node first needs them and shared by "
            "every node that uses the same model with the same settings.",
            search_aliases=["diffusers", "load model", "flux", "qwen image", "wan", "sdxl", "sd3", "z-image", "hub"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=choices,
                    default=default_pipeline(choices),
                    tooltip="Folders with a model_index.json and .safetensors files under every 'diffusers' path "
                    "(those of extra_model_paths.yaml too), .safetensors checkpoints, and the tiny pipelines embedded "
                    f"in this pack: random weights, no download, to try a graph. {CUSTOM} takes the field below.",
                ),
                io.String.Input(
                    "custom_model",
                    default="",
                    tooltip=f"Used when model is {CUSTOM}: the path of a diffusers folder or a .safetensors file, or a "
                    "Hugging Face Hub id such as owner/name, which is downloaded on the first run, into the first "
                    "'diffusers' path. What is there, or in the Hub's own cache, is not fetched again.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(loader.DTYPES),
                    default="auto",
                    tooltip="Precision of the weights. 'auto' is bfloat16 where the device can, else float16, and "
                    "float32 on a CPU. float32 doubles the memory. float16 can overflow to black images in models "
                    "trained in bfloat16. Changing it reloads the model.",
                ),
                io.Combo.Input(
                    "memory_mode",
                    options=list(MEMORY_MODES),
                    default="auto",
                    tooltip="Where the weights live. 'gpu' keeps all of them on the card: fastest, needs room for all. "
                    "'model_offload' keeps one component at a time there, 'group_offload_block' a few blocks, "
                    "'group_offload_leaf' and 'sequential' single layers: each needs less memory and moves more. "
                    "'auto' takes the fastest that fits.",
                ),
                io.Combo.Input(
                    "quantization",
                    options=list(loader.QUANTIZATION_CHOICES),
                    default="none",
                    tooltip="'none' loads what the checkpoint holds, a quantized one as it is. The others quantize "
                    "while loading: less memory, some loss of quality, a longer load.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "device",
                    options=comfy_bridge.device_choices(),
                    default="auto",
                    tooltip="'auto' is the device that ComfyUI itself uses.",
                    **ADVANCED,
                ),
                io.String.Input(
                    "revision",
                    default="",
                    tooltip="For a Hub id: branch, tag or commit. Empty is the newest. The commit that was used is in "
                    "the report.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                types.Pipeline.Output(display_name="pipeline", tooltip="Which model: the weights stay in the cache.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str, custom_model: str) -> bool | str:
        # ComfyUI asks this before anything runs. Naming `model` here also replaces its own "value not in list".
        try:
            source = pipeline_source(model, custom_model)
            if loader.is_local(source):
                loader.resolve(source)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        model: str,
        custom_model: str,
        dtype: str,
        memory_mode: str,
        quantization: str,
        device: str,
        revision: str,
    ) -> str:
        # The identity of local files is part of it, so that an edited model folder runs again.
        source = pipeline_source(model, custom_model)
        return loader.resolve(source).identity if loader.is_local(source) else source

    @classmethod
    def execute(
        cls,
        model: str,
        custom_model: str,
        dtype: str,
        memory_mode: str,
        quantization: str,
        device: str,
        revision: str,
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        key = loader.resolve(
            pipeline_source(model, custom_model),
            revision=revision.strip(),
            dtype=dtype,
            device=comfy_bridge.device_name(device),
            quantization=quantization,
            library=download_folder(),
            callbacks=progress.callbacks,
        )
        return io.NodeOutput(memory_management.keep_while_alive(PipelineHandle(key=key, memory_mode=memory_mode)))
