"""How diffusers' group offloading is recognised: it puts hooks onto the modules whose weights it moves."""

from __future__ import annotations

from typing import Any


def is_group_offloaded(module: Any) -> bool:
    """Whether diffusers' group offload acts when this very module is called."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None
