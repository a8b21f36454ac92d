"""What every condition that brings a picture or a clip is held to first."""

from __future__ import annotations

from typing import Any

from ...errors import InputError


def shape_of(name: str, frames: Any, what: str, cure: str = "give a picture") -> list[int]:
    """The shape of pictures or of the frames of a clip, [count, height, width, channels].

    Args:
        name: of the input, for errors.
        what: what they are to be, in words.

    Raises:
        InputError: they have another shape, or are empty.
    """
    shape = list(getattr(frames, "shape", ()))
    if len(shape) != 4 or shape[-1] not in (3, 4) or 0 in shape:
        raise InputError(name, f"shape {shape}", what, cure)
    return shape
