"""Load Diffusers Model (Parts): a pipeline from a diffusion model, its text encoders and its VAE, each its own file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..errors import FastDiffusersError
from ..optimizations.settings import MEMORY_MODES
from ..pipelines.loading import loader, parts
from ..pipelines.types import PipelineHandle
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import NONE_FOUND, comfyui_folder, part_choices, part_files, part_path

if TYPE_CHECKING:
    from ..pipelines.types import LoadKey

AUTO, NONE = "auto", "none"
"""A part that the diffusion model's header asks for, and none at all."""


class LoadPipelineParts(io.ComfyNode):
    """Files -> `PipelineHandle`. Headers are read at once, weights when a sampler or a decode needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = part_choices("diffusion_models", parts.DIFFUSION_MODEL)
        encoders = part_choices("text_encoders", parts.TEXT_ENCODER)
        return schema(
            node_id="FastDiffusersLoadPipelineParts",
            display_name="Load Diffusers Model (Parts)",
            category=types.CATEGORY,
            search_aliases=[
                "unet loader",
                "dual clip loader",
                "diffusion model",
                "gguf",
                "flux",
                "qwen image",
                "wan",
                "z-image",
                "clip_l",
                "t5xxl",
                "parts",
            ],
            inputs=[
                io.Combo.Input("diffusion_model", options=models or [NONE_FOUND]),
                io.Combo.Input("text_encoder_1", options=[AUTO, *encoders], default=AUTO),
                io.Combo.Input("text_encoder_2", options=[AUTO, *encoders], default=AUTO),
                io.Combo.Input("vae", options=[AUTO, *part_choices("vae", parts.VAE)], default=AUTO),
                io.Combo.Input("dtype", options=list(loader.DTYPES), default="auto"),
                io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default="auto"),
                io.Combo.Input("quantization", options=list(loader.QUANTIZATION_CHOICES), default="none", **ADVANCED),
                io.Combo.Input("device", options=comfy_bridge.device_choices(), default="auto", **ADVANCED),
                io.Combo.Input("second_expert", options=[AUTO, NONE, *models], default=AUTO, optional=True, **ADVANCED),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(
        cls, diffusion_model: str, text_encoder_1: str, text_encoder_2: str, vae: str, second_expert: str = AUTO
    ) -> bool | str:
        # ComfyUI asks this before anything runs. Naming these also replaces its own "value not in list".
        try:
            _resolve(diffusion_model, (text_encoder_1, text_encoder_2), vae, second_expert)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        diffusion_model: str,
        text_encoder_1: str,
        text_encoder_2: str,
        vae: str,
        second_expert: str = AUTO,
        **how: Any,
    ) -> str:
        # The identity of all files is part of it, so that an exchanged one runs again.
        key = _resolve(diffusion_model, (text_encoder_1, text_encoder_2), vae, second_expert)
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
        second_expert: str = AUTO,
    ) -> io.NodeOutput:
        key = _resolve(
            diffusion_model,
            (text_encoder_1, text_encoder_2),
            vae,
            second_expert,
            dtype=dtype,
            quantization=quantization,
            device=comfy_bridge.device_name(device),
        )
        return io.NodeOutput(memory_management.keep_while_alive(PipelineHandle(key=key, memory_mode=memory_mode)))


def _resolve(
    diffusion_model: str, text_encoders: tuple[str, ...], vae: str, second_expert: str, **loading: Any
) -> LoadKey:
    model = part_path("diffusion_models", "diffusion_model", diffusion_model)
    encoders = [
        part_path("text_encoders", f"text_encoder_{number}", name)
        for number, name in enumerate(text_encoders, 1)
        if name != AUTO
    ]
    if len(encoders) < len(text_encoders):
        at_hand = part_files("text_encoders")
        encoders = [str(file) for file in parts.choose_text_encoders(Path(model), [*map(Path, encoders)], at_hand)]
    if second_expert == AUTO:
        second = str(parts.choose_second_expert(Path(model), part_files("diffusion_models")) or "")
    else:
        second = "" if second_expert == NONE else part_path("diffusion_models", "second_expert", second_expert)
    chosen_vae = part_path("vae", "vae", vae) if vae != AUTO else str(parts.choose_vae(Path(model), part_files("vae")))
    return loader.resolve(
        model,
        in_parts=True,
        text_encoders=encoders,
        vae=chosen_vae,
        second_expert=second,
        comfyui=comfyui_folder(),
        **loading,
    )
