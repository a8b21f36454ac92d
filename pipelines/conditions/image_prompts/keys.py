"""Pictures as prompts: IP-Adapters and Flux Redux, found and checked without reading weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....cache_folder import cache_folder
from ....errors import InputError, ModelFileError
from ....safetensors_header import read_header
from ... import tiny
from ...classes.forms import class_of
from ...loading.small_files import identity_of, plain_path, read_json
from ...loading.sources import TINY
from ..kinds import ImagePromptCondition, ImagePromptKey
from ..pictures import shape_of
from ..taking import call_takes, component_classes, modular_class
from .files import CLIP, SIGLIP, check_encoder, check_redux_encoder, projection_of

if TYPE_CHECKING:
    from ...families import Family
    from ...types import SampleRequest

REDUX = "FluxPriorReduxPipeline"
ENCODERS = {
    CLIP: ("CLIPVisionModelWithProjection", "CLIPImageProcessor"),
    SIGLIP: ("SiglipVisionModel", "SiglipImageProcessor"),
}
"""`model_type` of a vision model's configuration -> its class in transformers, and that of what prepares its pictures.
"""
MOST_STRENGTH = 2.0
_BESIDE = ("image_encoder", "../image_encoder")
"""Where an IP-Adapter's vision model is, seen from its file: as in the repositories that they come from."""
_CURE = "choose an IP-Adapter's .safetensors file or a Flux Redux folder"


def image_prompts_of(request: SampleRequest) -> list[ImagePromptCondition]:
    """The image prompts of a request, in their order."""
    return [condition for condition in request.conditions if isinstance(condition, ImagePromptCondition)]


def resolve_image_prompt(source: str, encoder: str = "") -> ImagePromptKey:
    """Check what reads a picture as a prompt, without reading its weights.

    Args:
        source: an IP-Adapter's .safetensors file, the folder of Flux Redux, or "tiny:<family>" for an embedded one.
        encoder: folder of the IP-Adapter's vision model; "" for `image_encoder` beside its file or one folder up.

    Raises:
        ModelFileError, InputError: there is none, or it is neither, or its vision model is not the one that it was
            trained with.
    """
    if source.startswith(TINY) and not encoder:
        source = str(tiny.image_prompt_file(source.removeprefix(TINY), cache_folder()))
    path = plain_path("image prompt model", source, ModelFileError).absolute()
    if path.is_dir():
        if encoder:
            reason, cure = "Flux Redux has a vision model of its own", "leave it out (--image-prompt-encoder)"
            raise InputError("image prompt encoder", encoder, reason, cure)
        return _redux(path)
    if path.suffix != ".safetensors" or not path.is_file():
        reason = "there is no such file or folder" if not path.exists() else "it is no .safetensors file"
        raise ModelFileError("image prompt model", str(path), reason, _CURE)
    beginnings = {name.split(".", 1)[0] for name in read_header(path, "image prompt model")}
    if not {"image_proj", "ip_adapter"} <= beginnings:
        reason = "it holds no IP-Adapter: no layers of image_proj and ip_adapter"
        raise ModelFileError("image prompt model", str(path), reason, _CURE)
    projection_of(path)
    folder = _encoder_folder(path, encoder)
    check_encoder(folder, path)
    files = (path, folder / "config.json", *sorted(folder.glob("*.safetensors")))
    return ImagePromptKey(str(path), str(folder), identity_of(files))


def find_redux(folder: Path) -> list[Path]:
    """The Flux Redux folders directly below a folder, sorted."""
    try:
        children = sorted(path for path in folder.iterdir() if (path / "model_index.json").is_file())
    except OSError:  # unreadable or vanished: there is nothing to offer
        return []
    return [path for path in children if _class_named(path) == REDUX]


def _class_named(folder: Path) -> str:
    try:
        return str(read_json(folder / "model_index.json").get("_class_name", ""))
    except ModelFileError:
        return ""


def check_image_prompts(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the image prompts; [] without one.

    Raises:
        InputError: this model takes none of that kind, or not so many.
    """
    prompts, notes = image_prompts_of(request), []
    for prompt in prompts:
        shape = shape_of("image_prompt", prompt.image, "an image prompt is [batch, height, width, 3 or 4]")
        if not 0.0 <= prompt.strength <= MOST_STRENGTH:
            reason = f"it must be between 0 and {MOST_STRENGTH:g}"
            raise InputError("image prompt strength", prompt.strength, reason, "1 is as it was trained")
        if shape[0] > 1:
            notes.append(f"image_prompt: the first of {shape[0]} is used.")
    if not prompts:
        return []
    pipeline_class = class_of(family)
    name = getattr(pipeline_class, "__name__", family.name)
    leave = "leave the image prompt out"
    if len({prompt.model.redux for prompt in prompts}) > 1:
        raise InputError("image_prompt", "IP-Adapter and Redux", "a run takes one kind of them", "leave one kind out")
    _check_together(prompts)
    kind = "Flux Redux" if prompts[0].model.redux else "an IP-Adapter"
    is_flux = name.startswith("Flux") and "pooled_prompt_embeds" in call_takes(name)
    takes = is_flux if prompts[0].model.redux else hasattr(pipeline_class, "load_ip_adapter")
    if modular_class(name) is not None:
        takes = not prompts[0].model.redux and takes and "ip_adapter_image" in call_takes(name)
    if not takes:
        raise InputError("image_prompt", kind, f"{family.name} takes none of that kind", leave)
    if prompts[0].model.redux and request.positive is not None:
        reason = "Flux Redux adds to a prompt that is text, and this one is encoded already"
        raise InputError("image_prompt", kind, reason, "give the prompt as text, or leave the image prompt out")
    if prompts[0].model.redux and request.max_sequence_length not in (None, 512):
        notes.append("max_sequence_length ignored: with Flux Redux the prompt has 512 tokens.")
    several = "unet" in _parts(pipeline_class) or bool(component_classes(name, "unet"))
    if not prompts[0].model.redux and len(prompts) > 1 and not several:
        raise InputError("image_prompt", f"{len(prompts)} of them", f"{family.name} takes one", "leave the others out")
    return notes


def _check_together(prompts: list[ImagePromptCondition]) -> None:
    """Raise InputError for image prompts that one run cannot read: it has one vision model."""
    if prompts[0].model.redux and len({prompt.model for prompt in prompts}) > 1:
        raise InputError("image_prompt", "several Flux Redux", "a run takes one", "use the same for all image prompts")
    encoders = {prompt.model.encoder for prompt in prompts}
    if len(encoders) > 1:
        reason = f"a run reads its image prompts with one vision model, and these name {len(encoders)}"
        cure = "choose IP-Adapters with the same, or name its folder for each (image_encoder, --image-prompt-encoder)"
        raise InputError("image prompt encoder", sorted(encoders), reason, cure)


def check_form_takes(request: SampleRequest, form: str) -> None:
    """Raise InputError where the class that is called for a request takes no image prompt.

    Args:
        form: name of the class that is called instead of the pipeline's own.
    """
    prompts = image_prompts_of(request)
    wanted = "pooled_prompt_embeds" if prompts and prompts[0].model.redux else "ip_adapter_image"
    if prompts and form and wanted not in call_takes(form):
        reason = f"{form}, which the other inputs want, takes none"
        raise InputError("image_prompt", "given", reason, "leave it out, or the other inputs")


def described(request: SampleRequest) -> str:
    """The image prompts of a request, for the report."""
    shown = (f"{Path(prompt.model.source).name} {prompt.strength:g}" for prompt in image_prompts_of(request))
    return "; ".join(shown)


def _parts(pipeline_class: type | None) -> set[str]:
    import inspect

    return set() if pipeline_class is None else set(inspect.signature(pipeline_class).parameters)


def _redux(folder: Path) -> ImagePromptKey:
    index = folder / "model_index.json"
    name = str(read_json(index).get("_class_name", "")) if index.is_file() else ""
    if name != REDUX:
        reason = f"it holds a {name}, which is not Flux Redux" if name else "there is no model_index.json in it"
        raise ModelFileError("image prompt model", str(folder), reason, _CURE)
    parts = [folder / part for part in ("image_encoder", "image_embedder")]
    weights = [sorted(part.glob("*.safetensors")) for part in parts]
    for part, files in zip(parts, weights, strict=True):
        if not files:
            reason = f"its {part.name} has no .safetensors weights"
            raise ModelFileError("image prompt model", str(folder), reason, "download it again")
    check_redux_encoder(folder)
    return ImagePromptKey(str(folder), "", identity_of((index, *weights[0], *weights[1])), redux=True)


def _encoder_folder(file: Path, chosen: str) -> Path:
    if chosen:
        folder = plain_path("image prompt encoder", chosen, ModelFileError).absolute()
    else:
        places = [(file.parent / place).resolve() for place in _BESIDE]
        found = next((place for place in places if (place / "config.json").is_file()), None)
        if found is None:
            reason = f"the vision model that {file.name} reads pictures with is not beside it"
            cure = f"put its folder there as {places[0]}, or name it (--image-prompt-encoder)"
            raise InputError("image prompt encoder", "none", reason, cure)
        folder = found
    config = folder / "config.json"
    kind = str(read_json(config).get("model_type", "")) if config.is_file() else ""
    if kind not in ENCODERS or not any(folder.glob("*.safetensors")):
        reason = "it holds no CLIP or SigLIP vision model with .safetensors weights"
        raise ModelFileError("image prompt encoder", str(folder), reason, "choose the one of the IP-Adapter")
    return folder
