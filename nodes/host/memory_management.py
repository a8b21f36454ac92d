"""This pack's weights in ComfyUI's memory management.

ComfyUI moves its own models through patchers. Pipelines and video VAEs are moved by diffusers' hooks and by this pack.
An `ExternalModelPatcher` represents them in ComfyUI's list of loaded models: it tells how many bytes are on the card,
and takes them off it when another model needs the room, on "unload models" and on `/free`.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...optimizations.components import resident_bytes
from ...pipelines.cache import CACHE
from ...pipelines.loading import sources

if TYPE_CHECKING:
    from ...pipelines.types import LoadKey, PipelineHandle

WORKING_MEMORY = 2 << 30
"""Bytes that a run is taken to need beside its weights when ComfyUI is asked for room: an assumption."""


class FastDiffusersModel(nn.Module):
    """The model of every `ExternalModelPatcher`: its class name is what ComfyUI's log shows. It holds no weights."""


class ExternalModelPatcher(ModelPatcher):
    """A patcher for weights that ComfyUI does not move to the device itself.

    Args:
        device: where they compute.
        size: their bytes, estimated until `follow` counts them.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        super().__init__(
            FastDiffusersModel(), load_device=device, offload_device=torch.device("cpu"), size=max(1, size)
        )
        self._followed: list[weakref.ref[nn.Module]] = []

    def follow(self, modules: Iterable[nn.Module]) -> None:
        """Represent these modules from now on, without keeping them alive."""
        modules = list(modules)
        self._followed = [weakref.ref(module) for module in modules]
        self.size = max(1, resident_bytes(modules, self.load_device)[1])

    def loaded_size(self) -> int:
        return resident_bytes(self._modules(), self.load_device)[0]

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.loaded_size() else self.offload_device

    def partially_load(self, *_args: Any, **_options: Any) -> int:
        return 0  # the engine moves its weights itself, when the run begins

    def partially_unload(self, *_args: Any, **_options: Any) -> int:
        before = self.loaded_size()
        self.leave()
        return before - self.loaded_size()

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        if unpatch_all:  # else ComfyUI only lists it anew, as it does for every run
            self.leave()
        model: nn.Module = self.model
        return model

    def model_mmap_residency(self, free: bool = False) -> tuple[int, int]:
        return 0, 0

    def leave(self) -> None:
        """Move every module off the device, except those that offload hooks move."""
        for module in self._modules():
            if self.load_device.type != "cpu" and not _hooked(module):
                module.to(self.offload_device)

    def _modules(self) -> list[nn.Module]:
        return [module for reference in self._followed if (module := reference()) is not None]


def _hooked(module: nn.Module) -> bool:
    return any(hasattr(part, "_diffusers_hook") or hasattr(part, "_hf_hook") for part in module.modules())


def make_room(patcher: ExternalModelPatcher, working: int = WORKING_MEMORY) -> None:
    """Have ComfyUI unload other models until the patcher's weights fit, and list the patcher as loaded."""
    mm.load_models_gpu([patcher], memory_required=working)


_patchers: dict[LoadKey, ExternalModelPatcher] = {}
_handles: Counter[LoadKey] = Counter()
_lock = threading.RLock()  # a handle may be collected, and so released, while this thread holds it


def keep_while_alive(handle: PipelineHandle) -> PipelineHandle:
    """Keep a pipeline's weights for as long as a handle to it exists, and return the handle.

    ComfyUI drops a node's outputs when the graph changes and on `/free`. With the last handle goes the pipeline, from
    the card and from main memory, as a checkpoint of ComfyUI's own goes with the last MODEL.
    """
    with _lock:
        _handles[handle.key] += 1
    weakref.finalize(handle, _release, handle.key).atexit = False
    return handle


def _release(key: LoadKey) -> None:
    with _lock:
        _handles[key] -= 1
        if _handles[key] > 0:
            return
        del _handles[key]
        _patchers.pop(key, None)
    CACHE.discard(key)


@contextmanager
def on_card(handle: PipelineHandle) -> Iterator[None]:
    """Make room in ComfyUI's memory for a run of the pipeline, and tell ComfyUI afterwards what is loaded."""
    key = handle.key
    with _lock:
        patcher = _patchers.get(key)
        if patcher is None:
            patcher = _patchers[key] = ExternalModelPatcher(torch.device(key.device), _estimate(key))
    make_room(patcher)
    try:
        yield
    finally:
        loaded = CACHE.peek(key)
        if loaded is not None:
            parts = (*loaded.pipeline.components.values(), *loaded.controlnets.values())
            patcher.follow(part for part in parts if isinstance(part, nn.Module))


def _estimate(key: LoadKey) -> int:
    """Return the bytes of the weight files, before they are loaded."""
    place = sources.folder_of(key)
    if place is None:
        return 0
    files: Iterable[Path] = place.glob("*/*.safetensors") if place.is_dir() else [place]
    if key.parts:
        files = [Path(file) for _, file in key.parts]
    return sum(file.stat().st_size for file in files)
