"""Norms that a file holds whole, beside its LoRA layers, as FLUX.1's control LoRAs do.

diffusers loads them in place of the model's own (`FluxLoraLoaderMixin._load_norm_into_transformer`). Here the
difference is added, so that strength 1 gives the file's weights, 0 the model's own, and removal is exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...optimizations.lora_factors import Factors, fit, is_norm, no_factors

if TYPE_CHECKING:
    import torch
    from torch import nn

_ENDING = ".weight"


def are_taken(pipeline: Any) -> bool:
    """Whether control LoRAs, the files with such norms, are made for this architecture."""
    return bool(getattr(pipeline, "_control_lora_supported_norm_keys", ()))


def is_one(key: str, pipeline: Any) -> bool:
    """Whether diffusers would put the tensor of this key in the place of a norm's weight."""
    names = getattr(pipeline, "_control_lora_supported_norm_keys", ())
    component = getattr(pipeline, "transformer_name", "transformer")
    stem = key.removesuffix(_ENDING)
    return key.startswith(f"{component}.") and stem != key and stem.rpartition(".")[2] in names


def layer_of(key: str) -> tuple[str, str]:
    """(component, layer) of such a key."""
    component, _, layer = key.removesuffix(_ENDING).partition(".")
    return component, layer


def factors(weight: torch.Tensor, layer: nn.Module) -> Factors:
    """What to add to a norm so that it has this weight.

    Args:
        weight: [channels].
        layer: the norm as it is.

    Raises:
        TypeError: the layer is no norm with a weight.
        ValueError: the weight has another size than the norm's.
    """
    if not is_norm(layer):
        raise TypeError(f"{type(layer).__name__} is no norm")
    own = layer.get_parameter("weight")
    if weight.shape != own.shape:
        raise ValueError(f"its weight is {list(weight.shape)}, the layer's is {list(own.shape)}")
    difference = weight.float() - own.detach().float().cpu()
    return fit(replace(no_factors(), difference=difference), layer)
