"""What the call of a class takes: its arguments, or, of a modular class, the inputs of its blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, get_type_hints

from ...optimizations.components import is_modular_class
from ..classes.forms import call_parameters
from ..modular.blocks import blocks_of, expected_components, inputs
from ..modular.models import CLASSICAL


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


def call_kinds(form: str) -> Mapping[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of what the call of diffusers' class of that name takes.

    The annotation is None where there is none, or where it names what cannot be found; the default is
    `inspect.Parameter.empty` of an argument that must be given.
    """
    import diffusers

    modular = modular_class(form)
    if modular is not None:
        like = call_kinds(CLASSICAL.get(form, ""))  # not every input of a block says of which kind it is
        return {
            item.name: (like.get(item.name, (None,))[0] if item.type_hint is None else item.type_hint, item.default)
            for item in blocks_of(modular).inputs
            if item.name
        }
    form_class = getattr(diffusers, form, None) if form else None
    names = vars(inspect.getmodule(form_class)) if isinstance(form_class, type) else {}
    return {
        name: (_annotation(parameter.annotation, names), parameter.default)
        for name, parameter in call_parameters(form).items()
    }


def _annotation(written: Any, names: dict[str, Any]) -> Any:
    """An annotation, resolved where it is written as text; None where there is none, or it cannot be."""
    if written is inspect.Parameter.empty:
        return None
    try:
        holder: Any = SimpleNamespace(__annotations__={"it": written})
        return get_type_hints(holder, names)["it"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None if isinstance(written, str) else written


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
