"""Values of arguments that are of the right kind and mean nothing: beyond a share, or a schedule that does not fall."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ....errors import InputError

SCHEDULES = {"sigmas": "[1.0, 0.5]", "timesteps": "[999, 500]"}
"""Argument with a value for every step -> an example."""
_SHARES = {"eta": True, "guidance_rescale": True, "denoising_start": False, "denoising_end": False}
"""Argument -> whether its ends, 0 and 1, mean something too; diffusers passes over a start or end that is one."""


def check_range(name: str, value: Any) -> None:
    """Refuse what diffusers would pass over or make noise with.

    Raises:
        InputError: a share beyond 0 and 1, or values of a schedule that do not fall.
    """
    if name in _SHARES and isinstance(value, int | float) and not isinstance(value, bool):
        closed = _SHARES[name]
        if not (0 <= value <= 1 if closed else 0 < value < 1):
            reason = "it is a share from 0 to 1" if closed else "it is a share between 0 and 1"
            raise InputError(f"argument {name}", value, reason, f"write {name}=0.5, or leave it out")
    if name in SCHEDULES:
        values = as_list(value)
        if isinstance(values, list | tuple) and all(isinstance(each, int | float) for each in values):
            _check_falling(name, list(values))


def as_list(value: Any) -> Any:
    """A row of numbers as a list; anything else as it is."""
    return value.tolist() if getattr(value, "ndim", None) == 1 else value


def _check_falling(name: str, values: list[float]) -> None:
    if any(each < 0 for each in values):
        reason = "noise is never less than none" if name == "sigmas" else "the last timestep is 0"
        raise InputError(f"argument {name}", values, reason, "give values from 0 upwards")
    if any(after >= before for before, after in pairwise(values)):
        cure = f"write them from the largest to the smallest: {name}={sorted(set(values), reverse=True)}"
        raise InputError(f"argument {name}", values, "each step has less noise than the one before it", cure)
    if name == "sigmas" and values and not values[0]:
        raise InputError("argument sigmas", values, "a run that starts without noise makes nothing", "leave it out")
