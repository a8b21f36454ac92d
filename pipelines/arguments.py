"""The keyword arguments of one pipeline call: only those that its signature has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..optimizations.components import is_modular_class
from . import latents
from .classes.forms import around
from .classes.guidance import OWN_SCHEDULES
from .conditions.arguments.idle import takes_negative
from .conditions.clips import clip_arguments, clip_form
from .conditions.control import control_arguments
from .conditions.controls.several import networks
from .conditions.forms import form_of
from .conditions.further import argument_values, refuse_twice
from .conditions.keyframes import check_keyframe_scheduler, keyframe_arguments
from .conditions.masks import mask_arguments, repaints
from .conditions.rates import check_sound_length
from .embeddings import table as embeddings
from .embeddings.check import check_widths, encoding_of, negative_text_acts
from .families import Family
from .loading.described import sounds_per_second
from .modular.run import accepted as accepted_by_blocks
from .requested.absent import no_encoder
from .requests import ReadyRequest, negative_acts, seeds
from .types import SampleRequest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def call_arguments(
    pipeline: Any,
    family: Family,
    request: SampleRequest,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    vae: Any = None,
) -> dict[str, Any]:
    """What to call `pipeline` with.

    Args:
        pipeline: the pipeline itself, or its image-to-image form.
        family: of the pipeline itself.
        request: checked and completed.
        device, dtype: where and in what its denoiser computes, for encoded texts.
        vae: what describes its VAE, where that was left out.
    """
    from_image = request.strength < 1.0
    modular = is_modular_class(type(pipeline))
    as_lists = family.known and not modular and family.scheduling is None  # not outside the table
    arguments: dict[str, Any] = {
        **dict(family.extra),
        **_prompts(family, request),
        "num_inference_steps": request.steps,
        "width": request.width,
        "height": request.height,
        family.frames_argument: request.num_frames,
        family.rate_argument: _rate(request.frame_rate),
        # Not every pipeline takes a list; one generator gives the same noise as a list of one.
        "generator": generators(request) if as_lists or request.batch > 1 else generators(request)[0],
        # "pt" is raw in some classes (Kandinsky, DeepFloyd IF) and unknown to others (Shap-E).
        "output_type": "latent" if family.known and not modular else "np",
        "max_sequence_length": request.max_sequence_length,
        # Kontext scales whatever size it is given to this area.
        "max_area": (request.width or 0) * (request.height or 0) or None,
        "last_image": None if request.last_image is None else to_pil(request.last_image),
        **_encoded(pipeline, family, request, device, dtype),
    }
    if request.guidance is not None and request.guidance <= 1.0:
        arguments |= dict(family.unguided)
    if family.guidance_argument:
        arguments[family.guidance_argument] = request.guidance
    if family.second_guidance and pipeline.config.get("boundary_ratio") is not None:
        arguments["guidance_scale_2"] = request.guidance_2
    if repaints(family, request):
        arguments |= _repainted(pipeline, family, request)
    elif from_image and not clip_form(family, request):
        name = "image_latents" if modular and request.latent is not None else "image"
        arguments |= {
            name: _start(pipeline, family, request, vae or getattr(pipeline, "vae", None)),
            "strength": request.strength,
        }
    elif request.images and family.images != "none":
        pictures = [to_pil(image, family.alpha) for image in request.images]
        arguments[family.image_argument] = pictures if family.max_images > 1 or family.images_as_list else pictures[0]
        if family.sound and request.batch > 1:
            arguments |= _first_frames(pipeline, pictures[0], request.batch)
    name = type(pipeline).__name__
    check_keyframe_scheduler(name, request, lambda: getattr(pipeline, "scheduler", None))
    arguments |= control_arguments(name, request, to_pil) | keyframe_arguments(name, family, request, to_pil)
    size = (request.width, request.height)
    arguments |= clip_arguments(name, family, request, lambda frame, size=size: _in_size(to_pil(frame), *size))
    given = argument_values(name, request, lambda picture: to_pil(picture, alpha=picture.shape[-1] == 4), device)
    arguments = _with_arguments(family, request, arguments, given)
    _check_text_length(pipeline, request)
    check_sound_length(family, request, sounds_per_second(pipeline))
    accepted = _accepted(pipeline, encoded=request.positive is not None)
    call = {
        name: value for name, value in arguments.items() if name in accepted and (value is not None or name in given)
    }
    schedule = OWN_SCHEDULES.get(family.name)
    if request.guidance is not None and schedule is not None and schedule.argument not in given:
        alone = family.guidance_argument == schedule.argument  # the class takes a guidance in no other form
        call[schedule.argument] = [request.guidance] * (request.steps or 1) if alone else None
    asked: SampleRequest = getattr(request, "asked", request)
    if modular and asked.steps is None and accepted.get("num_inference_steps", 0) is None:
        call.pop("num_inference_steps", None)  # a distilled model has its own
    if family.images_as_list and "adapter_conditioning_scale" in accepted:  # several adapters cannot share its default
        call.setdefault("adapter_conditioning_scale", [1.0] * family.min_images)
    if "intermediate_timesteps" in accepted and request.steps != 2:
        # Sana Sprint takes one between two steps, and fails with any other number.
        call.setdefault("intermediate_timesteps", None)
    return call


def _with_arguments(
    family: Family, request: SampleRequest, others: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Those of a call's arguments that inputs of the request give, with those that are given by name.

    Raises:
        InputError: both give one.
    """
    own = dict((*family.extra, *family.unguided))
    if takes_negative(family, request):
        others["negative_prompt"] = request.negative_prompt
    for text in ("prompt", "negative_prompt"):  # an empty one, or what stands in for none
        if f"{text}_embeds" in given:
            others.pop(text, None)
    refuse_twice(given, others, (*own, "max_area", *(family.required)))
    return others | given


def _accepted(pipeline: Any, encoded: bool = False) -> Mapping[str, Any]:
    """What a call takes: of a modular pipeline, the inputs of its blocks."""
    if is_modular_class(type(pipeline)):
        return accepted_by_blocks(pipeline, encoded)
    return inspect.signature(pipeline.__call__).parameters


def _rate(rate: float | None) -> float | None:
    """Frames per second as a whole number where they are one: some pipelines count with them."""
    return int(rate) if rate is not None and float(rate).is_integer() else rate


def form_for(pipeline: Any, family: Family, request: SampleRequest, controlnets: Sequence[Any] = ()) -> Any:
    """What is called for this request: the pipeline itself, or its form for pictures around the same models.

    Args:
        controlnets: the models of the request's control pictures.
    """
    form = form_of(family, request)
    if not form or form == type(pipeline).__name__:
        return pipeline
    further = {"controlnet": networks(form, controlnets)} if controlnets else {}
    return around(pipeline, form, **further)


def form_class(request: ReadyRequest) -> type | None:
    """The class of the form that is called instead of the pipeline itself, None for the pipeline itself."""
    import diffusers

    form = form_of(request.family, request)
    return getattr(diffusers, form) if form else None


def _prompts(family: Family, request: SampleRequest) -> dict[str, Any]:
    """Prompt, negative prompt where it acts, and the size of the batch; nothing where the texts are encoded."""
    if request.positive is not None:
        return {}
    acts = negative_acts(family, request.guidance)
    negative = (request.negative_prompt or family.empty_negative) if acts else None
    if family.batch_by_prompts and request.batch > 1:
        negatives = None if negative is None else [negative] * request.batch
        return {"prompt": [request.prompt] * request.batch, "negative_prompt": negatives}
    batch = {"num_images_per_prompt": request.batch, "num_videos_per_prompt": request.batch}
    return {"prompt": request.prompt, "negative_prompt": negative, **batch}


def _encoded(
    pipeline: Any, family: Family, request: SampleRequest, device: torch.device | None, dtype: torch.dtype | None
) -> dict[str, Any]:
    """What takes the place of prompts that are encoded already; nothing where they are text.

    Raises:
        InputError: the model takes other embeddings, or has no text encoder for its prompt.
    """
    if request.positive is None:
        modular = is_modular_class(type(pipeline))
        parts = pipeline.component_names if modular else inspect.signature(type(pipeline).__init__).parameters
        encoders = [name for name in parts if "text_encoder" in name]
        if encoders and all(getattr(pipeline, name, None) is None for name in encoders) and family.prompt:
            no_encoder()
        return {}
    encoding = encoding_of(family)
    assert encoding is not None  # noqa: S101 - checked
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    check_widths(family, request, type(denoiser), denoiser.config)
    acts = negative_text_acts(family, request.guidance, negative_acts(family, request.guidance))
    negative = request.negative if acts else None
    size = (request.height or 0, request.width or 0)
    config = denoiser.config
    return embeddings.call_arguments(encoding, config, request.positive, negative, request.batch, size, device, dtype)


def stand_in_note(family: Family, request: SampleRequest) -> str:
    """That a negative prompt was given which nobody wrote, "" where none was, or where the table says so."""
    stand_in = family.empty_negative
    if family.known or stand_in is None or request.negative_prompt or not negative_acts(family, request.guidance):
        return ""
    return f"negative_prompt: {stand_in!r} stands in for none, since {family.name} guides only with one."


def _first_frames(pipeline: Any, picture: Image, batch: int) -> dict[str, Any]:
    """LTX-2's pipeline wants one first frame per item, but compresses, as it was trained on, no more than a single one:
    for a batch, that is done here, with its own function."""
    if "image_crf" not in inspect.signature(pipeline.__call__).parameters:  # older releases compress nothing
        return {"image": [picture] * batch}
    import numpy
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
    from PIL.Image import fromarray

    crf = resolve_default_image_crf(pipeline.text_encoder)
    compressed = fromarray(apply_image_conditioning_crf(numpy.array(picture), crf))
    return {"image": [compressed] * batch, "image_crf": 0}


def _check_text_length(pipeline: Any, request: SampleRequest) -> None:
    """LTX-2 pads its text with a set of learned registers, repeated."""
    connectors = getattr(pipeline, "connectors", None)
    registers = connectors.config.get("video_connector_num_learnable_registers") if connectors is not None else None
    length = request.max_sequence_length
    if registers and length and length % registers:
        nearest = -(-length // registers) * registers
        reason = f"this model takes multiples of {registers}"
        raise InputError("max_sequence_length", length, reason, f"use {nearest}, or leave it out")


def generators(request: SampleRequest) -> list[torch.Generator]:
    """One generator per item of the batch, on the CPU: the same noise on every device."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds(request)]


def to_pil(image: torch.Tensor, alpha: bool = False) -> Image:
    """A float [H, W, 3 or 4] image in 0..1 as the 8-bit picture that every pipeline accepts.

    Args:
        alpha: as RGBA, opaque where the image has three channels; else as RGB, without its transparency.
    """
    from PIL.Image import fromarray

    channels = image if alpha else image[..., :3]
    pixels = (channels.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    picture = fromarray(pixels.numpy())
    return picture.convert("RGBA") if alpha else picture


def _in_size(picture: Image, width: int | None, height: int | None) -> Image:
    """A picture in that size in pixels, where it is known."""
    from PIL.Image import Resampling

    if width and height and picture.size != (width, height):
        return picture.resize((width, height), resample=Resampling.LANCZOS)
    return picture


def _repainted(pipeline: Any, family: Family, request: SampleRequest) -> dict[str, Any]:
    """What the call of an inpaint form is given beside the prompt."""
    picture = _in_size(to_pil(request.images[0]), request.width, request.height)
    reference = to_pil(request.images[1]) if len(request.images) > 1 else None
    modular = is_modular_class(type(pipeline))
    itself = not modular and type(pipeline).__name__ in family.classes
    return mask_arguments(_accepted(pipeline), family, request, picture, reference, itself=itself, as_lists=not modular)


def _start(pipeline: Any, family: Family, request: SampleRequest, vae: Any) -> Any:
    """What an image-to-image call starts from, once per item of the batch: the latent where there is one, else the
    first image, scaled to the size of the result."""
    if request.latent is None:
        picture = _in_size(to_pil(request.images[0]), request.width, request.height)
        if is_modular_class(type(pipeline)):  # it repeats what is encoded
            return picture
        return [picture] * request.batch
    native = latents.from_comfy(request.latent, family, vae).to(vae.dtype)
    if is_modular_class(type(pipeline)):  # as its own encoder gives them
        return native
    native = native.squeeze(2) if native.ndim == 5 else native
    # The pipelines tell latents from pictures by their channels; not all of them know how many this model has.
    pipeline.image_processor.register_to_config(vae_latent_channels=family.latent_channels)
    copies = -(-request.batch // native.shape[0])
    return native.repeat(copies, 1, 1, 1)[: request.batch]
