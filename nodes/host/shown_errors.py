"""How ComfyUI shows this pack's errors: cut to a line or two, so the cure goes first; and by the node's own names."""

from __future__ import annotations

import functools
from typing import Any

from comfy_api.latest import io

from ...errors import FastDiffusersError, InputError

_ON_NODES = {
    "batch": ("batch_size",),
    "compile_headroom_gib": ("headroom_gib",),
    "compile_scope": ("scope",),
    "lora expert": ("expert",),
    "lora strength": ("strength",),
    "latents": ("samples", "latent"),
    "frames": ("pixels", "images"),
    "mode": ("tiling",),
    "overlap": ("vae_tile_overlap",),
    "slicing": ("vae_slicing",),
    "tile_overlap": ("overlap", "vae_tile_overlap"),
    "tile_size": ("vae_tile_size",),
}
"""What the engine calls an input -> what nodes call it, those that have another name for it."""


def with_cures_first(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Make `execute` of a node class raise this pack's errors with the text of `in_short`, and return the class.

    An input is named as the node names it.
    """
    run: Any = node.execute.__func__
    if hasattr(run, "_cures_first"):
        return node

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return run(cls, *args, **inputs)
        except FastDiffusersError as error:
            if isinstance(error, InputError):
                error.name = _name_on(cls, error.name)
            error.args = (error.in_short(),)
            raise

    execute._cures_first = True  # type: ignore[attr-defined]
    node.execute = classmethod(execute)
    return node


def _name_on(node: type[io.ComfyNode], name: str) -> str:
    """What a node calls an input of the engine; the engine's name where the node has no other."""
    own = {each.id for each in node.define_schema().inputs}
    if name in own:
        return name
    return next((other for other in _ON_NODES.get(name, ()) if other in own), name)
