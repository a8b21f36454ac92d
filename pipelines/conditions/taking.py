"""What the call of a class takes: its arguments, or, of a modular class, the inputs of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...optimizations.components import is_modular_class
from ..classes.forms import call_parameters
from ..modular.blocks import blocks_of, expected_components, inputs


def modular_class(form: str) -> Any:
    """diffusers' modular class of that name, None where it is none or has no blocks of its own."""
    import diffusers

    found = getattr(diffusers, form, None) if form else None
    is_one = isinstance(found, type) and is_modular_class(found) and getattr(found, "default_blocks_name", None)
    return found if is_one else None


def call_takes(form: str) -> Mapping[str, Any]:
    """The arguments of the call of diffusers' class of that name; none where there is no such class."""
    modular = modular_class(form)
    return call_parameters(form) if modular is None else inputs(blocks_of(modular))


def component_classes(form: str, component: str) -> tuple[str, ...]:
    """Names of the classes of a component that the blocks of a modular class may be given; () where they take none."""
    modular = modular_class(form)
    found = () if modular is None else _specs(blocks_of(modular), component)
    return tuple(sorted({getattr(spec.type_hint, "__name__", "") for spec in found}))


def _specs(block: Any, component: str) -> Iterator[Any]:
    inner = getattr(block, "sub_blocks", None) or {}
    for each in inner.values():
        yield from _specs(each, component)
    if not inner and component in (own := expected_components(block)):
        yield own[component]
