"""Choosing the attention backend of a pipeline's denoisers, in place, and exactly undone.

The backend goes into each layer's processor. diffusers' own `set_attention_backend` also changes a process-wide default
that other models inherit, and its `reset_attention_backend` leaves that behind; neither is used here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..report import OptimizationRecord
from .attention_backends import BACKENDS, Case, available, refuse
from .attention_processors import Trust, can_vary, vary
from .components import attention_layers, denoisers, device_and_dtype, head_size

__all__ = ["available", "record", "restore", "use"]

logger = logging.getLogger(__name__)

NAME = "attention"


@dataclass
class _Use:
    """What is in force on one model.

    Attributes:
        choice: name of the backend.
        originals: each changed layer with the processor that it had.
        skipped: layers that stay with SDPA because their processors cannot be varied.
        trust: None for SDPA, where nothing is changed.
    """

    choice: str
    originals: list[tuple[Any, Any]] = field(default_factory=list)
    skipped: int = 0
    trust: Trust | None = None


_in_use: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()


def use(pipeline: Any, choice: str, device: torch.device) -> OptimizationRecord:
    """Let every denoiser of the pipeline attend through `choice`; what cannot is served by SDPA.

    Args:
        pipeline: a diffusers pipeline.
        choice: one of `settings.ATTENTION_CHOICES`. "auto" is SDPA: torch picks its fastest kernel there, and a better
            choice for a model is known only once it was measured.
        device: where the denoisers will run.
    """
    wanted = "sdpa" if choice == "auto" else choice
    models = denoisers(pipeline)
    refused = {name: _refuse(model, wanted, device) for name, model in models.items()}
    for name, model in models.items():
        _switch(model, "sdpa" if refused[name] else wanted, device)
    return _record(choice, wanted, models, refused)


def record(pipeline: Any, before: OptimizationRecord) -> OptimizationRecord:
    """The record as it stands after a run: a backend that failed at its first use was given up meanwhile."""
    if before.failed:
        return before
    wanted = "sdpa" if before.requested == "auto" else before.requested
    return _record(before.requested, wanted, denoisers(pipeline), {})


def can_give_up(pipeline: Any) -> bool:
    """Whether any denoiser attends through another backend than SDPA, so that a run could go otherwise without."""
    return bool(_trusts(pipeline))


def give_up(pipeline: Any, reason: str) -> None:
    """Put SDPA in the place of every backend in use, and say why in the record."""
    for trust in _trusts(pipeline):
        trust.fail(reason)


def _trusts(pipeline: Any) -> list[Any]:
    uses = [_in_use[model] for model in denoisers(pipeline).values() if model in _in_use]
    return [use.trust for use in uses if use.trust is not None and use.choice != "sdpa" and not use.trust.failure]


def restore(pipeline: Any) -> None:
    """Every denoiser has its own processors again; earlier failures are forgotten."""
    for model in denoisers(pipeline).values():
        if (current := _in_use.pop(model, None)) is not None:
            _put_back(current)


def _refuse(model: nn.Module, choice: str, device: torch.device) -> str:
    """Why a model cannot attend through `choice`, or ""."""
    if choice == "sdpa":
        return ""
    layers = [layer for layer in attention_layers(model) if can_vary(layer.processor)]
    if not layers:
        return f"{type(model).__name__} has no attention layer that can be sent elsewhere"
    dtype = device_and_dtype(model)[1]
    masks = ("none",) if BACKENDS[choice].masks == "none" else ("none", "bool")
    for size in sorted({head_size(layer) for layer in layers}):
        for mask in masks:
            reason = refuse(choice, Case(device, dtype, size, mask))
            if reason:
                return reason
    return ""


def _switch(model: nn.Module, choice: str, device: torch.device) -> None:
    """Put the model's processors into the state for `choice`; nothing happens when they are in it."""
    current = _in_use.get(model)
    if current is not None and current.choice == choice and _intact(current):
        return
    if current is not None:
        _put_back(current)
    made = _Use(choice)
    _in_use[model] = made
    if choice == "sdpa" and _default_is_sdpa():
        return
    backend = BACKENDS[choice]
    doubtful = backend.lossy or (choice != "sdpa" and device_and_dtype(model)[1] == torch.float16)
    made.trust = Trust(backend, doubtful, give_up=lambda: _put_back(made))
    for layer in attention_layers(model):
        processor: Any = layer.processor
        if can_vary(processor):
            made.originals.append((layer, processor))
            layer.set_processor(vary(processor, made.trust))  # type: ignore[operator]
        else:
            made.skipped += 1


def _intact(use: _Use) -> bool:
    """Whether nobody has exchanged processors behind our back: loading an IP adapter or a LoRA of old does."""
    given_up = use.trust is not None and bool(use.trust.failure)
    return given_up or all(getattr(layer.processor, "_trust", None) is use.trust for layer, _ in use.originals)


def _default_is_sdpa() -> bool:
    """Whether diffusers' process-wide default is SDPA: an environment variable or another program may change it."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    return _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def _put_back(use: _Use) -> None:
    for layer, processor in use.originals:
        if getattr(layer.processor, "_trust", None) is use.trust:  # else somebody else's processor came after ours
            layer.set_processor(processor)


def _record(choice: str, wanted: str, models: dict[str, nn.Module], refused: dict[str, str]) -> OptimizationRecord:
    uses = {name: _in_use[model] for name, model in models.items()}
    failures = {name: text for name, text in refused.items() if text}
    failures |= {n: u.trust.failure for n, u in uses.items() if u.trust is not None and u.trust.failure}
    applied = {name: "sdpa" if name in failures else use.choice for name, use in uses.items()}
    if failures:
        logger.info("attention %s fell back to sdpa: %s", wanted, failures)
        shown = ", ".join(f"{name}: {value}" for name, value in applied.items())
        same = len(set(applied.values())) == 1
        reason = "; ".join(dict.fromkeys(f"{wanted} cannot be used: {text}" for text in failures.values()))
        return OptimizationRecord(NAME, choice, "sdpa" if same else shown, reason, failed=choice != "auto")
    if choice == "auto":
        reason = "torch picks its own fastest kernel; Benchmark Optimizations (bench) tells auto of a faster one"
        return OptimizationRecord(NAME, choice, "sdpa", reason)
    skipped = sum(use.skipped for use in uses.values())
    reason = f"{skipped} layers have processors that cannot be sent elsewhere and stay with sdpa" if skipped else ""
    reason = "; ".join(part for part in (reason, BACKENDS[wanted].advice) if part)
    return OptimizationRecord(NAME, choice, wanted if models else "sdpa", reason)
