"""Numerical switches: TF32 and cuDNN's search for algorithms while a run lasts, channels-last weights until undone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..report import OptimizationRecord
from . import offload
from .components import denoisers, modules, vae_of
from .settings import PrecisionSettings


def records(pipeline: Any, settings: PrecisionSettings, device: torch.device) -> list[OptimizationRecord]:
    """Apply what outlives a run (channels-last weights) and say what each switch does here."""
    return [
        _global_record("tf32", settings.tf32, device, "TF32 is a format"),
        _global_record("cudnn_benchmark", settings.cudnn_benchmark, device, "cuDNN runs"),
        _channels_last(pipeline, settings.channels_last),
    ]


@contextmanager
def active(settings: PrecisionSettings, device: torch.device) -> Iterator[None]:
    """TF32 and cuDNN's benchmark mode as asked for while the block runs, then exactly as they were."""
    with ExitStack() as stack:
        if settings.tf32 == "on" and device.type == "cuda":
            stack.enter_context(_tf32())
        if settings.cudnn_benchmark == "on" and device.type == "cuda":
            stack.enter_context(_cudnn_benchmark())
        yield


def restore(pipeline: Any) -> None:
    """Weights have their own memory layout again."""
    for model in modules(pipeline).values():
        layout = _layouts.pop(model, None)
        if layout is not None:
            layout.undo()


# Since torch 2.9 TF32 has newer, finer flags (`fp32_precision`) beside the two old ones. An old one cannot be read when
# the newer were set to something that it does not express, and inductor reads the old ones: so the old ones are
# written wherever they can be read, and the newer ones are put back to the letter.
_OLD_FLAGS = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))


def _new_flags() -> list[Any]:
    holders = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    return [holder for holder in holders if hasattr(holder, "fp32_precision")]


@contextmanager
def _tf32() -> Iterator[None]:
    newer = [(holder, holder.fp32_precision) for holder in _new_flags()]
    try:
        older = [(holder, name, getattr(holder, name)) for holder, name in _OLD_FLAGS]
    except RuntimeError:
        older = []
    try:
        for holder, name, _ in older:
            setattr(holder, name, True)
        if not older:
            for holder, _ in newer:
                holder.fp32_precision = "tf32"
        yield
    finally:
        for holder, name, value in older:
            setattr(holder, name, value)
        for holder, precision in newer:
            if holder.fp32_precision != precision:
                holder.fp32_precision = precision


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _global_record(name: str, choice: str, device: torch.device, what: str) -> OptimizationRecord:
    """For what only NVIDIA cards have. Nothing of it is on by itself: it changes results, or pays only sometimes."""
    if choice == "on" and device.type != "cuda":
        return OptimizationRecord(
            name, choice, "off", f"{what} on NVIDIA cards, and this is {device.type}", failed=True
        )
    reason = "off until it was measured to pay" if choice == "auto" else ""
    return OptimizationRecord(name, choice, "on" if choice == "on" else "off", reason)


def _channels_last(pipeline: Any, choice: str) -> OptimizationRecord:
    if choice != "on":
        restore(pipeline)
        reason = "off until it was measured to pay" if choice == "auto" else ""
        return OptimizationRecord("channels_last", choice, "off", reason)
    if offload.mode_of(pipeline) in offload.GROUP_MODES:
        restore(pipeline)
        reason = "group offloading brings the weights in the layout that they had when it was switched on"
        return OptimizationRecord("channels_last", choice, "off", reason, failed=True)
    models = _convolutional(pipeline)
    if not models:
        reason = "no part of this pipeline has 2D convolutions in quantity"
        return OptimizationRecord("channels_last", choice, "off", reason, failed=True)
    for model in models.values():
        if model not in _layouts:
            _layouts[model] = _Layout(model)
    return OptimizationRecord("channels_last", choice, " + ".join(models))


def _convolutional(pipeline: Any) -> dict[str, nn.Module]:
    """UNets and 2D VAEs: what has convolutions with 4-dimensional weights larger than 1 x 1 in most of its depth."""
    candidates = dict(denoisers(pipeline))
    vae = vae_of(pipeline)
    if vae is not None:
        candidates["vae"] = vae
    return {name: model for name, model in candidates.items() if len(_kernels(model)) >= 4}


def _kernels(model: nn.Module) -> list[torch.Tensor]:
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    return [weight for weight in weights if weight.shape[-1] > 1]


class _Layout:
    """Convolution weights of a model, put into channels-last and, at the end, back into the strides they had."""

    def __init__(self, model: nn.Module) -> None:
        self._strides = [(weakref.ref(weight), weight.stride()) for weight in _kernels(model)]
        for weight in _kernels(model):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def undo(self) -> None:
        for reference, strides in self._strides:
            weight = reference()
            if weight is not None and weight.stride() != strides:
                own = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device)
                weight.data = own.copy_(weight.data)


_layouts: WeakKeyDictionary[nn.Module, _Layout] = WeakKeyDictionary()
