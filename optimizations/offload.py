"""Where the weights live: all on the device, or offloaded by model, by block, by layer. In place, and undone in place.

diffusers and accelerate do the moving. This module chooses, applies one mode at a time, and takes its hooks off again,
so that a pipeline can change its mode without a reload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..memory import GIB, MemoryState, Need, device_memory, shortage
from ..report import OptimizationRecord
from .components import denoisers, is_cast_to_decode, is_modular_class, modules, resident_bytes

NAME = "memory_mode"
WORKING_MEMORY = 2 * GIB
"""Bytes that activations are taken to need beside the weights until more is known: an assumption, reported as one."""
GROUP_MODES = ("group_offload_block", "group_offload_leaf")
PAGE_LOCKED_SHARE = 2
"""Free main memory for page-locked copies, per byte of weights: each is rounded up to a power of two."""
_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker")


@dataclass(frozen=True)
class _Placement:
    mode: str
    device: torch.device


_placed: WeakKeyDictionary[Any, _Placement] = WeakKeyDictionary()


def use(
    pipeline: Any,
    choice: str,
    device: torch.device,
    memory: MemoryState,
    working: int = WORKING_MEMORY,
    before_hooks: Callable[[Any], None] | None = None,
) -> OptimizationRecord:
    """Put the pipeline into a memory mode. Nothing moves when it is in it already.

    Args:
        pipeline: a diffusers pipeline.
        choice: one of `settings.MEMORY_MODES`.
        device: where it computes.
        memory: of that device, now; "auto" decides by it.
        working: bytes needed beside the weights.
        before_hooks: called with the pipeline before hooks go onto its blocks or layers, and only then: what has laid
            out their weights anew has to undo that, because the hooks know the weights of when they were put on.
    """
    mode, reason = decide(pipeline, choice, device, memory, working)
    reason = reason or _substitute_reason(choice, mode)
    current = _placed.get(pipeline)
    if current is None or current != _Placement(mode, device) or not _intact(pipeline, current):
        restore(pipeline)
        if before_hooks is not None and mode in GROUP_MODES:
            before_hooks(pipeline)
        try:
            _place(pipeline, mode, device)
        except BaseException:
            _placed[pipeline] = _Placement(mode, device)  # as far as it got: that is undone
            restore(pipeline)
            raise
        _placed[pipeline] = _Placement(mode, device)
    applied = "on the cpu" if mode == "gpu" and device.type == "cpu" else mode
    return OptimizationRecord(NAME, choice, applied, reason)


def decide(
    pipeline: Any, choice: str, device: torch.device, memory: MemoryState, working: int = WORKING_MEMORY
) -> tuple[str, str]:
    """The mode that `choice` becomes, and why; "" where there is nothing to say."""
    if device.type == "cpu":
        # Offloading moves weights to main memory, and there they are. Group offloading works here, the others raise.
        if choice in GROUP_MODES:
            return choice, "the weights are in main memory already: this only costs time"
        reason = "" if choice in ("auto", "gpu") else "not needed on the cpu: the weights are in main memory already"
        return "gpu", reason
    if choice == "sequential":
        return "group_offload_leaf", ""
    if choice == "model_offload" and is_modular_class(type(pipeline)):
        return "group_offload_block", "pipelines made of blocks cannot be offloaded model by model"
    if choice != "auto":
        return choice, ""
    current = _placed.get(pipeline)
    if current == _Placement("gpu", device) and _intact(pipeline, current) and memory.free >= working:
        return "gpu", "everything fits"  # it is there: counting it again would take longer than all the rest
    weights = _sizes(pipeline, device)
    free = MemoryState(memory.free + sum(resident for resident, _ in weights.values()), memory.total)
    everything = sum(total for _, total in weights.values())
    largest = max((total for _, total in weights.values()), default=0)
    needs = [Need("of weights", everything), Need("assumed for the computation", working)]
    short = shortage(free, needs)
    if not short:
        return "gpu", "everything fits"
    needs[0] = Need("for the largest model", largest)
    still_short = shortage(free, needs)
    if not still_short and getattr(pipeline, "model_cpu_offload_seq", None):
        return "model_offload", f"all models at once do not fit: {short}"
    return "group_offload_block", f"the largest model does not fit: {still_short or short}"


def mode_of(pipeline: Any) -> str:
    """The memory mode in force; "gpu" for a pipeline that none was applied to."""
    placed = _placed.get(pipeline)
    return "gpu" if placed is None else placed.mode


def device_of(pipeline: Any) -> torch.device | None:
    """Where the memory mode in force has the pipeline compute, or None."""
    placed = _placed.get(pipeline)
    return None if placed is None else placed.device


def bytes_to_come(pipeline: Any, mode: str, device: torch.device) -> int:
    """Bytes of weights that a run will bring to the device beyond those that are there. 0 on the CPU."""
    if device.type == "cpu":
        return 0
    sizes = _sizes(pipeline, device)
    resident = sum(here for here, _ in sizes.values())
    if mode == "gpu":
        return sum(total for _, total in sizes.values()) - resident
    if mode == "model_offload":
        return max(0, max((total for _, total in sizes.values()), default=0) - resident)
    return 0  # a few blocks at a time


def breaks_graphs(mode: str, scope: str) -> str:
    """What a memory mode does to `fullgraph` compilation, as one phrase, or ""."""
    if mode in GROUP_MODES:
        return "group offloading moves weights inside the graph"
    if mode == "model_offload" and scope == "model":
        return "model offloading hooks into the model's call"
    return ""


def restore(pipeline: Any) -> None:
    """Take off whatever this module put on; the weights stay where they are."""
    current = _placed.pop(pipeline, None)
    if current is None:
        return
    if current.mode == "model_offload":
        pipeline.remove_all_hooks()
        for model in modules(pipeline).values():
            _take_off_own_forward(model)
    elif current.mode in GROUP_MODES:
        for model in modules(pipeline).values():
            _remove_group_hooks(model)
            model.to(torch.device("cpu"))


def _place(pipeline: Any, mode: str, device: torch.device) -> None:
    if mode == "gpu":
        for model in modules(pipeline).values():
            if _is_elsewhere(model, device):
                model.to(device)
    elif mode == "model_offload":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        _group_offload(pipeline, mode, device)


def _group_offload(pipeline: Any, mode: str, device: torch.device) -> None:
    """Blocks or layers of the denoisers, and the layers of everything else.

    A VAE is called through `decode`, not `forward`, where hooks on blocks would not see it; text encoders run once.
    """
    from diffusers.hooks import apply_group_offloading

    by_block = denoisers(pipeline) if mode == "group_offload_block" else {}
    weights = sum(total for _, total in _sizes(pipeline, device).values())
    scarce = device_memory(torch.device("cpu")).free < PAGE_LOCKED_SHARE * weights
    for name, model in modules(pipeline).items():
        level = "block_level" if name in by_block else "leaf_level"
        # With a stream the weights come from page-locked copies, and stay of the type they had when those were made.
        streams = device.type in ("cuda", "xpu") and not is_cast_to_decode(model)
        apply_group_offloading(
            model,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type=level,
            num_blocks_per_group=1 if level == "block_level" else None,
            use_stream=streams,
            record_stream=streams,
            low_cpu_mem_usage=streams and scarce,  # locks the pages of a group when its turn comes: slower
        )


def _remove_group_hooks(model: nn.Module) -> None:
    """diffusers' hooks off, with what they leave behind."""
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is None:
            continue
        for name in _HOOKS:
            registry.remove_hook(name, recurse=False)
        if registry.hooks:
            continue
        del module._diffusers_hook
        _take_off_own_forward(module)


def _take_off_own_forward(module: nn.Module) -> None:
    """Off with the class's own `forward`, which hooks leave on the object: it would hide one that the class gets."""
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.forward


def _intact(pipeline: Any, placement: _Placement) -> bool:
    """Whether the pipeline still is where it was put: a model may have been exchanged or moved meanwhile."""
    if placement.mode == "gpu":
        return not any(_is_elsewhere(model, placement.device) for model in modules(pipeline).values())
    if placement.mode == "model_offload":
        return bool(getattr(pipeline, "_all_hooks", None))
    return all(any(hasattr(m, "_diffusers_hook") for m in model.modules()) for model in modules(pipeline).values())


def _is_elsewhere(model: nn.Module, device: torch.device) -> bool:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return False
    here = parameter.device
    return here.type != device.type or (device.index is not None and (here.index or 0) != device.index)


def _sizes(pipeline: Any, device: torch.device) -> dict[str, tuple[int, int]]:
    """(bytes on the device, bytes) of each component."""
    return {name: resident_bytes([model], device) for name, model in modules(pipeline).items()}


def _substitute_reason(choice: str, mode: str) -> str:
    if choice == "sequential" and mode == "group_offload_leaf":
        return "layer by layer with group offloading, which does the same and overlaps the transfers"
    return ""
