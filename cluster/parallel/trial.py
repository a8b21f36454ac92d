"""Whether a split call of a denoiser gives what one process gives: tried with the real arguments, before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...fallback import describe, is_out_of_memory, largest_difference, tensors_in
from ...optimizations.components import attention_layers

SAME = 1e-5
"""How far a float32 result may be off, as a part of its largest value where that is above 1."""


class Members(Protocol):
    """What a trial needs of a `Group`."""

    def most(self, value: float) -> float: ...


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    Attributes:
        difference: of the split call from the whole one, in the worst process; infinity where there is none.
        bound: what is taken.
        reason: why calls of this kind are not split, or "".
    """

    difference: float
    bound: float
    reason: str = ""


def bound_for(dtype: torch.dtype, layers: int) -> float:
    """How far a split result may be off.

    In float32 `SAME`, of the largest value. In 16 bits, where each attention layer adds twice to a sum that is rounded
    every time, a relative error of eps / 2 at most: two runs that round differently are, over all 2 * layers sums,
    sqrt(2 * 2 * layers) * eps / 2 = sqrt(layers) * eps apart, of the root of the mean square.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return math.sqrt(max(layers, 1)) * torch.finfo(dtype).eps
    return SAME


def difference(whole: Any, split: Any) -> float:
    """How far two results of a model are apart, in the measure of `bound_for`; infinity where they are not alike."""
    pairs = list(zip(tensors_in(whole), tensors_in(split), strict=False))
    alike = len(tensors_in(whole)) == len(tensors_in(split)) and all(a.shape == b.shape for a, b in pairs)
    if not pairs or not alike:
        return math.inf
    return max(_apart(a, b) for a, b in pairs)


def _apart(whole: torch.Tensor, split: torch.Tensor) -> float:
    if whole.dtype in (torch.float16, torch.bfloat16):
        length = float(whole.float().norm())
        apart = float((whole.float() - split.float()).norm())
        found = apart / length if length else apart
    else:
        found = largest_difference(whole, split) / max(1.0, float(whole.float().abs().max()))
    return found if math.isfinite(found) else math.inf


def kind_of_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[object, ...]:
    """What tells calls apart that may go differently: the shapes and types of their tensors, and where they stand."""
    names = (*map(str, range(len(args))), *kwargs)
    values = (*args, *kwargs.values())
    return tuple(
        (name, tuple((tuple(each.shape), each.dtype) for each in tensors_in(value)))
        for name, value in zip(names, values, strict=True)
    )


def tried(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    split: Callable[[], AbstractContextManager[None]],
    members: Members,
) -> Verdict:
    """Call a model whole and split, in every process, and compare.

    Raises:
        Exception: of the whole call; and out of memory, after which the processes have to end.
    """

    def split_call() -> Any:
        with split():
            return model.forward(*args, **dict(kwargs))

    return compared(lambda: model.forward(*args, **dict(kwargs)), split_call, layers_of(model), members)


def compared(whole: Callable[[], Any], split: Callable[[], Any], layers: int, members: Members) -> Verdict:
    """Make something whole and split, in every process, and compare. Args and errors as of `tried`."""
    made = whole()
    failure, found = "", math.inf
    try:
        found = difference(made, split())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        failure = describe(error)
    bound = bound_for(_dtype(made), layers)
    worst = members.most(found)
    if failure:
        return Verdict(worst, bound, f"a split call failed: {failure}")
    if worst > bound:
        told = "gave something else" if math.isinf(worst) else f"was {worst:.2g} off, where {bound:.2g} is taken"
        return Verdict(worst, bound, f"a split call {told}")
    return Verdict(worst, bound)


def layers_of(model: nn.Module) -> int:
    """How many attention layers a model has: see `bound_for`."""
    return len(list(attention_layers(model)))


def _dtype(value: Any) -> torch.dtype:
    found = tensors_in(value)
    return found[0].dtype if found else torch.float32
