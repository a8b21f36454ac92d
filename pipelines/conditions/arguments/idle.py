"""Arguments that a call takes and that do nothing in the run they are given for: what switches them off."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from ....errors import InputError
from ....optimizations.components import denoisers
from ..forms import form_of
from ..kinds import ArgumentCondition
from ..taking import call_takes
from .names import arguments_of
from .unmet import replaced_inputs, unmet

if TYPE_CHECKING:
    from ...families import Family
    from ...types import SampleRequest

ATTENTION = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""Arguments whose values go to the attention layers by name; diffusers drops names that none of them has."""
_READ_ELSEWHERE = ("gligen", "ip_adapter_image_embeds", "ip_adapter_masks", "ip_hidden_states")
"""Of these, what the model itself reads."""
_OF_GUIDANCE = (
    "guidance_rescale",
    "image_guidance_scale",
    "cfg_normalization",
    "cfg_normalize",
    "cfg_truncation",
    "cfg_trunc_ratio",
    "enable_cfg_renorm",
    "cfg_renorm_min",
    "use_dynamic_cfg",
    "use_zero_init",
    "zero_steps",
    "skip_guidance_layers",
    "skip_layer_guidance_scale",
    "skip_layer_guidance_start",
    "skip_layer_guidance_stop",
)
"""Arguments that say how classifier-free guidance is done; those of the negative prompt begin with "negative"."""
_TOGETHER = {
    "negative_original_size": "negative_target_size",
    "negative_target_size": "negative_original_size",
    "negative_crops_coords_top_left": "negative_original_size",
    "skip_layer_guidance_scale": "skip_guidance_layers",
    "skip_layer_guidance_start": "skip_guidance_layers",
    "skip_layer_guidance_stop": "skip_guidance_layers",
}
"""Argument -> another without which it does nothing."""
_FURTHER_TEXTS = ("prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3")
_ZEROED = ("StableDiffusionXL", "AnimateDiffSDXL", "TextToVideoZeroSDXL")
"""How the names of classes begin that, where their model says so, take zeros for a negative text that is left out."""
_GUIDE_TOO = ("audio_guidance_scale", "stg_scale", "audio_stg_scale", "modality_scale", "audio_modality_scale")
"""Arguments that guide whatever the guidance is."""


def switched_off(family: Family, request: SampleRequest, form: str) -> list[str]:
    """Notes on arguments that the guidance of a run switches off.

    Args:
        form: the class that is called.

    Raises:
        InputError: a true CFG without the negative prompt that it needs.
    """
    arguments = arguments_of(request)
    scale = arguments.get("true_cfg_scale")
    if _guides(scale) and not _has_negative(family, request, form):
        cure = "give one in negative_prompt (--negative-prompt), or leave it out"
        raise InputError("argument true_cfg_scale", scale.value, "it acts with a negative prompt alone", cure)
    if any(name in arguments for name in _GUIDE_TOO):
        return []
    guidance, why = family.guidance if request.guidance is None else request.guidance, ""
    names = [name for name in arguments if _is_of_guidance(form, name)]
    if family.negative_prompt:
        if guidance is not None and guidance <= family.negative_above:
            why = f"guidance = {guidance:g} switches it off"
    elif "true_cfg_scale" in call_takes(form) and not _guides(scale):
        why = "without argument true_cfg_scale above 1 nothing is guided away from it"
    notes = [f"argument {name} ignored: {why}." for name in names] if why else []
    if scale is not None and scale.value is not None and not _guides(scale):
        notes.append(f"argument true_cfg_scale ignored: it guides above 1, and is {scale.value:g}.")
    return notes


def takes_negative(family: Family, request: SampleRequest) -> bool:
    """Whether a true CFG that an argument gives makes the negative prompt of a request act, as of a Flux."""
    guided = not family.negative_prompt and _guides(arguments_of(request).get("true_cfg_scale"))
    written = bool(request.negative_prompt.strip()) and request.positive is None
    return guided and written and "negative_prompt" in call_takes(form_of(family, request) or family.classes[-1])


def _guides(scale: ArgumentCondition | None) -> TypeGuard[ArgumentCondition]:
    return scale is not None and isinstance(scale.value, int | float) and scale.value > 1


def _has_negative(family: Family, request: SampleRequest, form: str) -> bool:
    """Whether a call that takes a negative prompt is given one: as text, or encoded, with all that goes with it."""
    takes, arguments = call_takes(form), arguments_of(request)
    encoded = [name for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds") if name in takes]
    if "negative_prompt" not in takes or (encoded and all(name in arguments for name in encoded)):
        return True
    return takes_negative(family, request)


def _is_of_guidance(form: str, name: str) -> bool:
    if name == "guidance_rescale" and form.startswith("LTX2"):  # they rescale what is not guided too
        return False
    return name in _OF_GUIDANCE or (name.startswith("negative_") and not name.startswith("negative_index"))


def check_attention(name: str, value: Any) -> None:
    """Raise InputError for a scale of LoRAs among what goes to the attention layers: they have their strength."""
    if name in ATTENTION and isinstance(value, dict) and value.get("scale", 1) != 1:
        cure = "use the strength of Load LoRA (--lora FILE:0.5), and leave it out"
        raise InputError(f"argument {name}", value, "the scale of LoRAs is their strength here", cure)


def idle_notes(pipeline: Any, scheduler: Any, request: SampleRequest) -> list[str]:
    """Notes on arguments that a run made no use of, because of its models or its scheduler.

    Args:
        pipeline: what was called, after the call. `scheduler`: of the run, None where there is none of that name.
        request: what its `notes` say already, where it has some, is not said again.
    """
    arguments = {name: each.value for name, each in arguments_of(request).items() if each.value is not None}
    notes: list[str] = []
    said = getattr(request, "notes", ())
    for name, value in arguments.items():
        if any(note.startswith(f"argument {name} ignored") for note in said):
            continue
        if name in ATTENTION and isinstance(value, dict):
            if dropped := _dropped(pipeline, value):
                notes.append(f"argument {name}: {', '.join(dropped)} ignored: no attention layer takes it.")
        elif why := (
            _not_encoded(pipeline, request, name)
            or _idle(pipeline, scheduler, name, arguments)
            or unmet(pipeline, name, arguments, request)
        ):
            notes.append(f"argument {name} ignored: {why}.")
    told = {note.partition(":")[0] for note in said}
    return notes + [note for note in replaced_inputs(pipeline, request) if note.partition(":")[0] not in told]


def _not_encoded(pipeline: Any, request: SampleRequest, name: str) -> str:
    """Why a text for a further text encoder was not read, "" where nothing says so."""
    if name not in _FURTHER_TEXTS:
        return ""
    kind, number = type(pipeline).__name__, name[-1]
    if kind.startswith("StableDiffusion3") and getattr(pipeline, f"text_encoder_{number}", None) is None:
        return f"the model came without text_encoder_{number}, which reads it"
    if not kind.startswith(_ZEROED):
        return ""
    if getattr(pipeline, "text_encoder", None) is None:
        return "this model has one text encoder, and that reads the other one"
    written = request.negative_prompt or getattr(getattr(request, "family", None), "empty_negative", None)
    if name.startswith("negative") and not written and pipeline.config.get("force_zeros_for_empty_prompt"):
        return "without a negative_prompt (--negative-prompt) this model takes zeros for both texts"
    return ""


def _idle(pipeline: Any, scheduler: Any, name: str, arguments: dict[str, Any]) -> str:
    """Why an argument did nothing, "" where nothing says so."""
    if name in _RULES:
        return _RULES[name](pipeline, scheduler, arguments)
    if name in _TOGETHER and not arguments.get(_TOGETHER[name]):
        return f"it acts with argument {_TOGETHER[name]}"
    return _unguided(pipeline, arguments) if _is_of_guidance(type(pipeline).__name__, name) else ""


def _unguided(pipeline: Any, arguments: dict[str, Any]) -> str:
    """What the class itself says after the call, where it says it."""
    answers = isinstance(inspect.getattr_static(type(pipeline), "do_classifier_free_guidance", None), property)
    try:
        off = answers and not pipeline.do_classifier_free_guidance
    except AttributeError:
        return ""
    guided = not off or any(name in arguments for name in _GUIDE_TOO)
    return "" if guided else "the run had no classifier-free guidance"


def _eta(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    """Most classes hand it to the scheduler's step where that takes one, and drop it where not."""
    hands_on = hasattr(pipeline, "prepare_extra_step_kwargs") and not type(pipeline).__name__.startswith("LEdits")
    if scheduler is None or not hands_on or "eta" in inspect.signature(type(scheduler).step).parameters:
        return ""
    return f"{type(scheduler).__name__} has none, schedulers like ddim do"


def _mu(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    to_scheduler = scheduler is not None and type(pipeline).__name__.startswith("StableDiffusion3")
    if not to_scheduler or scheduler.config.get("use_dynamic_shifting"):
        return ""
    return "this model's scheduler has a shift of its own, which flow_shift (--flow-shift) sets"


def _noise_scale(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    plain = type(pipeline).__name__ in ("LTX2Pipeline", "LTX2ImageToVideoPipeline")
    return "it mixes noise into latents, and none are given" if plain and "audio_latents" not in arguments else ""


def _decode(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    vae = getattr(pipeline, "vae", None)
    if vae is None or "timestep_conditioning" not in vae.config:
        return ""
    if not vae.config.timestep_conditioning:
        return "this model's VAE decodes without a timestep"
    return "the latent is decoded at timestep 0" if type(pipeline).__name__.startswith("LTX2") else ""


def _aesthetic(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    asked = pipeline.config.get("requires_aesthetics_score", True)
    return "" if asked else "this model was not trained with aesthetic scores"


def _skip_layers(pipeline: Any, scheduler: Any, arguments: dict[str, Any]) -> str:
    first, last = (arguments.get(f"skip_layer_guidance_{end}", own) for end, own in (("start", 0.01), ("stop", 0.2)))
    steps = getattr(pipeline, "num_timesteps", None) or 0
    acts = not steps or any(steps * first < step < steps * last for step in range(steps))
    unguided = _unguided(pipeline, arguments)
    return unguided or ("" if acts else f"of {steps} steps none lies between {first:g} and {last:g} of them")


_RULES: dict[str, Callable[[Any, Any, dict[str, Any]], str]] = {
    "eta": _eta,
    "mu": _mu,
    "noise_scale": _noise_scale,
    "decode_timestep": _decode,
    "decode_noise_scale": _decode,
    "aesthetic_score": _aesthetic,
    "negative_aesthetic_score": _aesthetic,
    "skip_guidance_layers": _skip_layers,
}
"""Argument -> why a run makes no use of it, "" where it does."""


def _dropped(pipeline: Any, values: dict[str, Any]) -> list[str]:
    """The names that no attention layer of the denoisers has an argument for."""
    layers = [module for model in denoisers(pipeline).values() for module in model.modules()]
    processors: list[Any] = [layer.processor for layer in layers if hasattr(layer, "processor")]
    taken = {name for each in processors for name in inspect.signature(each.__call__).parameters}
    return [name for name in values if name not in taken and name not in _READ_ELSEWHERE] if processors else []
