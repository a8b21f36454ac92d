"""Which file is which part of a model: told from headers, each checked against its network, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....errors import InputError, MissingDependencyError, ModelFileError
from ....fallback import is_out_of_memory
from ....safetensors_header import read_header
from ...families import Family
from ...recognize import family_of_configuration
from .. import checkpoints
from ..small_files import plain_path, read_json
from .component import DIFFUSION_MODEL, ENCODER_INPUT, UNREADABLE, Component, Config, PartsFamily
from .gguf import is_gguf, is_language_model
from .header import Part, QuantizationNotReadError, is_lora, read_part
from .models import FAMILIES, TITLES, as_other_part, family_of_file, kind_of_shapes, why_not_read
from .nunchaku import is_nunchaku

NONE = "none"
"""Instead of a file: the component is left out."""
Parts = tuple[tuple[str, str], ...]
"""(component, absolute path), the diffusion model first."""


def locate_parts(diffusion_model: str, text_encoders: Sequence[str], vae: str, second: str = "") -> tuple[Parts, str]:
    """Find out which file is which component, and check that each fits, reading headers only.

    Args:
        text_encoders, vae: files, or `NONE`: texts come encoded then, and latents are decoded elsewhere.
        second: of a model of two experts, the one for the steps of little noise.

    Returns:
        the parts, and an identity that changes with any of the files.

    Raises:
        ModelFileError: a file is damaged, or none of a family that is read in parts, or not the part it is given as.
        InputError: a part is missing or given twice.
    """
    chosen = _path("diffusion_model", diffusion_model)
    part = read_part(chosen, "diffusion_model")
    family = _family(part)
    found = {family.diffusion_model: chosen}
    if family.expert(chosen.stem) == "low":
        reason = f"its name says that it is {family.components[family.second].title}"
        cure = f"give it as the second expert, and here {family.components[family.diffusion_model].usual}"
        raise InputError("diffusion_model", str(chosen), reason, cure)
    _require(family, family.diffusion_model, chosen, chosen, "diffusion_model")
    if expert := _second_expert(family, chosen, second):
        found[family.second] = expert
    encoded = NONE in text_encoders
    for text in text_encoders:
        if text == NONE:
            continue
        file = _path("text_encoder", text)
        slot = _encoder_slot(family, file, chosen, found)
        if encoded and slot in family.text_encoders:
            raise InputError("text_encoder", text, f"another one is {NONE}: they go together", f"use {NONE} for all")
        found[slot] = file
    if vae and vae != NONE:
        found["vae"] = _path("vae", vae)
        _require(family, "vae", found["vae"], chosen, "vae")
    given = {*found, family.second, *(family.text_encoders if encoded else ()), *(("vae",) if vae == NONE else ())}
    if lacking := [slot for slot in family.components if slot not in given]:
        name = "vae" if lacking == ["vae"] else "text_encoder"
        reason = f"{family.title} needs {' and '.join(family.components[slot].usual for slot in lacking)}"
        cure = f"add --{name.replace('_', '-')} FILE"
        raise InputError(name, "", reason, cure + (", or ask for the latent alone" if name == "vae" else ""))
    parts = tuple((slot, str(found[slot])) for slot in family.components if slot in found)
    marks = [checkpoints.fingerprint(Path(path)) for _, path in parts]
    marks += [str(sorted(_beside_files(chosen)))]
    return parts, hashlib.sha256(" ".join(marks).encode()).hexdigest()[:16]


def _second_expert(family: PartsFamily, chosen: Path, text: str) -> Path | None:
    """The expert for the steps of little noise, where the family has one and it is given."""
    if not family.second:
        if text:
            reason = f"{chosen.name} is {family.title}'s, which has one diffusion model"
            raise InputError("second_expert", text, reason, "leave it out")
        return None
    other = family.components[family.second].usual
    if not text:
        if family.needs_second(chosen.stem):
            reason = f"{chosen.name} is one of the two experts of {family.title}"
            raise InputError("second_expert", "", reason, f"add --second-expert FILE: {other}")
        return None
    file = _path("second_expert", text)
    if family.expert(file.stem) == "high":
        reason = f"its name says that it is {family.components[family.diffusion_model].title}"
        raise InputError("second_expert", text, reason, f"give it as the diffusion model, and here {other}")
    if file.resolve() == chosen.resolve():
        raise InputError("second_expert", text, "it is the diffusion model again", f"give {other}")
    _require(family, family.second, file, chosen, "second_expert")
    return file


def kind_of_part(file: Path) -> str:
    """What a file may be: `DIFFUSION_MODEL`, `TEXT_ENCODER` or `VAE` of any family; `UNREADABLE` where its header
    cannot be read, "" for any other file."""
    return _kind(str(file), checkpoints.stamp(file)) if file.is_file() else ""


@lru_cache(maxsize=4096)
def _kind(path: str, stamp: str) -> str:
    """`stamp` is for the cache."""
    file = Path(path)
    try:
        part = read_part(file, "file")
    except QuantizationNotReadError:
        return UNREADABLE
    except (ModelFileError, MissingDependencyError):
        return UNREADABLE if is_gguf(file) or _is_damaged(file) or is_nunchaku(read_header(file)) else ""
    kind = kind_of_shapes(part.shapes, file.stem)
    return kind if kind in (DIFFUSION_MODEL, UNREADABLE) or not part.is_gguf else ""


def _is_damaged(file: Path) -> bool:
    try:
        read_header(file)
    except ModelFileError:
        return True
    return False


def family_of_parts(diffusion_model: Path) -> Family:
    """The family of a model in parts, as the loaded pipeline will have it."""
    import diffusers

    part = read_part(diffusion_model, "diffusion_model")
    family = _family(part)
    slot = family.diffusion_model
    config = configuration(slot, family.components[slot], part, diffusion_model)
    return family_of_configuration(getattr(diffusers, family.pipeline), family.settings, {slot: config})


def denoiser_of_parts(diffusion_model: Path) -> tuple[type, Config]:
    """Class and configuration of the denoiser of a model in parts."""
    import diffusers

    part = read_part(diffusion_model, "diffusion_model")
    family = _family(part)
    component = family.components[family.diffusion_model]
    config = configuration(family.diffusion_model, component, part, diffusion_model)
    return getattr(diffusers, component.class_name), config


def absent_vae(diffusion_model: Path) -> Any:
    """The VAE of a model in parts without memory or content: what it says of its latents is all that it can be
    asked."""
    component = family_of_part(diffusion_model).components["vae"]
    own = beside(diffusion_model) / "vae" / "config.json"
    return empty_network(component, read_json(own) if own.is_file() else component.config({}))


def family_of_part(diffusion_model: Path) -> PartsFamily:
    """How a model in parts is read, from its diffusion model. Raises ModelFileError where it cannot be."""
    return _family(read_part(diffusion_model, "diffusion_model"))


def _family(part: Part) -> PartsFamily:
    if is_lora(part.shapes):
        cure = "give the diffusion model that it changes, and this file to Load LoRA (Diffusers) or --lora"
        raise ModelFileError("diffusion_model", str(part.path), "it is a LoRA, which changes a model and is none", cure)
    family = family_of_file(part.shapes, part.path.stem)
    if family is None:
        others = f"it is not the diffusion model of a family that is read in parts: {TITLES}"
        cure = "use the model's folder in diffusers format"
        if is_language_model(part.shapes):
            others = "it is a text encoder, as llama.cpp has them, and not the diffusion model of a family"
            cure = "give the diffusion model here, and as --text-encoder its .safetensors: GGUF is not read for them"
        elif other := as_other_part(part.shapes):
            title, given_as, models = other
            others = f"it is {title}, and not the diffusion model of a family"
            cure = f"give it as --{given_as.replace('_', '-')}, and here what it goes with: {models}"
        raise ModelFileError("diffusion_model", str(part.path), why_not_read(part.shapes) or others, cure)
    return family


def beside(diffusion_model: Path) -> Path:
    """The folder of the same name beside a diffusion model: its configurations and tokenizers go before the pack's."""
    return diffusion_model.with_suffix("")


def configuration(slot: str, component: Component, part: Part, diffusion_model: Path) -> Config:
    """The configuration of a component: of the folder beside the diffusion model, else the published one."""
    own = beside(diffusion_model) / slot / "config.json"
    return read_json(own) if own.is_file() else component.config(part.shapes)


def empty_network(component: Component, config: Config) -> Any:
    """The network that a configuration describes, without memory."""
    import diffusers
    import torch
    import transformers

    library = diffusers if component.library == "diffusers" else transformers
    found: Any = getattr(library, component.class_name)
    with torch.device("meta"):
        if component.library == "diffusers":
            return found.from_config(config)
        return found(found.config_class.from_dict(config))


@lru_cache(maxsize=64)
def _problem(family: int, slot: str, path: str, stamp: str, diffusion_model: str, name: str) -> str:
    """Why a file is not the component `slot`, "" where it is. `family` is a number in the table, `stamp` is for the
    cache."""
    import torch

    part = read_part(Path(path), name)
    if is_lora(part.shapes):
        return "it is a LoRA"
    component = FAMILIES[family].components[slot]
    if part.svdq is not None:
        return part.svdq.problem(component, configuration(slot, component, part, Path(diffusion_model)))
    try:
        config = configuration(slot, component, part, Path(diffusion_model))
        weights = {key: torch.empty(shape, device="meta") for key, shape in part.shapes.items()}
        held = {key: tuple(value.shape) for key, value in component.rename(weights, config).items()}
        wanted = {key: tuple(value.shape) for key, value in empty_network(component, config).state_dict().items()}
    except ModelFileError:
        raise
    except Exception as error:  # the converters raise anything for the tensors of another model
        if is_out_of_memory(error):
            raise
        return f"its tensors are another model's ({type(error).__name__}: {str(error)[:80]})"
    for key in (*wanted, *held):
        if wanted.get(key) != held.get(key):
            return f"{key!r} is {held.get(key, 'missing')} in it and {wanted.get(key, 'not in the model')} in the model"
    return ""


def problem_of(family: PartsFamily, slot: str, file: Path, chosen: Path, name: str) -> str:
    """Why a file is not the component `slot` of the diffusion model `chosen`, "" where it is.

    Raises:
        ModelFileError: it is damaged.
    """
    stamp = checkpoints.stamp(file) + str(_beside_files(chosen))
    return _problem(FAMILIES.index(family), slot, str(file), stamp, str(chosen), name)


def _require(family: PartsFamily, slot: str, file: Path, chosen: Path, name: str) -> None:
    _refuse_gguf(file, name, family.components[slot].usual)
    if problem := problem_of(family, slot, file, chosen, name):
        usual = family.components[slot].usual
        raise ModelFileError(name, str(file), f"it does not fit: {problem}", f"give {usual}")


def _refuse_gguf(file: Path, name: str, usual: str) -> None:
    if is_gguf(file) and name in (ENCODER_INPUT, "vae"):
        raise ModelFileError(name, str(file), "GGUF is read for diffusion models only", f"give {usual}")


def _encoder_slot(family: PartsFamily, file: Path, chosen: Path, found: dict[str, Path]) -> str:
    """The text encoder of a family that a file is: of several that have its names, the one whose sizes it has."""
    _refuse_gguf(file, "text_encoder", _lacking(family, found))
    shapes = read_part(file, "text_encoder").shapes
    slots = [slot for slot in family.encoders if family.components[slot].told(shapes)]
    if not slots:
        titles = ", ".join(family.components[slot].title for slot in family.encoders)
        what = "a LoRA, and no" if is_lora(shapes) else "no"
        reason = f"it is {what} text encoder of {family.title} ({titles})"
        raise ModelFileError("text_encoder", str(file), reason, f"give {_lacking(family, found)}")
    slot = slots[0]
    _require(family, slot, file, chosen, "text_encoder")
    if slot in found:
        reason = f"it is {family.components[slot].title}, and {found[slot].name} is that too"
        raise InputError("text_encoder", str(file), reason, f"give {_lacking(family, found)}")
    return slot


def _lacking(family: PartsFamily, found: dict[str, Path]) -> str:
    lacking = [family.components[slot].usual for slot in family.encoders if slot not in found]
    return " and ".join(lacking) or "each once"


def _path(name: str, text: str) -> Path:
    path = plain_path(name, text, ModelFileError).absolute()
    if path.suffix in checkpoints.PICKLES:
        checkpoints.refuse_pickle(path)
    return path


def _beside_files(diffusion_model: Path) -> list[tuple[str, int, int]]:
    files = sorted(path for path in beside(diffusion_model).glob("*/*") if path.suffix in (".json", ".txt", ".model"))
    return [(file.parent.name + "/" + file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
