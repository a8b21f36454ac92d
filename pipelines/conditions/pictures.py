"""What every input that brings a picture or a clip is held to first."""

from __future__ import annotations

import math
from typing import Any

from ...errors import InputError

FAR_OUT = 0.5
"""How far beyond 0 or 1 values of a picture may lie without a word: what a sharp scaling leaves at edges."""


def check_image(name: str, image: Any) -> None:
    """Raise InputError for what is no picture [height, width, 3 or 4]."""
    shape = list(getattr(image, "shape", ()))
    if len(shape) != 3 or shape[-1] not in (3, 4) or 0 in shape:
        raise InputError(name, f"shape {shape}", "an image is [height, width, 3 or 4]", "give a picture")


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


def check_values(name: str, pixels: Any) -> list[str]:
    """A note on values far outside 0..1, which are cut off; [] where there are none.

    Args:
        pixels: not empty.

    Raises:
        InputError: they are no fractions, or NaN or infinite: no picture can be made of them.
    """
    kind = str(pixels.dtype).removeprefix("torch.")
    if not pixels.is_floating_point() and kind != "bool":
        reason = "a picture holds numbers with a floating point, from 0 for black to 1 for white"
        raise InputError(name, kind, reason, "divide those of 8 bits by 255")
    # What is repeated in every place, as where only the shape is known, is looked at once.
    each = pixels[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in pixels.stride())]
    low, high = (float(end) for end in each.float().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        reason = "it holds NaN or infinite values, which are no colours"
        raise InputError(name, "NaN" if math.isnan(low) else f"{low:g} to {high:g}", reason, "make the picture anew")
    if low < -FAR_OUT or high > 1 + FAR_OUT:
        return [f"{name}: its values go from {low:g} to {high:g}; what lies outside 0 to 1 is cut off."]
    return []


def is_clear(pixels: Any) -> bool:
    """Whether anything of pictures [..., C] is transparent."""
    return pixels.shape[-1] == 4 and bool((pixels[..., 3] < 1.0).any())
