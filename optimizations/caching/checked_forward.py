"""Step caching that proves itself: what cache-dit makes of a call is held against what the model makes of it."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...errors import first_line
from ...fallback import is_out_of_memory, largest_difference, tensors_in

TOLERANCE = 1e-4
"""Largest difference, of the largest value; in half precision its own rounding."""


class CheckedForward:
    """A denoiser's `forward` with cache-dit, held against the model's own, which runs where they differ.

    cache-dit runs all blocks as one: what a model does between two of them, such as adding what a control model gives
    or leaving one out, is lost without a word. So the first call of each kind (the arguments that are given) of which
    nothing is skipped is computed both ways.

    Args:
        model: with cache-dit on it.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._cached, self._own = model, model.__dict__["forward"], model._original_forward
        self._reasons: dict[frozenset[str], str] = {}
        """Of each kind of call: why the model's own `forward` runs, "" where cache-dit's does."""
        self.restart()
        model.forward = functools.update_wrapper(functools.partial(self._forward), self._cached)

    def restart(self) -> None:
        """A run begins.

        Attributes: unfit: why the model's own `forward` ran in place of cache-dit's, or ""; own_calls: how often.
        """
        self.unfit = ""
        self.own_calls = 0

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        kind = frozenset(name for name, value in kwargs.items() if value is not None)
        if self._reasons.get(kind):
            return self._without(self._reasons[kind], args, kwargs)
        known = kind in self._reasons
        before = 0 if known else _skipped_runs(self._model)
        try:
            output = self._cached(*args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"cache-dit does not fit this run ({first_line(error)})"
            own = self._without(reason, args, kwargs)  # raises by itself what is no fault of cache-dit's
            self._reasons[kind] = reason
            return own
        if known:
            return output
        own = self._own(*args, **kwargs)
        if _skipped_runs(self._model) == before:
            fits = all(map(_alike, tensors_in(output), tensors_in(own)))
            self._reasons[kind] = "" if fits else "cache-dit leaves out something that this run gives its model"
            self.unfit = self.unfit or self._reasons[kind]
        return own

    def _without(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.unfit = reason
        self.own_calls += 1
        return self._own(*args, **kwargs)


def contexts_of(model: Any) -> list[Any]:
    """cache-dit's records of a denoiser's lists of blocks."""
    return [model._context_manager.get_context(name) for name in model._context_names]


def _skipped_runs(model: Any) -> int:
    return sum(len(context.cached_steps) + len(context.cfg_cached_steps) for context in contexts_of(model))


def _alike(ours: torch.Tensor, own: torch.Tensor) -> bool:
    most = max(TOLERANCE, torch.finfo(own.dtype).eps) * float(own.abs().max())
    return ours.shape == own.shape and largest_difference(ours, own) <= most
