"""Which file is which part of a model: told from headers, each checked against its network, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....errors import InputError, ModelFileError
from ....fallback import is_out_of_memory
from ...families import Family
from ...recognize import family_of_configuration
from .. import checkpoints
from ..small_files import plain_path, read_json
from . import configurations, flux
from .header import Part, read_part

Parts = tuple[tuple[str, str], ...]
"""(component, absolute path), the diffusion model first."""


def locate_parts(diffusion_model: str, text_encoders: Sequence[str], vae: str) -> tuple[Parts, str]:
    """Find out which file is which component, and check that each fits, reading headers only.

    Returns:
        the parts, and an identity that changes with any of the files.

    Raises:
        ModelFileError: a file is damaged, or none of a family that is read in parts, or not the part it is given as.
        InputError: a part is missing or given twice.
    """
    chosen = _path("diffusion_model", diffusion_model)
    model = read_part(chosen, "diffusion_model")
    if not flux.is_flux(model.shapes):
        reason = "it is not the diffusion model of FLUX.1, the only family that is read in parts"
        raise ModelFileError("diffusion_model", str(chosen), reason, "use the model's folder in diffusers format")
    if not flux.variant(model.shapes):
        reason = "it is a variant of FLUX.1 with other inputs than dev and schnell (Fill, Depth, Canny)"
        raise ModelFileError("diffusion_model", str(chosen), reason, "use the model's folder in diffusers format")
    found = {"transformer": chosen}
    _require("transformer", chosen, chosen, "diffusion_model")
    for text in text_encoders:
        file = _path("text_encoder", text)
        slot = _encoder_slot(file, chosen)
        if slot in found:
            reason = f"it is {flux.USUAL[slot].split(',')[0]}, and {found[slot].name} is that too"
            raise InputError("text_encoder", str(file), reason, f"give {_lacking(found)}")
        found[slot] = file
    if vae:
        file = _path("vae", vae)
        _require("vae", file, chosen, "vae")
        found["vae"] = file
    if lacking := [slot for slot in flux.USUAL if slot not in found]:
        name = "vae" if lacking == ["vae"] else "text_encoder"
        reason = f"FLUX.1 needs {' and '.join(flux.USUAL[slot] for slot in lacking)}"
        raise InputError(name, "", reason, f"add --{name.replace('_', '-')} FILE")
    parts = tuple((slot, str(found[slot])) for slot in flux.CLASSES)
    marks = [checkpoints.fingerprint(found[slot]) for slot in flux.CLASSES]
    marks += [str(sorted(_beside_files(chosen)))]
    return parts, hashlib.sha256(" ".join(marks).encode()).hexdigest()[:16]


def kind_of_part(file: Path) -> str:
    """The component that a file may be: a name of `flux.CLASSES`, "" for any other file, a damaged one included."""
    try:
        return _kind(str(file), checkpoints.stamp(file))
    except (ModelFileError, OSError):
        return ""


@lru_cache(maxsize=4096)
def _kind(path: str, stamp: str) -> str:
    """`stamp` is for the cache."""
    return flux.slot_of(read_part(Path(path), "file").shapes)


def family_of_parts(diffusion_model: Path) -> Family:
    """The family of a model in parts, as the loaded pipeline will have it."""
    import diffusers

    part = read_part(diffusion_model, "diffusion_model")
    config = configuration("transformer", part, diffusion_model)
    return family_of_configuration(diffusers.FluxPipeline, {}, {"transformer": config})


def beside(diffusion_model: Path) -> Path:
    """The folder of the same name beside a diffusion model: its configurations and tokenizers go before the pack's."""
    return diffusion_model.with_suffix("")


def configuration(slot: str, part: Part, diffusion_model: Path) -> dict[str, Any]:
    """The configuration of a component: of the folder beside the diffusion model, else the published one."""
    own = beside(diffusion_model) / slot / "config.json"
    if own.is_file():
        return read_json(own)
    if slot == "transformer":
        return flux.transformer_config(part.shapes)
    published = {"vae": configurations.FLUX_VAE, "text_encoder": configurations.CLIP_L}
    return dict(published.get(slot, configurations.T5_XXL))


def empty_network(slot: str, config: dict[str, Any]) -> Any:
    """The network that a configuration describes, without memory."""
    import diffusers
    import torch
    import transformers

    library, name = flux.CLASSES[slot]
    found: Any = getattr(diffusers if library == "diffusers" else transformers, name)
    with torch.device("meta"):
        return found.from_config(config) if library == "diffusers" else found(found.config_class.from_dict(config))


@lru_cache(maxsize=64)
def _problem(slot: str, path: str, stamp: str, diffusion_model: str, name: str) -> str:
    """Why a file is not the component `slot`, "" where it is. `stamp` is for the cache."""
    import torch

    part = read_part(Path(path), name)
    try:
        config = configuration(slot, part, Path(diffusion_model))
        if slot == "transformer" and sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
            return f"no configuration is known for heads of {config.get('attention_head_dim')}"
        weights = {key: torch.empty(shape, device="meta") for key, shape in part.shapes.items()}
        held = {key: tuple(value.shape) for key, value in flux.rename(slot, weights, config).items()}
        wanted = {key: tuple(value.shape) for key, value in empty_network(slot, config).state_dict().items()}
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


def _require(slot: str, file: Path, chosen: Path, name: str) -> None:
    if problem := _problem(slot, str(file), checkpoints.stamp(file) + str(_beside_files(chosen)), str(chosen), name):
        what = flux.USUAL.get(slot, "FLUX.1's diffusion model")
        raise ModelFileError(name, str(file), f"it does not fit: {problem}", f"give {what}")


def _encoder_slot(file: Path, chosen: Path) -> str:
    slot = flux.slot_of(read_part(file, "text_encoder").shapes)
    if not slot.startswith("text_encoder"):
        reason = "it is neither CLIP-L nor T5-XXL, the text encoders of FLUX.1"
        raise ModelFileError("text_encoder", str(file), reason, f"give {_lacking({})}")
    _require(slot, file, chosen, "text_encoder")
    return slot


def _lacking(found: dict[str, Path]) -> str:
    return " and ".join(text for slot, text in flux.USUAL.items() if slot not in found and slot != "vae") or "each once"


def _path(name: str, text: str) -> Path:
    path = plain_path(name, text, ModelFileError).absolute()
    if path.suffix in checkpoints.PICKLES:
        checkpoints.refuse_pickle(path)
    return path


def _beside_files(diffusion_model: Path) -> list[tuple[str, int, int]]:
    files = sorted(path for path in beside(diffusion_model).glob("*/*") if path.suffix in (".json", ".txt", ".model"))
    return [(file.parent.name + "/" + file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
