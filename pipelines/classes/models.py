"""What the models at hand ask of a call, whatever their class would take: read from their configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..families import NETS, Family

_LIMITED_BY_EMBEDDING = ("StableDiffusion3", "CogView3")
"""Beginnings of class names whose transformers raise an error beyond `pos_embed_max_size` patches a side."""
_COUNTED = "AuraFlow"
"""Likewise, but `pos_embed_max_size` counts the patches of a square, and the models were trained on any size in it."""
_READS_PICTURES = {
    "StableCascadeCombinedPipeline": "prior_image_encoder",
    "StableCascadePriorPipeline": "image_encoder",
}
"""Class -> the component, which may be missing, that reads its pictures."""


def with_models(family: Family, class_name: str, parts: Mapping[str, Mapping[str, Any]]) -> Family:
    """The family with the limits of these models.

    Args:
        class_name: of the pipeline.
        parts: name of each component that is there -> its configuration, {} where that is not known.
    """
    encoder = _READS_PICTURES.get(class_name)
    if encoder is not None and encoder not in parts:
        family = replace(family, images="none", max_images=0)
    if parts.get("unet", {}).get("encoder_hid_dim_type") == "ip_image_proj":
        family = replace(family, required=(*family.required, "ip_adapter_image"))
    nets = max((config.get(NETS, 0) for config in parts.values()), default=0)
    if nets and "control_image" in family.required:
        family = replace(family, own_controls=nets)
    if nets and family.max_images and not {"control_image", "control_mask"} & set(family.required):
        family = replace(family, min_images=nets, max_images=nets, images_as_list=True)
    if class_name.startswith((*_LIMITED_BY_EMBEDDING, _COUNTED)):
        counted = class_name.startswith(_COUNTED)
        family = _limited(family, parts.get("transformer", {}), parts.get("vae", {}), counted)
    return family


def nets_in(part: Any) -> int:
    """How many control models (`MultiControlNetModel` and its like) or adapters (`MultiAdapter`) a component holds."""
    held = getattr(part, "nets", None) or getattr(part, "adapters", None) if "Multi" in type(part).__name__ else None
    return len(held) if held is not None else 0


def _limited(family: Family, transformer: Mapping[str, Any], vae: Mapping[str, Any], counted: bool) -> Family:
    """The largest size is what the position embedding reaches, the recommended one what the model was trained on.

    Args:
        counted: the embedding's size is a number of patches, not of patches a side.
    """
    reach, patch = transformer.get("pos_embed_max_size"), transformer.get("patch_size")
    if not isinstance(reach, int) or not isinstance(patch, int) or not vae.get("block_out_channels"):
        return family
    reach = math.isqrt(reach) if counted else reach
    stride = 2 ** (len(vae["block_out_channels"]) - 1)
    largest = reach * patch * stride
    trained = None if counted else transformer.get("sample_size")
    size = min(largest, trained * stride if isinstance(trained, int) else largest)
    width, height = (min(edge, size) for edge in (family.width, family.height))
    return replace(family, max_size=min(family.max_size, largest), width=width, height=height)
