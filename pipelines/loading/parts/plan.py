"""Which file is which part of a model: told from headers, each checked against its network, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....errors import InputError, ModelFileError
from ...families import Family
from ...recognize import family_of_configuration
from .. import checkpoints
from ..small_files import plain_path, read_json
from .component import (
    AUDIO_INPUT,
    ENCODER_INPUT,
    MODEL_INPUT,
    Config,
    PartsFamily,
    Shapes,
    input_of,
)
from .fit import beside, beside_files, configuration, empty_network, problem_of
from .gguf import is_gguf, is_language_model
from .header import Part, is_lora, read_part
from .models import TITLES, as_other_part, family_of_file, why_not_read

NONE = "none"
"""Instead of a file: the component is left out."""
Parts = tuple[tuple[str, str], ...]
"""(component, absolute path), the diffusion model first."""


def locate_parts(
    diffusion_model: str, text_encoders: Sequence[str], vae: str, second: str = "", audio_vae: str = ""
) -> tuple[Parts, str]:
    """Find out which file is which component, and check that each fits, reading headers only.

    Args:
        text_encoders, vae: files, or `NONE`: texts come encoded then, and latents are decoded elsewhere.
        second: of a model of two experts, the one for the steps of little noise.
        audio_vae: of a model that makes sound, the file of its VAE for it, or `NONE`: no sound is made.

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
        _refuse_elsewhere(family, "text_encoder", text)
        file = _path("text_encoder", text)
        slot = _encoder_slot(family, file, chosen, found)
        if encoded and slot in family.text_encoders:
            raise InputError("text_encoder", text, f"another one is {NONE}: they go together", f"use {NONE} for all")
        found[slot] = file
    if vae and vae != NONE:
        _refuse_elsewhere(family, "vae", vae)
        found["vae"] = _path("vae", vae)
        _require(family, "vae", found["vae"], chosen, "vae")
    of_sound = [slot for slot in family.components if input_of(slot) == AUDIO_INPUT]
    if audio_vae and audio_vae != NONE:
        found |= dict.fromkeys(of_sound, _sound_file(family, of_sound, audio_vae, chosen))
    left = {*(family.text_encoders if encoded else ()), *(("vae",) if vae == NONE else ())}
    left |= {*(of_sound if audio_vae == NONE else ())}
    for slot in family.inside:
        if slot not in {*found, *left} and family.components[slot].told_by(part.shapes):
            found[slot] = chosen
            _require(family, slot, chosen, chosen, MODEL_INPUT)
    if vae == NONE:
        left |= {*of_sound}
    _require_all(family, found, {*found, *left, family.second}, encoded)
    if problem := family.agree({slot: _shapes(family, slot, file, chosen) for slot, file in found.items()}):
        raise ModelFileError(MODEL_INPUT, str(chosen), problem, "give files of one model")
    parts = tuple((slot, str(found[slot])) for slot in family.components if slot in found)
    marks = [checkpoints.fingerprint(Path(path)) for _, path in parts]
    marks += [str(sorted(beside_files(chosen)))]
    return parts, hashlib.sha256(" ".join(marks).encode()).hexdigest()[:16]


def _require_all(family: PartsFamily, found: dict[str, Path], given: set[str], encoded: bool) -> None:
    """Raise InputError where a component is neither found nor left out."""
    lacking = [slot for slot in family.components if slot not in given]
    for slot in [slot for slot in lacking if slot in family.joined]:
        whole = found.get(family.joined[slot])
        held = whole is not None and family.components[slot].told_by(read_part(whole, "file").shapes)
        if encoded or held or whole is None:  # without the whole, that is what is said to be missing
            lacking.remove(slot)
    if lacking:
        name = input_of(lacking[0])
        reason = (
            f"{family.title} needs {' and '.join(dict.fromkeys(family.components[slot].usual for slot in lacking))}"
        )
        cure = {"vae": ", or ask for the latent alone", AUDIO_INPUT: f", or {NONE} to make no sound"}.get(name, "")
        raise InputError(name, "", reason, f"add --{name.replace('_', '-')} FILE{cure}")


def _refuse_elsewhere(family: PartsFamily, slot: str, text: str) -> None:
    """Raise InputError for the file of a component that ComfyUI's own nodes read alone."""
    if slot in family.elsewhere:
        cures = {
            "text_encoder": "connect CLIP Text Encode to the sampler's positive",
            "vae": "connect Load VAE to comfyui_vae, or decode the latent with VAE Decode",
        }
        reason = f"{family.elsewhere[slot].title} is not read in parts"
        raise InputError(slot, text, reason, f"use {NONE}" + (f", and {cures[slot]}" if slot in cures else ""))


def _sound_file(family: PartsFamily, slots: Sequence[str], text: str, chosen: Path) -> Path:
    """The file of a VAE for sound, with all that it is to hold."""
    _refuse_elsewhere(family, AUDIO_INPUT, text)
    if not slots:
        raise InputError(AUDIO_INPUT, text, f"{chosen.name} is {family.title}'s, which makes no sound", "leave it out")
    file = _path(AUDIO_INPUT, text)
    for slot in slots:
        _require(family, slot, file, chosen, AUDIO_INPUT)
    return file


def _shapes(family: PartsFamily, slot: str, file: Path, chosen: Path) -> Shapes:
    name = MODEL_INPUT if file == chosen else input_of(slot)
    return read_part(file, name).only(family.components[slot]).shapes


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


def left_out(parts: Parts) -> list[str]:
    """Names of the inputs whose components were left out of what `locate_parts` found."""
    family = family_of_part(Path(parts[0][1]))
    names = ("text_encoder", "vae", AUDIO_INPUT)
    return [name for name in names if name in {**family.components, **family.elsewhere} and name not in dict(parts)]


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
    family = family_of_part(diffusion_model)
    component = {**family.elsewhere, **family.components}["vae"]
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


def _require(family: PartsFamily, slot: str, file: Path, chosen: Path, name: str) -> None:
    _refuse_gguf(file, name, family.components[slot].usual)
    if problem := problem_of(family, slot, file, chosen, name):
        usual = family.components[slot].usual
        raise ModelFileError(name, str(file), f"it does not fit: {problem}", f"give {usual}")


def _refuse_gguf(file: Path, name: str, usual: str) -> None:
    if is_gguf(file) and name in (ENCODER_INPUT, "vae", AUDIO_INPUT):
        raise ModelFileError(name, str(file), "GGUF is read for diffusion models only", f"give {usual}")


def _encoder_slot(family: PartsFamily, file: Path, chosen: Path, found: dict[str, Path]) -> str:
    """The text encoder of a family that a file is: of several that have its names, the one whose sizes it has."""
    _refuse_gguf(file, "text_encoder", _lacking(family, found))
    shapes = read_part(file, "text_encoder").shapes
    slots = [slot for slot in family.encoders if family.components[slot].told_by(shapes)]
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
