"""Arguments that a call reads only beside another input of the run, or not at all; inputs that an argument replaces.

Each was read in the source of the classes that take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ....optimizations.components import denoisers
from ..kinds import VideoCondition
from ..taking import call_takes
from .names import arguments_of

if TYPE_CHECKING:
    from ...types import SampleRequest

_BESIDE = {
    "system_prompt": "enable_prompt_enhancement",
    "prompt_max_new_tokens": "enable_prompt_enhancement",
    "prompt_enhancement_kwargs": "enable_prompt_enhancement",
    "prompt_enhancement_seed": "enable_prompt_enhancement",
    "prompt_upsampling_temperature": "prompt_upsampling",
    "guidance_keyframe_strength": "guidance_keyframe_latents",
    "guiding_strength": "guidance_latents",
    "attn_store_steps": "use_cross_attn_mask",
    "store_averaged_over_steps": "use_cross_attn_mask",
}
"""Argument -> another of the same call, without which it is not read."""
_WITHOUT = {"track_name": "instruction", "complete_track_classes": "instruction"}
"""Argument -> another of the same call, with which it is not read."""
_WHILE_ENCODING = ("clip_skip", "complex_human_instruction", "enable_prompt_enhancement")
"""Arguments that are read where a prompt is encoded, and nowhere else."""
_WHILE_ENCODING_EITHER = ("clean_caption", "text_encoder_out_layers")
"""Likewise, where the negative prompt is encoded too."""
_WITHOUT_WHEN_DISTILLED = ("Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "AceStepPipeline")
"""Classes that drop a guidance where their model is distilled."""
UNREAD = {
    "clip_skip": ("StableUnCLIPImg2ImgPipeline",),
    "cross_attention_kwargs": ("AudioLDM2Pipeline",),
    "fps": ("SanaWMPipeline",),
    "guess_mode": ("StableDiffusionXLControlNetPAGImg2ImgPipeline",),
    "guidance_rescale": ("TextToVideoZeroSDXLPipeline",),
    "image_embeds": ("SkyReelsV2DiffusionForcingImageToVideoPipeline",),
    "initial_audio_sampling_rate": ("StableAudioPipeline",),
    "sigmas": ("HeliosPyramidPipeline",),
    "target_size": ("LEditsPPPipelineStableDiffusionXL",),
    "true_cfg_scale": ("ChromaInpaintPipeline",),
}
"""Argument -> classes whose call takes it and never reads it."""


def unmet(pipeline: Any, name: str, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    """Why a run did not read an argument that it was given, "" where nothing here says so.

    Args:
        pipeline: what was called, after the call.
        arguments: all that were given, with their values.
    """
    kind = type(pipeline).__name__
    if kind in UNREAD.get(name, ()):
        return f"{kind} takes it and never reads it"
    takes = call_takes(kind)
    other = _BESIDE.get(name, "")
    if other in takes and not _given(arguments.get(other)):
        return f"it acts with argument {other}"
    other = _WITHOUT.get(name, "")
    if other in takes and _given(arguments.get(other)):
        return f"argument {other} takes its place"
    encoded = request.positive is not None or ("prompt_embeds" in arguments and name in _WHILE_ENCODING)
    if encoded and name in (*_WHILE_ENCODING, *_WHILE_ENCODING_EITHER):
        return "the texts are encoded already"
    if name.startswith(("edit_", "editing_", "reverse_editing_")):
        return _edit(pipeline, name, arguments, request)
    return _RULES[name](pipeline, arguments, request) if name in _RULES else ""


def replaced_inputs(pipeline: Any, request: SampleRequest) -> list[str]:
    """Notes on what the inputs of a request ask for and an argument of it, or the model, makes nothing of.

    Args:
        pipeline: what was called, after the call.
        request: as `ready` made it, with what was asked for at first.
    """
    arguments, asked = arguments_of(request), getattr(request, "asked", request)
    notes = []
    start = arguments.get("denoising_start")
    if start is not None and start.value is not None and asked.strength < 1.0:
        notes.append(f"strength ignored: argument denoising_start takes its place, at {start.value:g} of the steps.")
    if (asked.guidance or 0) > 1 and type(pipeline).__name__ in _WITHOUT_WHEN_DISTILLED and _is_distilled(pipeline):
        notes.append("guidance ignored: this model is distilled to run without one.")
    return notes


def _is_distilled(pipeline: Any) -> bool:
    return bool(getattr(pipeline, "is_turbo", False) or pipeline.config.get("is_distilled"))


def _embeds_guidance(pipeline: Any) -> Any:
    """What a denoiser's configuration says of a guidance that it reads itself, None where it says nothing."""
    models: list[Any] = list(denoisers(pipeline).values())
    return models[0].config.get("guidance_embeds") if models else None


def _given(value: Any) -> bool:
    return value is not None and value is not False


def _embedded(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    """Of classes with a true CFG, whose other scale only models that were distilled for one read."""
    other = any(name in call_takes(type(pipeline).__name__) for name in ("true_cfg_scale", "distilled_guidance_scale"))
    return "this model is not guidance-distilled" if other and _embeds_guidance(pipeline) is False else ""


def _duration(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    return "the run has a number of frames (num_frames)" if request.num_frames else ""


def _stg_blocks(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    off = getattr(pipeline, "do_spatio_temporal_guidance", None) is False
    return "it acts with argument stg_scale or audio_stg_scale above 0" if off else ""


def _pag(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    off = getattr(pipeline, "do_perturbed_attention_guidance", None) is False
    return "it acts with argument pag_scale above 0" if off else ""


def _ensemble(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    single = (arguments.get("ensemble_size") or 1) <= 1 and "ensemble_size" in call_takes(type(pipeline).__name__)
    return "it acts with argument ensemble_size above 1" if single else ""


def _caption(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    return "it says how a picture is described, and there is a prompt" if request.prompt.strip() else ""


def _edit(pipeline: Any, name: str, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    """Of semantic guidance, which is a part of classifier-free guidance."""
    if type(pipeline).__name__ == "SemanticStableDiffusionPipeline" and (request.guidance or 0) <= 1:
        return f"guidance = {request.guidance or 0:g} switches it off"
    directions = ("editing_prompt", "editing_prompt_embeddings", "editing_prompt_embeds", "sem_guidance")
    beside = name.startswith(("edit_", "reverse_")) and not any(_given(arguments.get(each)) for each in directions)
    return "it acts with argument editing_prompt" if beside else ""


def _noised(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    clips = any(isinstance(condition, VideoCondition) for condition in request.conditions)
    given = request.images or clips or any(name in arguments for name in ("image_latents", "video_latents"))
    helios = type(pipeline).__name__.startswith("Helios")
    return "it mixes noise into a picture or a clip, and none is given" if helios and not given else ""


def _resampling(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    kept = arguments.get("match_input_resolution") is False
    return "match_input_resolution is off, so the result is not scaled" if kept else ""


def _image_guidance(pipeline: Any, arguments: Mapping[str, Any], request: SampleRequest) -> str:
    pictures = request.images or "input_images" in arguments
    return "" if pictures else "it guides by pictures, and there are none"


_RULES: dict[str, Callable[[Any, Mapping[str, Any], SampleRequest], str]] = {
    "guidance_scale": _embedded,
    "distilled_guidance_scale": _embedded,
    "min_seconds": _duration,
    "max_seconds": _duration,
    "spatio_temporal_guidance_blocks": _stg_blocks,
    "pag_adaptive_scale": _pag,
    "ensembling_kwargs": _ensemble,
    "use_en_prompt": _caption,
    "img_guidance_scale": _image_guidance,
    "image_noise_sigma_min": _noised,
    "image_noise_sigma_max": _noised,
    "video_noise_sigma_min": _noised,
    "video_noise_sigma_max": _noised,
    "resample_method_output": _resampling,
}
"""Argument -> why a run did not read it, "" where it did."""
