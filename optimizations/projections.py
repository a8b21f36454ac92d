"""Fused projections: query, key and value of an attention layer as one matrix product. In place, and exactly undone.

Three products with one input become one that is three times as wide; in cross-attention key and value become one.
Many of diffusers' attention processors can work so, and its own `fuse_projections` lets them, but it keeps the separate
weights beside the fused ones, so that every projection takes its memory twice.

Here the fused layer owns the weights. The separate layers stay in the model under their names, without rows, so that
whoever looks for a layer by name finds it, and moving the model moves every weight once. Undoing cuts the fused weight
at the same rows: the same parameters with the same bits.
"""

from __future__ import annotations

import functools
from collections import Counter
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..fallback import is_out_of_memory
from ..memory import release_cache
from ..report import OptimizationRecord
from .components import attention_layers, denoisers, device_and_dtype, is_group_offloaded
from .lora_layers import LoraLayer
from .quantization.layers import storage

NAME = "fused_projections"
PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""The fused layers by the names under which diffusers' processors look for them, and what each consists of."""


def use(pipeline: Any, choice: str) -> OptimizationRecord:
    """Fuse the projections of every denoiser's attention layers, or undo it. What cannot be fused stays as it is.

    Layers that LoRAs or hooks were put on since they were fused are separate again afterwards.

    Args:
        pipeline: a diffusers pipeline, its weights where the memory mode wants them.
        choice: one of `settings.TRISTATE`.
    """
    if choice != "on":
        restore(pipeline)
        reason = "off until it was measured to pay" if choice == "auto" else ""
        return OptimizationRecord(NAME, choice, "off", reason)
    models = denoisers(pipeline)
    refused: Counter[str] = Counter()
    for model in models.values():
        refused += _fuse_model(model)
    counts = {name: len(_fused.get(model, ())) for name, model in models.items()}
    applied = " + ".join(f"{name} ({count} attention layers)" for name, count in counts.items() if count)
    total = sum(counts.values()) + sum(refused.values())
    reasons = [f"separate in {count} of {total} attention layers: {reason}" for reason, count in refused.items()]
    reason = "; ".join(reasons) if total else "no attention layer has separate projections"
    return OptimizationRecord(NAME, choice, applied or "off", reason, failed=not applied)


def restore(pipeline: Any) -> None:
    """Every attention layer has its own separate projections again, wherever the weights are now.

    Raises:
        torch.OutOfMemoryError: there is no room for one layer's weights twice. The layers not reached stay fused.
    """
    for model in denoisers(pipeline).values():
        fused = _fused.get(model, [])
        if not fused:
            continue
        try:
            while fused:
                fused[-1].undo()
                fused.pop()
        finally:
            release_cache(device_and_dtype(model)[0])


def _fuse_model(model: nn.Module) -> Counter[str]:
    """Fuse what can be fused; returns why the other layers cannot, with their number."""
    fused = _fused.setdefault(model, [])
    for layer in [layer for layer in fused if not layer.intact()]:
        layer.undo()
        fused.remove(layer)
    done, before = {layer.attention for layer in fused}, len(fused)
    grouped = any(map(is_group_offloaded, model.modules()))
    refused: Counter[str] = Counter()
    for attention in attention_layers(model):
        if attention in done or not hasattr(attention, "to_q"):
            continue  # what has no `to_q` was built with fused projections: Flux.2's single blocks
        reason = "group offloading moves their weights by itself" if grouped else _refuse(attention)
        if not reason:
            try:
                fused.append(_FusedAttention(attention))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = "there is no room to fuse them"
        if reason:
            refused[reason] += 1
    if len(fused) > before:
        # Where memory runs short in between, torch does this by itself.
        release_cache(device_and_dtype(model)[0])
    return refused


def _refuse(attention: nn.Module) -> str:
    """Why a layer's projections stay separate, or ""."""
    if getattr(attention, "fused_projections", False):
        return "something else has fused them"
    names = _fused_names(attention)
    if not names:
        return f"{type(_processor(attention)).__name__} has no path for fused ones"
    for name in names:
        parts = _parts(attention, name)
        reason = next((text for text in map(_oddity, parts) if text), "")
        if not reason and len({_kind(part) for part in parts}) > 1:
            reason = "they differ in shape, type or place"
        if reason:
            return reason
    return ""


def _processor(attention: Any) -> Any:
    """The layer's own processor, also while a variant of it attends through another backend."""
    return getattr(attention.processor, "_original", attention.processor)


def _fused_names(attention: Any) -> tuple[str, ...]:
    """The fused layers that the layer's processor would look for; () when it has no path for them.

    Which these are is read from the processor's code: the flag that says that there are fused layers is an attribute
    of every attention class, and most processors ignore it.
    """
    read = _names_in(type(_processor(attention)).__call__)
    main = "to_kv" if getattr(attention, "is_cross_attention", False) else "to_qkv"
    if not getattr(attention, "_supports_qkv_fusion", False) or not {"fused_projections", main} <= read:
        return ()
    added = [name for name in ("to_added_qkv", "to_added_kv") if name in read and any(_parts(attention, name))]
    return (main, *added)


def _parts(attention: Any, name: str) -> list[Any]:
    """The separate layers of a fused one, None where there is none."""
    return [getattr(attention, part, None) for part in PARTS[name]]


@functools.cache
def _names_in(function: Any) -> frozenset[str]:
    """The globals and attributes that a function's code names, and the code of those of its module that it calls."""
    names: set[str] = set()
    functions = [function]
    for current in functions:
        code = getattr(current, "__code__", None)
        if code is None:
            continue
        names.update(code.co_names)
        called = (current.__globals__.get(name) for name in code.co_names)
        functions += [
            other
            for other in called
            if isinstance(other, FunctionType) and other.__module__ == current.__module__ and other not in functions
        ]
    return frozenset(names)


def _oddity(layer: Any) -> str:
    """What makes a layer more than a plain matrix with a bias, or ""."""
    if layer is None:
        return "one of them is missing"
    if isinstance(layer, LoraLayer) or hasattr(layer, "base_layer"):
        return "a LoRA is on them"
    weight = getattr(layer, "weight", None)
    stored = "" if weight is None else storage(layer, weight)
    if stored:
        return f"their weights are quantized ({stored})"
    if type(layer) is not nn.Linear or type(weight) is not nn.Parameter:
        return f"they are {type(layer).__name__} layers of {type(weight).__name__}"
    if not weight.is_contiguous():
        return "their weights are not stored row by row"
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if hooked or not vars(layer).keys().isdisjoint(("forward", "_hf_hook", "_diffusers_hook")):
        return "hooks are on them"
    return ""


def _kind(layer: Any) -> tuple[Any, ...]:
    """What has to be the same in layers that are stacked, and cut again into equal parts."""
    tensors = (layer.weight, layer.bias)
    return tuple((t.shape, t.dtype, t.device, t.stride()) if t is not None else None for t in tensors)


class _FusedAttention:
    """An attention layer whose projections are fused, from its construction until `undo`.

    Args:
        attention: the layer; `_refuse` has nothing against it.

    Raises:
        torch.OutOfMemoryError: the weights do not fit a second time. The layer is as it was.
    """

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self._flag = vars(attention).get("fused_projections")
        self._layers: dict[str, tuple[nn.Linear, list[Any]]] = {}
        for name in _fused_names(attention):
            parts = _parts(attention, name)
            self._layers[name] = (_stack(parts), parts)
        # From here on nothing can fail.
        for name, (whole, parts) in self._layers.items():
            attention.add_module(name, whole)
            for part in parts:
                for parameter in part.parameters():
                    parameter.data = parameter.data.new_empty((0, *parameter.shape[1:]))
        attention.fused_projections = True

    def intact(self) -> bool:
        """Whether the layer is as it was left: a LoRA, a hook or another processor may have come since."""
        modules = self.attention._modules
        return (
            self.attention.fused_projections is True
            and tuple(self._layers) == _fused_names(self.attention)
            and all(modules.get(name) is whole and not _oddity(whole) for name, (whole, _) in self._layers.items())
            and all(_parts(self.attention, name) == parts for name, (_, parts) in self._layers.items())
        )

    def undo(self) -> None:
        """The separate layers have their weights again, also where something was put around them since."""
        for parameter, own in self._rows():
            parameter.data = own
        for name in self._layers:
            self.attention._modules.pop(name, None)
        self._layers.clear()
        if self._flag is None:
            del self.attention.fused_projections
        else:
            self.attention.fused_projections = self._flag

    def _rows(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Each separate parameter with a copy of its rows, wherever the fused ones are by now."""
        return [
            (getattr(part, kind), rows.clone())
            for whole, parts in self._layers.values()
            for kind, parameter in whole.named_parameters()
            for part, rows in zip(parts, parameter.data.chunk(len(parts)), strict=True)
        ]


def _stack(parts: list[Any]) -> nn.Linear:
    """A linear layer [in] -> [sum of out] that gives the results of `parts` side by side."""
    first = parts[0]
    whole = nn.Linear(first.in_features, len(parts) * first.out_features, bias=first.bias is not None, device="meta")
    for name, _ in list(whole.named_parameters()):
        stacked = torch.cat([getattr(part, name).data for part in parts])
        setattr(whole, name, nn.Parameter(stacked, requires_grad=False))
    return whole.train(first.training)


_fused: WeakKeyDictionary[nn.Module, list[_FusedAttention]] = WeakKeyDictionary()
