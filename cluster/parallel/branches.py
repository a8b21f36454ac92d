"""Guidance's two branches in two processes: each calls the denoiser for one of them, and both get both results.

Some pipelines call it once a step for a batch that is twice as long; then each process takes a half. Others call it
twice a step. Both calls are known at the first of them only by what they were in an earlier step: what the two had
in common then they have again, and what only one had, its text above all, stays. That is guessed at the first call and
looked at when the second comes: another call than the one that was guessed is made as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...fallback import tensors_in
from .nested import Path, halved, joined, leaves, mapped, same
from .trial import kind_of_call

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""


class Both(Protocol):
    """What two processes are to each other: see `Group`."""

    rank: int

    def most(self, value: float) -> float: ...

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]: ...


class OtherFailedError(Exception):
    """The other branch could not be made."""


@dataclass(frozen=True)
class Plan:
    """How a call is made by two processes.

    Attributes:
        kind: what tells calls apart that may go differently.
        whole: the call as it came.
        parts: the arguments for each process.
        join: the results as those of the calls that are replaced: one for a batch, two for calls in turn.
        in_turn: whether the second part is the guess of a call that is still to come.
    """

    kind: tuple[object, ...]
    whole: Call
    parts: tuple[Call, Call]
    join: Callable[[Any, Any], tuple[Any, ...]]
    in_turn: bool


class Branches:
    """The calls of one denoiser.

    Args:
        model: the denoiser.
        members: the two processes.
        count: pictures or clips in a batch; a call for twice as many has both branches.
    """

    def __init__(self, model: nn.Module, members: Both, count: int) -> None:
        self._members, self._count = members, count
        self._first = next(iter(list(inspect.signature(type(model).forward).parameters)[1:]), "")
        self._turns = _Turns(self._first)
        self.in_turn = False

    def known(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """The result of a call that was made with the one before it, in a tuple; None where none was, or another."""
        if not self._turns.waiting:
            return None
        result = self._turns.taken(args, kwargs)
        return result if not self._members.most(float(result is None)) else None

    def plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        """How to make a call, where it has both branches or a call of the other one is expected to follow."""
        found = self._in_a_batch(args, kwargs) or self._in_turn(args, kwargs)
        return found if not self._members.most(float(found is None)) else None

    def watch(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A call was made as it is: it may be one of two that follow each other in every step."""
        self._turns.watch(args, kwargs, result)
        self.in_turn |= self._turns.found

    def expect(self, plan: Plan, result: Any) -> None:
        """The second part of a plan is made already."""
        self._turns.expect(plan.parts[1], result)

    def made(self, plan: Plan, call: Callable[..., Any]) -> tuple[Any, ...]:
        """Make one part here, and the other in the other process.

        Raises:
            OtherFailedError: it could not be made there. Where it could not here, that error, in both.
        """
        args, kwargs = plan.parts[self._members.rank % 2]
        failure: Exception | None = None
        own: Any = None
        try:
            own = call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised below, once the other process knows
            failure = error
        if self._members.most(float(failure is not None)):
            raise failure or OtherFailedError("it failed in the other process")
        both = {path: self._members.gathered(leaf) for path, leaf in leaves(own) if isinstance(leaf, torch.Tensor)}

        def result_of(member: int) -> Any:
            return mapped(own, lambda path, leaf: both[path][member] if path in both else leaf)

        return plan.join(result_of(0), result_of(1))

    def _in_a_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        value: Any = args[0] if args else kwargs.get(self._first)
        by_list = isinstance(value, tuple | list)
        count = len(value) if by_list else value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else 0
        if count != 2 * self._count:
            return None
        first, second = (_half(args, kwargs, count, which, by_list) for which in (0, 1))
        kind = ("a batch of both", *kind_of_call(args, kwargs))
        return Plan(kind, (args, kwargs), (first, second), lambda a, b: (joined(a, b, count, by_list),), in_turn=False)

    def _in_turn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        second = self._turns.guess(args, kwargs)
        if second is None:
            return None
        kind = ("calls in turn", *kind_of_call(args, kwargs), *kind_of_call(*second))
        return Plan(kind, (args, kwargs), ((args, kwargs), second), lambda a, b: (a, b), in_turn=True)


class _Turns:
    """Two calls that follow each other in every step, as far as they were seen."""

    def __init__(self, first: str) -> None:
        self._input = first
        self._before: tuple[Call, Any] | None = None
        self._own: tuple[dict[Path, Any], dict[Path, Any]] | None = None
        self._paths: list[Path] = []
        self._made: tuple[Call, Any] | None = None

    @property
    def found(self) -> bool:
        return self._own is not None

    @property
    def waiting(self) -> bool:
        return self._made is not None

    def watch(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        before, self._before = self._before, ((args, kwargs), result)
        if before is None:
            return
        (one, one_result), two = before, (args, kwargs)
        first, second = dict(leaves(one)), dict(leaves(two))
        alike = list(first) == list(second) and _shapes(one_result) == _shapes(result)
        differ = [path for path in first if not same(first[path], second[path])] if alike else []
        if differ and not any(self._is_input(path) for path in differ):
            self._own = tuple({path: _copy(each[path]) for path in differ} for each in (first, second))  # type: ignore[assignment]
            self._paths = list(first)
            self._before = None

    def guess(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call that is to follow; None where this is no first one of two."""
        if self._own is None:
            return None
        first, second = self._own
        here = dict(leaves((args, kwargs)))
        if list(here) != self._paths or not all(same(here[path], each) for path, each in first.items()):
            return None
        # Copied: what the pipeline writes into its own meanwhile is another call.
        call: Call = mapped((args, kwargs), lambda path, leaf: second[path] if path in second else _copy(leaf))
        return call

    def expect(self, call: Call, result: Any) -> None:
        self._made, self._before = (call, result), None

    def taken(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        assert self._made is not None  # noqa: S101 - `waiting` was asked
        (call, result), self._made = self._made, None
        guessed, here = dict(leaves(call)), dict(leaves((args, kwargs)))
        right = list(guessed) == list(here) and all(same(guessed[path], here[path]) for path in here)
        return (result,) if right else None

    def _is_input(self, path: Path) -> bool:
        return path[:2] in ((0, 0), (1, self._input))


def _half(args: tuple[Any, ...], kwargs: dict[str, Any], count: int, which: int, by_list: bool) -> Call:
    half = lambda value: halved(value, count, which, by_list)
    return tuple(map(half, args)), {name: half(value) for name, value in kwargs.items()}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _shapes(value: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(each.shape, each.dtype) for each in tensors_in(value)]
