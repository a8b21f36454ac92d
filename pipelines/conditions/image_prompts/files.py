"""What the headers of image prompts' models tell: which vision model reads their pictures, and for which layers they
were made. diffusers asks the same of the weights, once they are loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....errors import InputError, ModelFileError
from ....safetensors_header import read_header, read_shapes
from ...loading.small_files import read_json
from ..kinds import ImagePromptKey

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
"""`model_type` of vision models."""
_NAMES = {CLIP: "CLIP", SIGLIP: "SigLIP"}
_HIDDEN, _PROJECTED, _REDUX, _TEXT = 768, 512, 1152, 4096
"""Sizes that configurations leave out, as the classes have them."""
_MODEL, _ENCODER = "image prompt model", "image prompt encoder"
_ANOTHER = "choose one that was made for this model"
_FACES = ("perceiver_resampler.proj_in.weight", "norm.weight")
"""Layers of IP-Adapters that read what InsightFace measures of a face, where the plain form's are absent."""
_FORMS = {"Flux": ("plain",), "SD3": ("timed",), "UNet": ("plain", "full", "plus")}
"""Beginning of a denoiser's class -> the forms of IP-Adapters that it takes."""


@dataclass(frozen=True)
class Projection:
    """How an IP-Adapter takes what a vision model makes of a picture.

    Attributes:
        form: "plain", "full", "plus", or "timed", Stable Diffusion 3's.
        reads: `model_type` of the vision model.
        projected: it reads that model's projection, one row a picture; else its last hidden states but one.
        takes: numbers in a row that it reads. `gives`: in a row that the denoiser's layers read.
    """

    form: str
    reads: str
    projected: bool
    takes: int
    gives: int


def projection_of(file: Path) -> Projection:
    """What an IP-Adapter's header says of it. Raises ModelFileError for a form that nothing here reads."""
    shapes = read_shapes(file, _MODEL)
    held = {name.removeprefix("image_proj."): shape for name, shape in shapes.items() if name.startswith("image_proj.")}

    def size(name: str, axis: int) -> int:
        shape = held.get(name, ())
        return shape[axis] if len(shape) > axis else 0

    if "time_embedding.linear_1.weight" in held:
        return Projection("timed", SIGLIP, False, size("proj_in.weight", 1), size("proj_out.weight", 0))
    if "proj.weight" in held:
        return Projection("plain", CLIP, True, size("proj.weight", 1), size("norm.weight", 0))
    if "proj.3.weight" in held:
        return Projection("full", CLIP, False, size("proj.0.weight", 0), size("proj.3.weight", 0))
    if held.keys() & set(_FACES):
        reason = "it reads what InsightFace measures of a face, not pictures"
        raise ModelFileError(_MODEL, str(file), reason, "choose an IP-Adapter that reads pictures")
    if {"latents", "proj_in.weight"} <= held.keys():
        return Projection("plus", CLIP, False, size("proj_in.weight", 1), size("proj_out.weight", 0))
    reason = "its image_proj layers are of no form that diffusers reads"
    raise ModelFileError(_MODEL, str(file), reason, "choose an IP-Adapter in diffusers' form")


def check_encoder(folder: Path, file: Path) -> None:
    """Raise ModelFileError for a vision model that an IP-Adapter was not trained with.

    Args:
        folder: of a CLIP or SigLIP vision model. `file`: the IP-Adapter's.
    """
    projection, config = projection_of(file), read_json(folder / "config.json")
    kind = str(config.get("model_type", ""))
    width = config.get("projection_dim", _PROJECTED) if projection.projected else config.get("hidden_size", _HIDDEN)
    if kind != projection.reads:
        reason = f"it is a {_NAMES[kind]} model, and {file.name} reads pictures with {_NAMES[projection.reads]}"
    elif projection.projected and not _projects(folder):
        reason = f"it is saved without its projection, which {file.name} reads"
    elif width != projection.takes:
        reason = f"it makes rows of {width} numbers, and {file.name} reads rows of {projection.takes}"
    else:
        return
    cure = f"choose the vision model that {file.name} was trained with (--image-prompt-encoder)"
    raise ModelFileError(_ENCODER, str(folder), reason, cure)


def check_redux_encoder(folder: Path) -> None:
    """Raise ModelFileError for a Flux Redux folder whose vision model is not the one of its embedder."""
    encoder = read_json(folder / "image_encoder" / "config.json")
    embedder = read_json(folder / "image_embedder" / "config.json")
    kind, width = str(encoder.get("model_type", "")), encoder.get("hidden_size", _HIDDEN)
    wanted = embedder.get("redux_dim", _REDUX)
    if kind != SIGLIP:
        reason = "its image_encoder is no SigLIP vision model"
    elif width != wanted:
        reason = f"its image_encoder makes rows of {width} numbers, and its image_embedder reads rows of {wanted}"
    else:
        return
    raise ModelFileError(_MODEL, str(folder), reason, "download it again")


def check_image_prompt_fits(key: ImagePromptKey, denoiser: type, config: Mapping[str, Any], name: str) -> None:
    """Raise InputError for an image prompt's model whose layers are not those of the denoiser.

    Args:
        denoiser: class of the denoiser, with its configuration.
        name: the pipeline, in words.
    """
    reason = _misfit_of_redux(key, config) if key.redux else _misfit(Path(key.source), denoiser, config, name)
    if reason:
        raise InputError(_MODEL, key.source, f"it does not fit {name}: {reason}", _ANOTHER)


def _misfit_of_redux(key: ImagePromptKey, config: Mapping[str, Any]) -> str:
    gives = read_json(Path(key.source) / "image_embedder" / "config.json").get("txt_in_features", _TEXT)
    takes = config.get("joint_attention_dim", _TEXT)
    return "" if gives == takes else f"it makes rows of {gives} numbers, and the model reads rows of {takes}"


def _misfit(file: Path, denoiser: type, config: Mapping[str, Any], name: str) -> str:
    """Why an IP-Adapter does not fit a denoiser, "" where it does or where nothing is known of such a one."""
    forms = next((forms for beginning, forms in _FORMS.items() if denoiser.__name__.startswith(beginning)), ())
    if not forms:
        return ""
    projection = projection_of(file)
    if projection.form not in forms:
        return "it is of a form for another kind of model"
    taken = inspect.signature(denoiser.__init__).parameters  # type: ignore[misc]
    entries = {entry: value for entry, value in config.items() if entry in taken}
    wanted = _layers(denoiser, json.dumps(entries, default=str))
    beginning, end = "ip_adapter.", ".to_k_ip.weight"
    held = {
        int(index): shape
        for key, shape in read_shapes(file, _MODEL).items()
        if key.startswith(beginning) and key.endswith(end) and (index := key[len(beginning) : -len(end)]).isdecimal()
    }
    for number, (width, reads) in wanted.items():
        found = held.get(number)
        if found is None:
            return f"it has {len(held)} layers, and {name} has {len(wanted)} for it"
        if tuple(found) != (width, reads):
            ours = "x".join(map(str, found))
            return f"its layer {number} is {ours}, and for that of {name} it would have to be {width}x{reads}"
    reads = next(iter(wanted.values()))[1] if wanted else projection.gives
    if projection.gives != reads:
        return f"it makes rows of {projection.gives} numbers, and its layers for {name} would read rows of {reads}"
    return ""


@lru_cache(maxsize=16)
def _layers(denoiser: Any, config: str) -> dict[int, tuple[int, int]]:
    """Number of a layer in an IP-Adapter's file -> (its width, numbers in a row that it reads), of a denoiser that is
    built without memory for weights.

    Args:
        config: its configuration, as JSON.
    """
    import torch

    with torch.device("meta"):
        model = denoiser.from_config(json.loads(config))
    layers = {
        name: model.get_submodule(name.removesuffix(".processor"))
        for name in model.attn_processors
        if not name.startswith("single_transformer_blocks")
    }
    if denoiser.__name__.startswith("UNet"):
        crossing = [each for name, each in layers.items() if "attn1" not in name and "motion_modules" not in name]
        sizes = [(each.to_k.out_features, each.to_k.in_features) for each in crossing]
        return {2 * index + 1: size for index, size in enumerate(sizes)}
    own = [each.to_k.out_features for each in layers.values()]
    reads = model.config.joint_attention_dim if denoiser.__name__.startswith("Flux") else None
    return {index: (width, reads or width) for index, width in enumerate(own)}


def _projects(folder: Path) -> bool:
    """Whether a vision model's weights have its projection: transformers would make up one of random numbers."""
    files = folder.glob("*.safetensors")
    return any(name.startswith("visual_projection") for file in files for name in read_header(file, _ENCODER))
