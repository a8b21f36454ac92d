"""Compatibility with older ComfyUI versions: options that they do not know are left out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

from .texts import add_texts

ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in inspect.signature(io.Input.__init__).parameters else {}
"""Keyword arguments of an input that is hidden until the user asks for the advanced ones."""


def schema(**options: Any) -> io.Schema:
    """`io.Schema(**options)` with the node's texts, and without what the running ComfyUI has no field for."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in add_texts(options).items() if name in known})
