"""Step caching that proves itself: what cache-dit makes of a call is held against what the model makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...errors import first_line
from ...fallback import is_out_of_memory, largest_difference

TOLERANCE = 0.02
"""Largest difference, of the largest value: room for rounding in half precision."""


class CheckedForward:
    """A denoiser's `forward` with cache-dit, held against the model's own, which runs where they differ.

    cache-dit runs all blocks as one: what a model does between two of them, such as adding what a control model gives,
    is left out without a word. So the first call of each kind (its arguments that are given) in a run's first step,
    of which nothing is skipped, is computed both ways.

    Args:
        model: with cache-dit on it.
        in_first_step: whether the call that runs belongs to a run's first step.
    """

    def __init__(self, model: Any, in_first_step: Callable[[], bool]) -> None:
        self._cached, self._own = model.__dict__["forward"], model._original_forward
        self._in_first_step = in_first_step
        self._reasons: dict[frozenset[str], str] = {}
        """Of each kind of call: why the model's own `forward` runs, "" where cache-dit's does."""
        self.unfit = ""
        """Why it did so in this run, or ""."""
        model.forward = functools.update_wrapper(functools.partial(self.forward), self._cached)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kind = frozenset(name for name, value in kwargs.items() if value is not None)
        if self._reasons.get(kind):
            self.unfit = self._reasons[kind]
            return self._own(*args, **kwargs)
        try:
            output = self._cached(*args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            own = self._own(*args, **kwargs)  # raises for itself what cache-dit has nothing to do with
            self._reasons[kind] = self.unfit = f"cache-dit does not fit this run ({first_line(error)})"
            return own
        if kind in self._reasons or not self._in_first_step():
            return output
        own = self._own(*args, **kwargs)
        apart = max(map(_apart, _tensors(output), _tensors(own)), default=0.0)
        self._reasons[kind] = ""
        if not apart <= TOLERANCE:
            self._reasons[kind] = self.unfit = "cache-dit leaves out something that this run gives its model"
        return own


def _tensors(output: Any) -> list[torch.Tensor]:
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else [output]
    )
    return [value for value in values if isinstance(value, torch.Tensor)]


def _apart(ours: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference of two outputs, of the largest value; infinite where their shapes differ."""
    if ours.shape != own.shape:
        return float("inf")
    return largest_difference(ours, own) / max(float(own.abs().max()), 1e-30)
