"""Load Diffusers Model (Parts): a pipeline from a diffusion model, its text encoders and its VAE, each its own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..errors import FastDiffusersError, InputError
from ..optimizations.settings import MEMORY_MODES
from ..pipelines.loading import loader, parts
from ..pipelines.types import PipelineHandle
from . import types
from .host import comfy_bridge, core_vae, memory_management
from .host.compat import ADVANCED, schema
from .host.model_files import (
    CHECKPOINT_PREFIX,
    TINY_PREFIX,
    comfyui_folder,
    part_choices,
    part_files,
    part_path,
)

if TYPE_CHECKING:
    from ..pipelines.types import LoadKey

AUTO, NONE = "auto", parts.NONE
"""A part that the diffusion model's header asks for, and none at all."""
ENCODED = "none (CONDITIONING)"
"""No text encoder: the sampler gets texts that are encoded."""
DECODED_ELSEWHERE = "none (LATENT)"
"""No VAE: the sampler gives a latent."""
CLIP_VISION = "clip_vision/"
"""Before the name of an encoder of pictures, which ComfyUI keeps under paths of its own."""
EMBEDDED = TINY_PREFIX + parts.EMBEDDED_NAME
"""Three small files with random weights, to try a graph with."""


class LoadPipelineParts(io.ComfyNode):
    """Files -> `PipelineHandle`. Headers are read at once, weights when a sampler or a decode needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = part_choices("diffusion_models", parts.DIFFUSION_MODEL)
        whole = [CHECKPOINT_PREFIX + name for name in part_choices("checkpoints", parts.DIFFUSION_MODEL)]
        encoders = part_choices("text_encoders", parts.TEXT_ENCODER)
        encoders += [CLIP_VISION + name for name in part_choices("clip_vision", parts.TEXT_ENCODER)]
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
                io.Combo.Input("diffusion_model", options=[*models, *whole, EMBEDDED]),
                io.Combo.Input("text_encoder_1", options=[AUTO, ENCODED, *encoders], default=AUTO),
                io.Combo.Input("text_encoder_2", options=[AUTO, *encoders], default=AUTO),
                io.Combo.Input("vae", options=[AUTO, DECODED_ELSEWHERE, *part_choices("vae", parts.VAE)], default=AUTO),
                io.Combo.Input("dtype", options=list(loader.DTYPES), default="auto"),
                io.Combo.Input("memory_mode", options=list(MEMORY_MODES), default="auto"),
                io.Combo.Input("quantization", options=list(loader.QUANTIZATION_CHOICES), default="none", **ADVANCED),
                io.Combo.Input("device", options=comfy_bridge.device_choices(), default="auto", **ADVANCED),
                io.Combo.Input("second_expert", options=[AUTO, NONE, *models], default=AUTO, optional=True, **ADVANCED),
                io.Combo.Input("text_encoder_3", options=[AUTO, *encoders], default=AUTO, optional=True, **ADVANCED),
                io.Vae.Input("comfyui_vae", optional=True),
                io.Combo.Input(
                    "audio_vae",
                    options=[AUTO, NONE, *part_choices("vae", parts.VAE)],
                    default=AUTO,
                    optional=True,
                    **ADVANCED,
                ),
            ],
            outputs=[types.Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def validate_inputs(
        cls,
        diffusion_model: str,
        text_encoder_1: str,
        text_encoder_2: str,
        vae: str,
        second_expert: str = AUTO,
        text_encoder_3: str = AUTO,
        audio_vae: str = AUTO,
    ) -> bool | str:
        # ComfyUI asks this before anything runs. Naming these also replaces its own "value not in list".
        # Whether a VAE is connected is not known yet: that none at hand fits is said when it runs.
        try:
            encoders = (text_encoder_1, text_encoder_2, text_encoder_3)
            _resolve(diffusion_model, encoders, vae, second_expert, audio_vae, only_at_hand=True)
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
        text_encoder_3: str = AUTO,
        audio_vae: str = AUTO,
        **how: Any,
    ) -> str:
        # The identity of all files is part of it, so that an exchanged one runs again.
        encoders = (text_encoder_1, text_encoder_2, text_encoder_3)
        key = _resolve(diffusion_model, encoders, vae, second_expert, audio_vae, only_at_hand=True)
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
        text_encoder_3: str = AUTO,
        comfyui_vae: Any = None,
        audio_vae: str = AUTO,
    ) -> io.NodeOutput:
        if comfyui_vae is not None:
            if vae not in (AUTO, DECODED_ELSEWHERE):
                reason = "comfyui_vae is connected, and one of them decodes"
                raise InputError("vae", vae, reason, f"disconnect it, or set vae to {AUTO}")
            vae = DECODED_ELSEWHERE
        key = _resolve(
            diffusion_model,
            (text_encoder_1, text_encoder_2, text_encoder_3),
            vae,
            second_expert,
            audio_vae,
            dtype=dtype,
            quantization=quantization,
            device=comfy_bridge.device_name(device),
        )
        if comfyui_vae is not None:
            family = loader.family_of_key(key)
            core_vae.check_belongs("comfyui_vae", comfyui_vae, family.name, family.latent_channels)
        handle = PipelineHandle(key=key, memory_mode=memory_mode, vae=comfyui_vae)
        return io.NodeOutput(memory_management.keep_while_alive(handle))


def _resolve(
    diffusion_model: str,
    text_encoders: tuple[str, ...],
    vae: str,
    second_expert: str,
    audio_vae: str,
    only_at_hand: bool = False,
    **loading: Any,
) -> LoadKey:
    """Find the files that are chosen, and those that fit where none is.

    Args:
        only_at_hand: take VAEs for "auto" only where they fit.
    """
    embedded = parts.embedded_parts() if diffusion_model == EMBEDDED else {}

    def files(kind: str, slot: str) -> list[Path]:
        return [embedded[slot]] if embedded else part_files(kind)

    model = embedded.get("transformer") or Path(part_path("diffusion_models", "diffusion_model", diffusion_model))
    encoders = [
        _encoder_path(f"text_encoder_{number}", name)
        for number, name in enumerate(text_encoders, 1)
        if name not in (AUTO, ENCODED)
    ]
    encoded = ENCODED in text_encoders
    if AUTO in text_encoders:
        at_hand = [*files("text_encoders", "text_encoder"), *([] if embedded else part_files("clip_vision"))]
        found = parts.choose_text_encoders(model, [*map(Path, encoders)], at_hand, of_texts=not encoded)
        encoders = [str(file) for file in found]
    if encoded:
        encoders.append(NONE)
    if second_expert == AUTO:
        second = str(parts.choose_second_expert(model, files("diffusion_models", "transformer")) or "")
    else:
        second = "" if second_expert == NONE else part_path("diffusion_models", "second_expert", second_expert)
    if vae == DECODED_ELSEWHERE:
        chosen_vae = NONE
    elif vae != AUTO:
        chosen_vae = part_path("vae", "vae", vae)
    else:
        chosen_vae = _fitting_vae(parts.choose_vae, model, files("vae", "vae"), only_at_hand)
    if audio_vae not in (AUTO, NONE):
        audio_vae = part_path("vae", "audio_vae", audio_vae)
    elif audio_vae == AUTO:
        # Where a picture is decoded elsewhere, a sound that nothing here could make is not asked for.
        if_it_fits = only_at_hand or chosen_vae == NONE
        audio_vae = _fitting_vae(parts.choose_audio_vae, model, files("vae", "vae"), if_it_fits)
    return loader.resolve(
        str(model),
        in_parts=True,
        text_encoders=encoders,
        vae=chosen_vae,
        second_expert=second,
        audio_vae=audio_vae,
        comfyui=comfyui_folder(),
        **loading,
    )


def _encoder_path(widget: str, name: str) -> str:
    if name.startswith(CLIP_VISION):
        return part_path("clip_vision", widget, name.removeprefix(CLIP_VISION))
    return part_path("text_encoders", widget, name)


def _fitting_vae(
    choose: Callable[[Path, list[Path]], Path | None], model: Path, files: list[Path], only_at_hand: bool
) -> str:
    try:
        return str(choose(model, files) or NONE)
    except InputError:
        if only_at_hand:
            return NONE
        raise
