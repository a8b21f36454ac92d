"""What goes with a diffusion model, of the files at hand: text encoders, VAE and second expert, by their headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ....errors import InputError, ModelFileError
from .component import AUDIO_INPUT, PartsFamily, input_of
from .fit import problem_of
from .header import read_part
from .models import FAMILIES
from .plan import family_of_part

_FILE = re.compile(r"[\w.-]+\.safetensors")


def choose_text_encoders(
    diffusion_model: Path, given: Sequence[Path], at_hand: Sequence[Path], of_texts: bool = True
) -> list[Path]:
    """The text encoders that are given, and for the rest those at hand that fit: by their usual names, else the first.

    Args:
        of_texts: False where texts come encoded: encoders of pictures alone are looked for.

    Raises:
        InputError: none fits.
    """
    family = family_of_part(diffusion_model)
    chosen = list(given)
    for slot in family.encoders:
        if not of_texts and slot in {*family.text_encoders, *family.joined}:
            continue
        if any(_fits(family, slot, file, diffusion_model) for file in chosen):
            continue
        if slot in {*family.inside, *family.joined} and _fits(family, slot, diffusion_model, diffusion_model):
            continue
        fitting = _fitting(family, slot, at_hand, diffusion_model)
        if not fitting:
            raise InputError("text_encoder", "auto", _none(family, slot), f"get {family.components[slot].usual}")
        chosen.append(fitting[0])
    return chosen


def choose_vae(diffusion_model: Path, at_hand: Sequence[Path]) -> Path | None:
    """The VAE that fits, in the diffusion model's file or at hand, by its usual name, else the only one.

    None of a model whose VAE is not read in parts.

    Raises:
        InputError: none fits, or several do: other models' VAEs may have the same tensors.
    """
    family = family_of_part(diffusion_model)
    if "vae" in family.inside and _fits(family, "vae", diffusion_model, diffusion_model):
        return diffusion_model
    if "vae" in family.elsewhere:
        return None
    usual = family.components["vae"].usual
    fitting = _fitting(family, "vae", at_hand, diffusion_model)
    if not fitting:
        raise InputError("vae", "auto", _none(family, "vae"), f"get {usual}")
    if len(fitting) > 1 and fitting[0].name not in _FILE.findall(usual):
        names = ", ".join(file.name for file in fitting)
        raise InputError("vae", "auto", f"several fit, and their tensors do not tell which: {names}", "choose one")
    return fitting[0]


def choose_audio_vae(diffusion_model: Path, at_hand: Sequence[Path]) -> Path | None:
    """The VAE for sound that fits, in the diffusion model's file or of those at hand; None of a model without sound.

    Raises:
        InputError: none fits.
    """
    family = family_of_part(diffusion_model)
    slots = [slot for slot in family.components if input_of(slot) == AUDIO_INPUT]
    if not slots:
        return None
    inside = [diffusion_model] if slots[0] in family.inside else []
    files = [*inside, *_fitting(family, slots[0], at_hand, diffusion_model)]
    found = [file for file in files if all(_fits(family, slot, file, diffusion_model) for slot in slots)]
    if not found:
        cure = f"get {family.components[slots[0]].usual}, or choose none to make no sound"
        raise InputError(AUDIO_INPUT, "auto", _none(family, slots[0]), cure)
    return found[0]


def choose_second_expert(diffusion_model: Path, at_hand: Sequence[Path]) -> Path | None:
    """Of a model of two experts, the file whose name is the first one's with low for high."""
    family = family_of_part(diffusion_model)
    if family.expert(diffusion_model.stem) != "high":
        return None
    wanted = re.sub("high(?=[-_ ]?noise)", "low", diffusion_model.name, flags=re.IGNORECASE).lower()
    found = next((file for file in at_hand if file.name.lower() == wanted), None)
    if found is None:
        reason = f"{diffusion_model.name} is one of two experts, and there is no {wanted}"
        raise InputError("second_expert", "auto", reason, f"get or choose {family.components[family.second].usual}")
    return found


def _fitting(family: PartsFamily, slot: str, files: Sequence[Path], diffusion_model: Path) -> list[Path]:
    """Those that fit and have no other component's usual name, the usual names of this one first."""
    usual = _FILE.findall(family.components[slot].usual)
    others = {
        name
        for other in FAMILIES
        for component in other.components.values()
        for name in _FILE.findall(component.usual)
        if name not in usual
    }
    fitting = [file for file in files if file.name not in others and _fits(family, slot, file, diffusion_model)]
    return sorted(fitting, key=lambda file: (usual.index(file.name) if file.name in usual else len(usual), file.name))


def _fits(family: PartsFamily, slot: str, file: Path, diffusion_model: Path) -> bool:
    try:
        told = family.components[slot].told_by(read_part(file, "file").shapes)
        return told and not problem_of(family, slot, file, diffusion_model, "file")
    except (ModelFileError, OSError, ImportError):
        return False


def _none(family: PartsFamily, slot: str) -> str:
    return f"{family.title} needs {family.components[slot].title}, and none of the files at hand is one"
