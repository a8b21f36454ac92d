"""Qwen-Image-Edit enlarges every input to a megapixel, seconds on one core: here to 128x128 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_edit_pictures_small(put: Callable[[Any, str, Any], None]) -> None:
    """Replace what it asks for the size of a picture.

    Args:
        put: `setattr`, or pytest's, which undoes it.
    """
    from diffusers.modular_pipelines.qwenimage import encoders
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

    original = pipeline_qwenimage_edit.calculate_dimensions
    for module in (pipeline_qwenimage_edit, encoders):
        put(module, "calculate_dimensions", lambda area, ratio: original(min(area, 128 * 128), ratio))
