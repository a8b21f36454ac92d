"""Load Diffusers Model (Parts): a pipeline from a diffusion model, its text encoders and its VAE, each its own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..errors import FastDiffusersError
from ..optimizations.settings import MEMORY_MODES
from ..pipelines.loading import loader
from ..pipelines.types import PipelineHandle
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import comfyui_folder, part_choices, part_path

if TYPE_CHECKING:
    from ..pipelines.types import LoadKey


class LoadPipelineParts(io.ComfyNode):
    """Four files -> `PipelineHandle`. Headers are read at once, weights when a sampler or a decode needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadPipelineParts",
            display_name="Load Diffusers Model (Parts)",
            category=types.CATEGORY,
            search_aliases=["unet loader", "dual clip loader", "diffusion model", "flux", "clip_l", "t5xxl", "parts"],
            inputs=[
                io.Combo.Input("diffusion_model", options=part_choices("diffusion_models", "transformer")),
                io.Combo.Input(
                    "text_encoder_1", options=part_choices("text_encoders", "text_encoder", "text_encoder_2")
                ),
                io.Combo.Input(
                    "text_encoder_2", options=part_choices("text_encoders", "text_encoder_2", "text_encoder")
                ),
                io.Combo.Input("vae", options=part_choices("vae", "vae")),
                io.Combo.Input("dtype", options=list(loader.DTYPES), default="auto"),
                io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default="auto"),
                io.Combo.Input("quantization", options=list(loader.QUANTIZATION_CHOICES), default="none", **ADVANCED),
                io.Combo.Input("device", options=comfy_bridge.device_choices(), default="auto", **ADVANCED),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(cls, diffusion_model: str, text_encoder_1: str, text_encoder_2: str, vae: str) -> bool | str:
        # ComfyUI asks this before anything runs. Naming these also replaces its own "value not in list".
        try:
            _resolve(diffusion_model, text_encoder_1, text_encoder_2, vae)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, diffusion_model: str, text_encoder_1: str, text_encoder_2: str, vae: str) -> str:
        # The identity of all files is part of it, so that an exchanged one runs again.
        key = _resolve(diffusion_model, text_encoder_1, text_encoder_2, vae)
        return f"{key.parts} {key.identity}"

    @classmethod
    def execute(
        cls,
        diffusion_model: str,
        text_encoder_1: str,
        text_encoder_2: str,
        vae: str,
        dtype: str,
        memory_mode: str,
        quantization: str,
        device: str,
    ) -> io.NodeOutput:
        device = comfy_bridge.device_name(device)
        key = _resolve(diffusion_model, text_encoder_1, text_encoder_2, vae, dtype, quantization, device)
        return io.NodeOutput(memory_management.keep_while_alive(PipelineHandle(key=key, memory_mode=memory_mode)))


def _resolve(
    diffusion_model: str,
    text_encoder_1: str,
    text_encoder_2: str,
    vae: str,
    dtype: str = "auto",
    quantization: str = "none",
    device: str = "auto",
) -> LoadKey:
    encoders = {"text_encoder_1": text_encoder_1, "text_encoder_2": text_encoder_2}
    return loader.resolve(
        part_path("diffusion_models", "diffusion_model", diffusion_model),
        in_parts=True,
        text_encoders=[part_path("text_encoders", widget, name) for widget, name in encoders.items()],
        vae=part_path("vae", "vae", vae),
        comfyui=comfyui_folder(),
        dtype=dtype,
        quantization=quantization,
        device=device,
    )
