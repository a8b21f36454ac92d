"""Compatibility with older ComfyUI versions: options that they do not know are left out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in inspect.signature(io.Input.__init__).parameters else {}
"""Keyword arguments of an input that is hidden until the user asks for the advanced ones."""


def schema(**options: Any) -> io.Schema:
    """`io.Schema(**options)` without the options that the running ComfyUI has no field for (`search_aliases`)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in options.items() if name in known})
