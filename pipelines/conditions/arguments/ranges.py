"""Values of arguments that are of the right kind and mean nothing, since they are beyond a share or a size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....errors import InputError
from .names import arguments_of

if TYPE_CHECKING:
    from ...families import Family
    from ...types import SampleRequest

_SHARES = {"eta": True, "guidance_rescale": True, "denoising_start": False, "denoising_end": False}
"""Argument -> whether its ends, 0 and 1, mean something too; diffusers passes over a start or end that is one."""


def check_range(name: str, value: Any) -> None:
    """Refuse what diffusers would pass over or make noise with.

    Raises:
        InputError: a share beyond 0 and 1.
    """
    if name in _SHARES and isinstance(value, int | float) and not isinstance(value, bool):
        closed = _SHARES[name]
        if not (0 <= value <= 1 if closed else 0 < value < 1):
            reason = "it is a share from 0 to 1" if closed else "it is a share between 0 and 1"
            raise InputError(f"argument {name}", value, reason, f"write {name}=0.5, or leave it out")


def reference_size(family: Family, request: SampleRequest, width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels that a reference clip is brought to: those of the result, or a whole part of them.

    Raises:
        InputError: the part that an argument asks for is of no size that the model takes.
    """
    given = arguments_of(request).get("reference_downscale_factor")
    factor, multiple = 1 if given is None else given.value, family.size_multiple
    if isinstance(factor, bool) or not isinstance(factor, int):
        return width, height
    parts = range(1, min(width, height) // multiple + 1)
    fitting = [part for part in parts if not width % (part * multiple) and not height % (part * multiple)]
    if factor not in fitting:
        reason = f"of {width}x{height} that leaves no size in multiples of {multiple}"
        cure = f"use {' or '.join(map(str, fitting or (1,)))}, or another size"
        raise InputError("argument reference_downscale_factor", factor, reason, cure)
    return width // factor, height // factor
