"""Which LoRAs a loaded pipeline runs with: set as a whole, or left as they were.

A set of LoRAs is read and checked completely before anything changes, so that a bad file leaves the former set active.
Changing strengths, and exchanging files for ones that fit in the room that is there, writes weights in place: nothing
is reloaded and nothing is compiled again.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..callbacks import SILENT, Callbacks
from ..errors import InputError
from ..optimizations import projections
from ..optimizations.components import modules
from ..optimizations.lora_factors import Factors
from ..optimizations.lora_layers import LoraBranches
from ..report import OptimizationRecord
from . import lora_files
from .types import LoadedPipeline, LoraSpec

EXPERTS = ("both", "high", "low")
"""Which of two noise experts a LoRA is for: `high` is the one that starts, `low` the one that finishes."""

MAX_STRENGTH = 100.0
"""Largest strength in either direction."""

_COMPONENTS = ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")
_Updates = dict[str, dict[str, list[Factors]]]


@dataclass
class _State:
    """What is active on one pipeline, and the files it was read from."""

    specs: tuple[LoraSpec, ...] = ()
    files: dict[str, tuple[tuple[int, int], lora_files.LoraFile]] = field(default_factory=dict)
    branches: dict[str, LoraBranches] = field(default_factory=dict)
    updates: _Updates = field(default_factory=dict)


_STATES: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()


def check_loras(loras: Sequence[LoraSpec]) -> None:
    """Everything about LoRAs that can be checked without a pipeline, in milliseconds.

    Raises:
        InputError: a strength that is no finite number or beyond `MAX_STRENGTH`, an unknown expert.
        ModelFileError: a file that is missing, damaged, or not .safetensors.
    """
    _check_values(loras)
    for spec in loras:
        lora_files.check(spec.path)


def _check_values(loras: Sequence[LoraSpec]) -> None:
    for spec in loras:
        if not math.isfinite(spec.strength):
            raise InputError("lora strength", spec.strength, "it must be a finite number", "use 1.0")
        if abs(spec.strength) > MAX_STRENGTH:
            reason = f"it must be between {-MAX_STRENGTH:g} and {MAX_STRENGTH:g}"
            raise InputError("lora strength", spec.strength, reason, "use 1.0")
        if spec.expert not in EXPERTS:
            cure = f"choose one of: {', '.join(EXPERTS)}"
            raise InputError("lora expert", spec.expert, "it is not one of the choices", cure)


def set_loras(
    loaded: LoadedPipeline,
    loras: Sequence[LoraSpec],
    callbacks: Callbacks = SILENT,
    before_rebuild: Callable[[Any], None] | None = None,
) -> list[OptimizationRecord]:
    """Make `loras` the LoRAs of a pipeline, all of them or, when one cannot be used, none of the change.

    Args:
        loaded: a pipeline from the cache.
        loras: the whole set; their order counts where one is a DoRA; () removes all and restores the model exactly.
        callbacks: progress in stage "load", one tick per file that has to be read.
        before_rebuild: called with the pipeline before layers are added or taken away while its weights are offloaded
            by hooks that know only the layers of before; it takes these hooks off.

    Returns:
        One record "lora", or nothing when there are no LoRAs and there were none.

    Raises:
        InputError: as `check_loras`, or a LoRA for another architecture, or for an expert that the pipeline lacks.
        ModelFileError: a file that cannot be read.
    """
    started = time.perf_counter()
    specs = tuple(loras)
    _check_values(specs)
    pipeline = loaded.pipeline
    state = _STATES.get(pipeline) or _new_state(pipeline)
    _check_experts(specs, state, pipeline)
    stamps = {spec.path: lora_files.stamp(spec.path) for spec in specs}
    unchanged = specs == state.specs and all(state.files[path][0] == mark for path, mark in stamps.items())
    if not specs and not state.specs:
        return []
    how = "as before"
    if not unchanged:
        files = _read_files(specs, stamps, state, pipeline, callbacks)
        updates = _combine(specs, {path: file for path, (_, file) in files.items()}, state)
        how = _change(state, updates, pipeline, max(0, loaded.key.lora_rank), before_rebuild)
        state.specs, state.files, state.updates = specs, files, updates
    return [_record(state, how, time.perf_counter() - started)]


def active_loras(loaded: LoadedPipeline) -> tuple[LoraSpec, ...]:
    """The LoRAs that a pipeline runs with now."""
    state = _STATES.get(loaded.pipeline)
    return state.specs if state is not None else ()


def _new_state(pipeline: Any) -> _State:
    parts = modules(pipeline)
    state = _State(branches={name: LoraBranches(parts[name]) for name in _COMPONENTS if name in parts})
    _STATES[pipeline] = state
    return state


def _check_experts(specs: tuple[LoraSpec, ...], state: _State, pipeline: Any) -> None:
    for spec in specs:
        if spec.expert != "both" and "transformer_2" not in state.branches:
            reason = f"{type(pipeline).__name__} has one denoiser, no high-noise and low-noise experts"
            raise InputError("lora expert", spec.expert, reason, "choose 'both'")


def _read_files(
    specs: tuple[LoraSpec, ...], stamps: dict[str, tuple[int, int]], state: _State, pipeline: Any, callbacks: Callbacks
) -> dict[str, tuple[tuple[int, int], lora_files.LoraFile]]:
    """The files of `specs`, taken from the state where they are still the same on disk."""
    files = {path: state.files[path] for path in stamps if path in state.files and state.files[path][0] == stamps[path]}
    missing = [path for path in dict.fromkeys(spec.path for spec in specs) if path not in files]
    for number, path in enumerate(missing):
        callbacks.tick("load", number, len(missing), Path(path).name)
        files[path] = (stamps[path], lora_files.read(path, pipeline, state.branches))
    if missing:
        callbacks.tick("load", len(missing), len(missing))
    return files


def _combine(specs: tuple[LoraSpec, ...], files: dict[str, lora_files.LoraFile], state: _State) -> _Updates:
    """Component -> layer -> the factors of all LoRAs on it, strengths multiplied in."""
    updates: _Updates = {}
    for spec in specs:
        for part, layers in files[spec.path].parts.items():
            for component in _targets(part, spec.expert, state):
                for name, factors in layers.items():
                    several = updates.setdefault(component, {}).setdefault(name, [])
                    several.append(factors.scaled(spec.strength))
    return updates


def _targets(part: str, expert: str, state: _State) -> list[str]:
    """The components that a file's part goes to: files of two-expert models name only one, whichever they are for."""
    if part != "transformer" or "transformer_2" not in state.branches:
        return [part]
    return {"both": ["transformer", "transformer_2"], "high": ["transformer"], "low": ["transformer_2"]}[expert]


def _change(
    state: _State, updates: _Updates, pipeline: Any, minimum_rank: int, before_rebuild: Callable[[Any], None] | None
) -> str:
    """Bring the branches to `updates`; whatever goes wrong, they end up as they were. Says how it was done."""
    branches = state.branches
    rebuild = not updates or not all(branches[name].has_room_for(layers) for name, layers in updates.items())
    if rebuild and before_rebuild is not None and _is_offloaded(pipeline):
        before_rebuild(pipeline)
    if rebuild:
        projections.restore(pipeline)  # fused ones would run past the branches
    if not updates:
        for branch in branches.values():
            branch.remove()
        return "removed"
    try:
        if rebuild:
            for name, layers in updates.items():
                branches[name].make_room(layers, minimum_rank)
        for name, branch in branches.items():
            branch.write(updates.get(name, {}))
    except BaseException:
        for name, branch in branches.items():
            branch.write(state.updates.get(name, {}))
        if not state.updates:
            for branch in branches.values():
                branch.remove()
        raise
    return "layers added" if rebuild else "exchanged in place"


def _is_offloaded(pipeline: Any) -> bool:
    """Whether hooks move the weights of single layers or components: they know the layers of when they were set."""
    for model in modules(pipeline).values():
        for module in model.modules():
            registry = module.__dict__.get("_diffusers_hook")
            if hasattr(module, "_hf_hook") or any("offload" in name for name in getattr(registry, "hooks", ())):
                return True
    return False


def _record(state: _State, how: str, seconds: float) -> OptimizationRecord:
    requested = names(state.specs) or "none"
    layers = sum(len(layers) for layers in state.updates.values())
    ranks = [sum(f.rank for f in several) for part in state.updates.values() for several in part.values()]
    applied = f"{layers} layers, rank {max(ranks)}" if ranks else "none"
    notes = [f"{Path(path).stem}: {file.note}" for path, (_, file) in state.files.items() if file.note]
    for spec in state.specs:
        layers_of = state.files[spec.path][1].parts.values()
        if not spec.strength and any(factors.magnitude is not None for part in layers_of for factors in part.values()):
            notes.append(f"{Path(spec.path).stem}: a DoRA scales its layers at strength 0 too, as in diffusers")
    cost = f"{how}, {seconds:.3f} s" if how != "as before" else how
    return OptimizationRecord("lora", requested, applied, "; ".join(notes), cost)


def names(specs: Sequence[LoraSpec]) -> str:
    """LoRAs in words, their strengths and experts with them: "style 0.8, lightning 1 (high noise)"."""
    return ", ".join(f"{Path(spec.path).stem} {spec.strength:g}{_for(spec)}" for spec in specs)


def _for(spec: LoraSpec) -> str:
    return "" if spec.expert == "both" else f" ({spec.expert} noise)"
