"""Arguments of a pipeline's call that no other input of a request gives: `eta`, `pag_scale`, `image_embeds` ..."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import FastDiffusersError, InputError, first_line
from .arguments.idle import check_attention, switched_off
from .arguments.names import arguments_of, given_already, objection, without_adapter
from .arguments.ranges import check_range
from .arguments.values import check_pictures, check_value
from .kinds import ArgumentCondition
from .taking import call_kinds

if TYPE_CHECKING:
    import torch

    from ..families import Family
    from ..types import SampleRequest

_FALLS = (AttributeError, TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AssertionError)
"""What a call raises for a value that it cannot work with."""


def check_arguments(family: Family, request: SampleRequest, form: str) -> list[str]:
    """Notes on arguments that do nothing.

    Args:
        form: the class that is called for this request; "" for the family's own.

    Raises:
        InputError: one that the call has not, that another input gives, or whose value is of another kind or range.
    """
    arguments = arguments_of(request)
    form = form or (family.classes[-1] if family.classes else "")
    if arguments and not form:
        reason = f"which arguments {family.name} takes is not known here"
        raise InputError("argument", ", ".join(arguments), reason, "leave it out, or run the model here")
    already = dict(given_already(family, request))
    kinds = call_kinds(form) if arguments else {}
    for name, argument in arguments.items():
        reason, cure = objection(family, form, name)
        if not reason and name in already:
            reason, cure = f"{already[name]} gives it", "leave one of them out"
        if not reason:
            reason, cure = without_adapter(family, request, name)
        if reason:
            raise InputError("argument", name, reason, cure)
        if argument.image is None:
            check_range(name, value := check_value(form, name, *kinds[name], argument.value))
            check_attention(name, value)
        else:
            check_pictures(form, name, *kinds[name], len(argument.image))
    return switched_off(family, request, form) if arguments else []


def argument_values(form: str, request: SampleRequest, to_picture: Any, device: torch.device | None) -> dict[str, Any]:
    """What the call is given for the arguments of a request.

    Args:
        form: the class that is called.
        to_picture: [H, W, C] to a picture of Pillow's.
        device: where tensors go.
    """
    given: dict[str, Any] = {}
    arguments = arguments_of(request)
    kinds = call_kinds(form) if arguments else {}
    for name, argument in arguments.items():
        hint = kinds.get(name, (None, None))
        if argument.image is None:
            given[name] = _placed(check_value(form, name, *hint, argument.value), device)
            continue
        pictures = [to_picture(each) for each in argument.image]
        given[name] = pictures if check_pictures(form, name, *hint, len(pictures)) else pictures[0]
    return given


def refuse_twice(values: Mapping[str, Any], others: Mapping[str, Any], free: tuple[str, ...]) -> None:
    """Raise InputError for an argument that the request's other inputs have come to give too.

    Args:
        values: of the arguments. `others`: what the call is given for the rest.
        free: what of the others nobody asked for.
    """
    for name in values:
        if others.get(name) is not None and name not in free:
            raise InputError("argument", name, "another input of the run gives it", "leave one of them out")


def refused_by_call(form: str, request: SampleRequest, error: Exception) -> InputError | None:
    """A failure of a call that was given arguments as one line that names them; None where it is of another kind."""
    from ...fallback import is_out_of_memory

    arguments = arguments_of(request)
    if (
        not arguments
        or not isinstance(error, _FALLS)
        or isinstance(error, FastDiffusersError)
        or is_out_of_memory(error)
    ):
        return None
    text = first_line(error)
    named = [name for name in arguments if name in text] or list(arguments)
    shown = "; ".join(f"{name}={_in_short(arguments[name])}" for name in named)
    it = "it" if len(named) == 1 else "them"
    return InputError(
        "argument", shown, f"with {it}, the call of {form} fails: {text}", f"give other values, or leave {it} out"
    )


def _in_short(argument: ArgumentCondition) -> str:
    if argument.image is not None:
        return "a picture"
    shape = getattr(argument.value, "shape", None)
    return json.dumps(argument.value, default=str) if shape is None else f"a tensor of shape {list(shape)}"


def _placed(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_placed(each, device) for each in value)
    return value.to(device) if hasattr(value, "to") and device is not None else value
