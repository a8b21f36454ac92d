"""Image prompts during a run: their models put in beside the pipeline's for its time, and all as before after it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....callbacks import Callbacks
from ....errors import InputError, ModelFileError, first_line
from ....fallback import is_out_of_memory
from ....optimizations.components import denoisers, is_modular_class
from ...loading.progress import reading_errors
from ...loading.small_files import read_json
from ..holding import hold
from ..kinds import ImagePromptKey
from .files import check_image_prompt_fits
from .keys import ENCODERS, REDUX, described, image_prompts_of, resolve_image_prompt

if TYPE_CHECKING:
    from ....report import OptimizationReport
    from ...types import LoadedPipeline, SampleRequest

_PROMPTS = ("prompt", "prompt_2")
_ENCODER_ARGUMENTS = ("image_encoder_folder", "image_encoder_pretrained_model_name_or_path")
"""Of `load_ip_adapter`: where its vision model is; None for one that the pipeline has."""
_NOT_MOVED = ("group_offload_block", "group_offload_leaf")
"""Memory modes that bring weights to the device layer by layer: the layers of an IP-Adapter would stay behind."""


@contextmanager
def image_prompted(
    loaded: LoadedPipeline,
    pipeline: Any,
    request: SampleRequest,
    callbacks: Callbacks,
    report: OptimizationReport,
    to_picture: Any,
) -> Iterator[dict[str, Any]]:
    """What a call is given for its image prompts; None stands for an argument that goes.

    Their models stay with the pipeline, for the next run; those that this one does not want are freed.

    Args:
        pipeline: what is called.
        to_picture: [H, W, C] to a picture of Pillow's.

    Raises:
        InputError: one was made for another model, or the memory mode cannot move it.
        ModelFileError: one cannot be read.
    """
    prompts = image_prompts_of(request)
    keys = [prompt.model for prompt in prompts]
    _check_fits(loaded, keys)
    models = hold(loaded.image_prompts, keys, lambda key: _read(key, loaded), callbacks)
    if not prompts:
        yield {}
        return
    report.facts["image prompts"] = described(request)
    pictures = [to_picture(prompt.image[0]) for prompt in prompts]
    strengths = [float(prompt.strength) for prompt in prompts]
    if keys[0].redux:
        yield _redux_embeddings(loaded, request, models, pictures, strengths)
        return
    mode = report["memory_mode"].applied if "memory_mode" in report else ""
    if mode in _NOT_MOVED:
        reason = f"memory_mode {mode} would leave its layers behind"
        raise InputError("image_prompt", "an IP-Adapter", reason, "use memory_mode gpu, model_offload or auto")
    with _adapted(loaded, pipeline, keys, models, strengths):
        if "attention" in report and report["attention"].applied not in ("", "sdpa"):
            report.note("the layers that read an image prompt use SDPA, whatever attention was chosen for the others.")
        yield {"ip_adapter_image": pictures if len(pictures) > 1 else pictures[0]}


def _check_fits(loaded: LoadedPipeline, keys: list[ImagePromptKey]) -> None:
    for key in keys:
        denoiser: Any = next(iter(denoisers(loaded.pipeline).values()))
        check_image_prompt_fits(key, type(denoiser), denoiser.config, loaded.family.name)


@contextmanager
def _adapted(
    loaded: LoadedPipeline, pipeline: Any, keys: list[ImagePromptKey], models: list[Any], strengths: list[float]
) -> Iterator[None]:
    """IP-Adapters in the denoiser; its processors, projection and the pipeline's encoder come back afterwards."""
    denoiser: Any = next(iter(denoisers(pipeline).values()))
    before = dict(denoiser.attn_processors)
    config = dict(denoiser.config)
    with ExitStack() as undo:
        undo.callback(denoiser.set_attn_processor, before)  # at last: the projection of SD3 has processors too
        for name in ("encoder_hid_proj", "text_encoder_hid_proj", "image_proj"):
            undo.callback(_put_back, denoiser, name, getattr(denoiser, name, None), hasattr(denoiser, name))
        undo.callback(_put_back, denoiser.config, "encoder_hid_dim_type", *_of_config(config))
        for name in ("image_encoder", "feature_extractor"):
            undo.callback(setattr, pipeline, name, getattr(pipeline, name, None))
        _, encoder, extractor = models[0]
        encoder.to(loaded.device)
        if is_modular_class(type(pipeline)):
            pipeline.image_encoder, pipeline.feature_extractor = encoder, extractor
        else:
            undo.callback(setattr, pipeline, "_internal_dict", pipeline._internal_dict)
            pipeline.register_modules(image_encoder=encoder, feature_extractor=extractor)
        try:
            with _never_cast(denoiser):
                _load(pipeline, keys, [state for state, _, _ in models])
        except (AttributeError, RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            reason = f"diffusers cannot put it into {loaded.family.name} ({first_line(error)})"
            cure = "choose one that was made for this model"
            raise InputError("image prompt model", keys[0].source, reason, cure) from error
        if (projection := getattr(denoiser, "encoder_hid_proj", None)) is not None:
            projection.to(loaded.device, loaded.dtype)
        made = denoiser.attn_processors
        # The layers that no image prompt reaches keep the processor that they had.
        kept = {
            name: each if "IPAdapter" in type(each).__name__ else before.get(name, each) for name, each in made.items()
        }
        denoiser.set_attn_processor(dict(kept))
        for processor in kept.values():
            if hasattr(processor, "to_k_ip"):
                processor.to(loaded.device, loaded.dtype)
        pipeline.set_ip_adapter_scale(strengths if len(strengths) > 1 else strengths[0])
        yield


@contextmanager
def _never_cast(denoiser: Any) -> Iterator[None]:
    """diffusers casts a whole UNet to its own dtype once an IP-Adapter is in, for the adapter's layers: a model that
    was quantized while loading refuses that, and another's scales would be rounded for good."""
    denoiser.to = lambda *args, **kwargs: denoiser
    try:
        yield
    finally:
        del denoiser.to


def _of_config(config: dict[str, Any]) -> tuple[Any, bool]:
    return config.get("encoder_hid_dim_type"), "encoder_hid_dim_type" in config


def _put_back(owner: Any, name: str, value: Any, was_there: bool) -> None:
    if was_there:
        setattr(owner, name, value)
    elif hasattr(owner, name):
        delattr(owner, name)


def _load(pipeline: Any, keys: list[ImagePromptKey], states: list[Any]) -> None:
    names = [Path(key.source).name for key in keys]
    takes = inspect.signature(pipeline.load_ip_adapter).parameters
    encoder = next((name for name in takes if name in _ENCODER_ARGUMENTS), "")  # a modular one has it already
    own = {encoder: None} if encoder else {}
    if takes["weight_name"].default is not inspect.Parameter.empty:  # Stable Diffusion 3's takes a single one
        pipeline.load_ip_adapter(states[0], weight_name=names[0], **own)
    else:
        pipeline.load_ip_adapter(states, subfolder=[""] * len(states), weight_name=names, **own)


def _redux_embeddings(
    loaded: LoadedPipeline, request: SampleRequest, models: list[Any], pictures: list[Any], strengths: list[float]
) -> dict[str, Any]:
    """What takes the prompt's place: text and pictures encoded together, by diffusers' own prior."""
    import diffusers
    import torch

    encoder, extractor, embedder = models[0]
    own = loaded.pipeline
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    prior: Any = getattr(diffusers, REDUX)(
        image_encoder=encoder.to(loaded.device),
        feature_extractor=extractor,
        image_embedder=embedder.to(loaded.device),
        **{name: getattr(own, name) for name in texts},
    )
    with torch.no_grad():
        embeds, pooled = prior(
            pictures,
            prompt=[request.prompt] * len(pictures),
            prompt_embeds_scale=strengths,
            pooled_prompt_embeds_scale=strengths,
            return_dict=False,
        )
    return {**dict.fromkeys(_PROMPTS), "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _read(key: ImagePromptKey, loaded: LoadedPipeline) -> Any:
    """(state, encoder, what prepares its pictures) of an IP-Adapter; (encoder, the same, embedder) of Redux."""
    if resolve_image_prompt(key.source, key.encoder) != key:
        raise ModelFileError("image prompt model", key.source, "its files changed since they were checked", "run again")
    with reading_errors(Path(key.source)):
        if key.redux:
            folder = Path(key.source)
            encoder, extractor = _vision(folder / "image_encoder", loaded, folder / "feature_extractor")
            made: Any = importlib.import_module("diffusers.pipelines.flux").ReduxImageEncoder
            options: dict[str, Any] = {"torch_dtype": loaded.dtype, "use_safetensors": True, "local_files_only": True}
            return encoder, extractor, made.from_pretrained(str(folder / "image_embedder"), **options).eval()
        from safetensors.torch import load_file

        state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in load_file(key.source).items():
            part, _, rest = name.partition(".")
            if part in state:
                state[part][rest] = tensor.to(loaded.dtype)
        return state, *_vision(Path(key.encoder), loaded)


def _vision(folder: Path, loaded: LoadedPipeline, prepares: Path | None = None) -> tuple[Any, Any]:
    """(vision model, what prepares pictures for it).

    Args:
        prepares: folder of the latter's configuration, where there is one; else it is the encoder's own size, as
            diffusers makes it for an IP-Adapter.
    """
    import transformers

    model_name, processor_name = ENCODERS[str(read_json(folder / "config.json")["model_type"])]
    options: dict[str, Any] = {"dtype": loaded.dtype, "use_safetensors": True, "local_files_only": True}
    model = getattr(transformers, model_name).from_pretrained(str(folder), **options).eval().requires_grad_(False)
    processor: Any = getattr(transformers, processor_name)
    for place in (prepares, folder):
        if place is not None and (place / "preprocessor_config.json").is_file():
            return model, processor.from_pretrained(str(place), local_files_only=True)
    size = model.config.image_size
    if processor_name == "CLIPImageProcessor":
        return model, processor(size=size, crop_size=size)
    return model, processor(size={"height": size, "width": size})
