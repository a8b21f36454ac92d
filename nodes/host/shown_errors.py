"""How ComfyUI shows this pack's errors: cut to a line or two, so the cure goes first."""

from __future__ import annotations

import functools
from typing import Any

from comfy_api.latest import io

from ...errors import FastDiffusersError


def with_cures_first(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make `execute` of a node class raise this pack's errors with the text of `in_short`, and return the class."""
    run: Any = node.execute.__func__
    if hasattr(run, "__wrapped__"):
        return node

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return run(cls, *args, **inputs)
        except FastDiffusersError as error:
            error.args = (error.in_short(),)
            raise

    node.execute = classmethod(execute)
    return node
