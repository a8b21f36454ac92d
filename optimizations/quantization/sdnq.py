"""SDNQ, contained: imported only when a model needs it, its process-wide side effects undone, its layers described.

SDNQ (https://github.com/Disty0/sdnq) is GPL-3.0-only: an optional package that the user installs, never part of this
pack. Importing it registers it with transformers, which is what a quantized text encoder needs in order to load at
all; it also raises dynamo's recompile limits for the whole process and compiles a probe, which nothing needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...errors import MissingDependencyError, check_choice
from ...report import OptimizationRecord
from ..settings import TRISTATE

if TYPE_CHECKING:
    import torch

_LIMITS = ("recompile_limit", "accumulated_recompile_limit")
_MATMUL, _SWITCHED = "_fastdiffusers_sdnq_matmul", "_fastdiffusers_sdnq_matmul_choice"
"""On a model that was switched: what its checkpoint said, and what it was switched to."""
_LIMIT_OF_SDNQ = 8192
"""Graphs per code object that SDNQ allows itself: it compiles one dequantizer per weight shape."""


def sdnq_installed() -> bool:
    """Whether `import sdnq` would find a package. Nothing is imported."""
    return importlib.util.find_spec("sdnq") is not None


@contextmanager
def import_sdnq_safely(needed_for: str = "This model is quantized with SDNQ: loading it") -> Iterator[ModuleType]:
    """Import SDNQ and let it load or quantize while the block runs; dynamo and the environment end up as they were.

    Args:
        needed_for: the beginning of the error's sentence when the package is missing.

    Raises:
        MissingDependencyError: SDNQ is not installed, or it does not import here.
    """
    if not sdnq_installed():
        raise MissingDependencyError("sdnq", needed_for)
    with _dynamo_config_restored():
        with _probe_avoided():
            try:
                module = importlib.import_module("sdnq")
            except ImportError as error:
                raise MissingDependencyError("sdnq", f"{needed_for} ({error})", "pip install -U sdnq") from error
        _raise_limits()
        yield module


@contextmanager
def sdnq_limits(pipeline: Any) -> Iterator[None]:
    """Give a pipeline with SDNQ layers the dynamo limits that its dequantizers rely on, while the block runs.

    From torch 2.12 on SDNQ asks for them function by function, and nothing is changed here.
    """
    components = getattr(pipeline, "components", {}).values()
    if _limits_are_per_function() or not any(is_sdnq(component) for component in components):
        yield
        return
    with _dynamo_config_restored():
        _raise_limits()
        yield


def is_sdnq(component: Any) -> bool:
    """Whether a pipeline's component holds layers that SDNQ quantized."""
    return next(sdnq_layers(component), None) is not None


def sdnq_layers(component: Any) -> Iterator[torch.nn.Module]:
    """The modules of a component whose weight SDNQ quantized."""
    if hasattr(component, "named_modules"):
        for module in component.modules():
            if hasattr(module, "sdnq_dequantizer"):
                yield module


def _was_given_to_sdnq(component: Any) -> bool:
    """Whether SDNQ has gone through a component, though it may have quantized no layer of it."""
    method = getattr(getattr(component, "quantization_config", None), "quant_method", "")
    return str(getattr(method, "value", method)).startswith("sdnq")


def set_quantized_matmul(
    pipeline: Any, choice: str, before_change: Callable[[Any], None] | None = None
) -> OptimizationRecord | None:
    """Let SDNQ multiply in the quantized type instead of dequantizing first. In place, both ways, exactly reversible.

    Args:
        pipeline: a diffusers pipeline.
        choice: "auto" gives each component back what its checkpoint says; "on", "off".
        before_change: called with the pipeline before weights are laid out anew, and only then: offload hooks keep
            copies of them and have to come off.

    Returns:
        The record for the report; None when nothing was asked of a pipeline that has no SDNQ layers.
    """
    check_choice("quantized_matmul", choice, TRISTATE)
    models = {name: part for name, part in pipeline.components.items() if is_sdnq(part)}
    if not models:
        if choice != "on":
            return None
        reason = "no component is quantized with SDNQ: load an SDNQ checkpoint or choose an sdnq quantization"
        if any(_was_given_to_sdnq(part) for part in pipeline.components.values()):
            reason = "SDNQ was to quantize this model, and left every layer of it as it is"
        return OptimizationRecord("quantized_matmul", choice, "off", reason, failed=True)
    on = off = 0
    with import_sdnq_safely():
        if before_change is not None and not all(_is_switched(model, choice) for model in models.values()):
            before_change(pipeline)
        for model in models.values():
            _switch_matmul(model, choice)
            for layer in sdnq_layers(model):
                used = bool(layer.sdnq_dequantizer.use_quantized_matmul)  # type: ignore[union-attr]
                on, off = on + used, off + (not used)
    if choice == "on" and not on:
        reason = "no layer is large enough or of a kind that SDNQ can multiply quantized here"
        return OptimizationRecord("quantized_matmul", choice, "off", reason, failed=True)
    applied = f"{on} of {on + off} layers" if on else "off"
    return OptimizationRecord("quantized_matmul", choice, applied, "as the checkpoint says" if choice == "auto" else "")


def _switch_matmul(model: Any, choice: str) -> None:
    from sdnq.loader import apply_sdnq_options_to_model

    if _is_switched(model, choice):
        return
    if not hasattr(model, _MATMUL):
        # SDNQ adds the layers that cannot multiply quantized to its list of exceptions, whoever asked: keep the list.
        setattr(model, _MATMUL, (_current_matmul(model), list(model.quantization_config.modules_to_not_use_matmul)))
    original, exceptions = getattr(model, _MATMUL)
    model.quantization_config.modules_to_not_use_matmul[:] = exceptions
    wanted = any(original) if choice == "auto" else choice == "on"
    apply_sdnq_options_to_model(model, use_quantized_matmul=wanted)
    setattr(model, _SWITCHED, choice)


def _is_switched(model: Any, choice: str) -> bool:
    """Whether nothing has to be done for a choice; a model that was never switched is as its checkpoint says."""
    if getattr(model, _SWITCHED, "auto") == choice:
        return True
    return choice == "off" and not any(_current_matmul(model))


def _current_matmul(model: Any) -> list[bool]:
    return [bool(layer.sdnq_dequantizer.use_quantized_matmul) for layer in sdnq_layers(model)]  # type: ignore[union-attr]


def _limits_are_per_function() -> bool:
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 12)


def _raise_limits() -> None:
    import torch._dynamo.config as config

    if not _limits_are_per_function():
        for name in _LIMITS:
            setattr(config, name, max(_LIMIT_OF_SDNQ, getattr(config, name)))


@contextmanager
def _dynamo_config_restored() -> Iterator[None]:
    import torch._dynamo.config as config

    # Before torch 2.7 the limits were called cache_size_limit; the new names are aliases wherever both exist.
    names = [name for name in (*_LIMITS, "suppress_errors") if hasattr(config, name)]
    before = {name: getattr(config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _probe_avoided() -> Iterator[None]:
    """Without an accelerator SDNQ compiles C++ for its CPU kernels at import and at every new shape: not worth it."""
    import torch

    variable = "SDNQ_USE_TORCH_COMPILE"
    if variable in os.environ or torch.accelerator.is_available():
        yield
        return
    os.environ[variable] = "0"
    try:
        yield
    finally:
        del os.environ[variable]
