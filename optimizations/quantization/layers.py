"""Tells from the layers of a loaded model how its weights are stored."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def describe_quantization(pipeline: Any) -> dict[str, str]:
    """What is quantized in a loaded pipeline: {"transformer": "uint4 in 57 of 60 layers"}; {} when nothing is."""
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "named_modules")}
    return {name: text for name, part in parts.items() if (text := describe_model(part))}


def describe_model(model: Any) -> str:
    """How the linear and convolution layers of a model are stored: "uint4 in 57 of 60 layers", "" when plainly."""
    kinds: Counter[str] = Counter()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and getattr(weight, "ndim", 0) >= 1 and _is_layer(module):
            kinds[storage(module, weight)] += 1
    total = sum(kinds.values())
    return ", ".join(f"{kind} in {count} of {total} layers" for kind, count in sorted(kinds.items()) if kind)


def _is_layer(module: torch.nn.Module) -> bool:
    """Linear and convolution layers, also those that a quantizer has replaced by a class of its own."""
    return hasattr(module, "sdnq_dequantizer") or any(
        kind in type(module).__name__ for kind in ("Linear", "Conv1d", "Conv2d", "Conv3d")
    )


def storage(module: torch.nn.Module, weight: torch.Tensor) -> str:
    """The name of a layer's quantized storage, "" for a plain weight."""
    import torch

    if hasattr(module, "sdnq_dequantizer"):
        return str(module.sdnq_dequantizer.weights_dtype)  # type: ignore[union-attr]
    owner = type(weight)
    if owner.__module__.startswith("torchao"):
        return f"torchao {owner.__name__.removesuffix('Tensor').lower()}"
    if type(module).__module__.startswith("bitsandbytes"):
        return str(getattr(weight, "quant_type", "int8"))
    return "fp8" if weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) else ""
