"""Inputs that another node gives: their values are not known when ComfyUI has a prompt checked before it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

from ...errors import FastDiffusersError, InputError

_KINDS: dict[str, tuple[type, str, str]] = {
    "STRING": (str, "text", "STRING"),
    "COMBO": (str, "text", "STRING"),
    "INT": (Integral, "a whole number", "INT"),
    "FLOAT": (Real, "a number", "FLOAT"),
}
"""A widget's type -> what its value is an instance of, in words, and which output gives one."""


def with_links_checked_later(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make what a node class is asked before it runs leave out what is not known then, and return the class.

    For a linked input ComfyUI passes None to `validate_inputs` and `fingerprint_inputs`, and leaves a missing one out.
    The values are checked when the node runs: by its `execute`, and here for their type, since an output of any type
    (`*`) can be linked to a widget.
    """
    run: Any = node.execute.__func__
    if hasattr(run, "_links_checked"):
        return node
    kinds = functools.cache(lambda: _kinds(node))

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        _check_types(kinds(), inputs)
        return run(cls, *args, **inputs)

    execute._links_checked = True  # type: ignore[attr-defined]
    node.execute = classmethod(execute)
    for name, unknown in (("validate_inputs", True), ("fingerprint_inputs", "")):
        if name in vars(node):
            _leave_out_unknown(node, name, unknown, kinds)
    return node


def _leave_out_unknown(node: type[io.ComfyNode], name: str, unknown: Any, kinds: Any) -> None:
    """Make a method that is asked before the run answer `unknown` where an input is linked or missing.

    A file that changes under a linked name is therefore loaded anew only when ComfyUI runs the node again.
    """
    method: Any = getattr(node, name).__func__
    signature = inspect.signature(method)
    named = [each for each in list(signature.parameters.values())[1:] if each.kind is not each.VAR_KEYWORD]

    @functools.wraps(method)
    def asked(cls: type[io.ComfyNode], **inputs: Any) -> Any:
        missing = [each.name for each in named if each.default is each.empty and each.name not in inputs]
        if missing or any(inputs.get(each.name, "") is None for each in named):
            return unknown
        if unknown is True:
            try:
                _check_types(kinds(), inputs)
            except FastDiffusersError as error:
                return error.in_short()
        return method(cls, **inputs)

    # ComfyUI reads off the signature which inputs to pass, and does not look behind a wrapper for it.
    asked.__signature__ = signature  # type: ignore[attr-defined]
    setattr(node, name, classmethod(asked))


def _kinds(node: type[io.ComfyNode]) -> dict[str, tuple[type, str, str]]:
    """What the value of each widget of a node must be."""
    inputs = node.define_schema().inputs
    return {each.id: _KINDS[each.io_type] for each in inputs if each.io_type in _KINDS}


def _check_types(kinds: Mapping[str, tuple[type, str, str]], inputs: Mapping[str, Any]) -> None:
    """Raise InputError for a value of another type than its widget's."""
    for name, value in inputs.items():
        kind, words, output = kinds.get(name, (object, "", ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and name in kinds):
            raise InputError(name, value, f"it must be {words}", f"connect an output of type {output}")
