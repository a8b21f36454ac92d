"""FastDiffusers: diffusers pipelines and 3D video VAEs in ComfyUI, as fast as the card allows.

ComfyUI loads this folder by path and asks for `comfy_entrypoint`; everything else is imported when it is first needed,
so that starting ComfyUI costs nothing. Installed with pip, the same folder is the package `fastdiffusers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI's loader."""
    from .nodes import FastDiffusersExtension

    return FastDiffusersExtension()
