"""What is tried: one case is a tiny pipeline and what it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A pipeline that can be built offline.

    Attributes:
        name: of its own among all cases, "FluxPipeline" or "tests/pipelines/flux/test_flux.py FluxTests".
        pipeline: name of its class.
        source: where it is from, in words.
        build: makes it on the CPU, ready to be called; the same weights every time.
        inputs: makes the keyword arguments of a call.
    """

    name: str
    pipeline: str
    source: str
    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class NotBuilt:
    """A case that there is none of, and why. Attributes: as of `Case`; reason: one line."""

    name: str
    pipeline: str
    source: str
    reason: str


Source = Callable[[], Iterator["Case | NotBuilt"]]


def pipeline_classes() -> dict[str, type]:
    """Every pipeline class of the installed diffusers that makes something, by name."""
    import diffusers
    from diffusers import DiffusionPipeline

    aside = ("DiffusionPipeline", "StableDiffusionMixin")
    found = {}
    for name in dir(diffusers):
        each = getattr(diffusers, name, None) if "Pipeline" in name and not name.startswith(("Auto", "Onnx")) else None
        if isinstance(each, type) and name not in aside and _is_pipeline(each, DiffusionPipeline):
            found[name] = each
    return found


def modular_classes() -> dict[str, type]:
    """Every modular pipeline class of the installed diffusers that has blocks of its own, by name."""
    import diffusers

    found = {}
    for name in dir(diffusers):
        each = getattr(diffusers, name, None) if name.endswith("ModularPipeline") else None
        if isinstance(each, type) and getattr(each, "default_blocks_name", None):
            found[name] = each
    return found


def _is_pipeline(each: type, base: type) -> bool:
    try:
        return issubclass(each, base) and "ModularPipeline" not in {kind.__name__ for kind in each.__mro__}
    except TypeError:
        return False


def takes(pipeline_class: type) -> set[str]:
    """The arguments of its call."""
    return set(inspect.signature(pipeline_class.__call__).parameters) - {"self"}
