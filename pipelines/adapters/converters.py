"""diffusers' own converters: the names that trainers give to layers, translated by the pipeline that they are for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...fallback import is_out_of_memory
from . import keys

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_ENDINGS = {
    "bias": ".lora_B.bias",
    "magnitude": ".lora_magnitude_vector",
    "alpha": ".alpha",
}
_TRANSLATED = {"down", "up", "bias", "magnitude", "alpha"}
# What converters raise about files that are not what they were written for.
_UNSUITED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def translate(groups: Mapping[str, keys.Group], pipeline: Any) -> dict[str, keys.Group] | None:
    """The adapter under diffusers' names, as `load_lora_weights` of the pipeline's class would have them.

    Args:
        groups: the parts by layer, under the file's names.
        pipeline: the diffusers pipeline.

    Returns:
        The parts by "component.layer", with the alpha that applies to each; None when the class cannot translate them.
    """
    if not hasattr(pipeline, "lora_state_dict") or not _translatable(groups):
        return None
    options: dict[str, Any] = {"return_alphas": True}
    if getattr(pipeline, "unet", None) is not None:
        options["unet_config"] = pipeline.unet.config
    try:
        result = pipeline.lora_state_dict(_tensors(groups), **options)
        state, alphas = (result[0], result[1] or {}) if isinstance(result, tuple) else (result, {})
        state, alphas = _modern_names(state, dict(alphas))
        return _with_alphas(keys.group(state), alphas)
    except _UNSUITED as error:
        reraise_out_of_memory(error)
        _log.debug("%s cannot translate the file's names: %s", type(pipeline).__name__, error)
        return None


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise an out-of-memory error again as it is."""
    if is_out_of_memory(error):
        raise error


def _translatable(groups: Mapping[str, keys.Group]) -> bool:
    """Whether there are pairs, or LoKr factors, and nothing else: the converters would lose the rest."""
    present = {part for group in groups.values() for part in group}
    return present <= _TRANSLATED or all(part.startswith("lokr_") or part == "alpha" for part in present)


def _tensors(groups: Mapping[str, keys.Group]) -> dict[str, torch.Tensor]:
    """The adapter as a file would hold it, each pair in the way of writing that its names are usual with."""
    tensors = {}
    # Some converters multiply an alpha into the matrices in place.
    keep = any("alpha" in group for group in groups.values())
    for stem, group in groups.items():
        halves = (".lora_A.weight", ".lora_B.weight")
        if keys.is_processor(stem):
            halves = (".down.weight", ".up.weight")
        elif stem.startswith(("lora_", "lycoris_")):
            halves = (".lora_down.weight", ".lora_up.weight")
        endings = {"down": halves[0], "up": halves[1], **_ENDINGS}
        for part, tensor in group.items():
            value = tensor.float() if part == "alpha" else tensor.clone() if keep else tensor
            tensors[stem + endings.get(part, f".{part}")] = value
    return tensors


def _modern_names(
    state: dict[str, torch.Tensor], alphas: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """UNets and CLIP encoders come out of the converters under older names, with an alpha per matrix: both as PEFT's.

    Args:
        state: tensors by key.
        alphas: alpha by the key of a matrix or by the name of a layer.

    Returns:
        The tensors, and alpha by the key of the `down` matrix or by the name of the layer.
    """
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    alphas = {key.removesuffix(".alpha"): value for key, value in alphas.items()}
    by_tensor = {id(state[key]): alpha for key, alpha in alphas.items() if key in state}
    renamed = {}
    components: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        component, _, rest = key.partition(".")
        components.setdefault(component, {})[rest] = tensor
    for component, layers in components.items():
        if component == "unet":
            layers = convert_unet_state_dict_to_peft(layers)
        elif component.startswith("text_encoder"):
            layers = convert_state_dict_to_peft(convert_state_dict_to_diffusers(layers))
        renamed.update({f"{component}.{name}": tensor for name, tensor in layers.items()})
    found = {key: by_tensor[id(tensor)] for key, tensor in renamed.items() if id(tensor) in by_tensor}
    return renamed, {**alphas, **found}


def _with_alphas(groups: dict[str, keys.Group], alphas: Mapping[str, Any]) -> dict[str, keys.Group]:
    """The parts with the alphas that converters return beside them.

    Where only some layers of a component have one, the others take the commonest: that is how diffusers fills its
    adapter's configuration.
    """
    import torch

    default: dict[str, Any] = {}
    for component in {key.partition(".")[0] for key in alphas}:
        own = [value for key, value in alphas.items() if key.partition(".")[0] == component]
        default[component] = max(dict.fromkeys(own), key=own.count)
    for stem, group in groups.items():
        found = [alphas[key] for key in (stem, f"{stem}.lora_A.weight") if key in alphas]
        alpha = found[0] if found else default.get(stem.partition(".")[0])
        if alpha is not None and "down" in group:
            group["alpha"] = torch.as_tensor(alpha, dtype=torch.float32)
    return groups
