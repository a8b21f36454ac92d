"""The denoisers of a pipeline during a run: each call split, if it is wanted and calls of its kind have been tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from ...optimizations.components import denoisers
from .branches import Branches, Plan
from .choice import CFG, ULYSSES, way_for
from .group import Group
from .split import Split
from .trial import Verdict, compared, kind_of_call, layers_of, tried

ONE_BRANCH = "no call of the denoiser was one of guidance's two branches, or had both: guidance is off"
ONE_STEP = "the first step is made whole, to see which calls are guidance's, and there was no other"


Verdicts = dict[tuple[object, ...], Verdict]
"""By denoiser and kind of call."""
Way = Callable[[tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]
"""Makes a call of a denoiser: (positional arguments, named ones, the call itself) to its result."""


class Gates:
    """All denoisers of one pipeline.

    Args:
        pipeline: as loaded.
        group: whose every member runs the same.
        verdicts: of earlier runs of the same pipeline with the same settings; this one's are added.
        parallel: "ulysses": diffusers' context parallelism; "cfg": guidance's two branches; "auto": the first where
            diffusers has a plan, else the second.
        count: pictures or clips that the run makes at once.

    Attributes:
        wanted: whether calls are to be split from now on; all members change it at the same step.
        split, whole: how many calls were.
        tried: how many trials there were.
        refused: why a denoiser can never be split, by its name.
        ways: how calls were split: "ulysses", "cfg".
    """

    def __init__(
        self, pipeline: Any, group: Group, verdicts: Verdicts | None = None, parallel: str = ULYSSES, count: int = 1
    ) -> None:
        self.wanted = True
        self.split = self.whole = self.tried = 0
        self._verdicts: Verdicts = {} if verdicts is None else verdicts
        self._met: Verdicts = {}
        self.refused: dict[str, str] = {}
        self.ways: dict[str, None] = {}
        self._group, self._parallel, self._count = group, parallel, count
        self._models: dict[str, nn.Module] = denoisers(pipeline)
        self._branches: list[Branches] = []

    def possible(self) -> list[str]:
        """How calls of the denoisers would be split."""
        ways = (self._way_for(model) for model in self._models.values())
        return list(dict.fromkeys(way for way, why in ways if not why))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold this around a run. A denoiser is as it was after each of its calls, and of its own class at the end."""
        with ExitStack() as stack:
            for name, model in self._models.items():
                way, why = self._way_for(model)
                if why:
                    self.refused[name] = why
                else:
                    stack.enter_context(_gate(model, self._way(way, name, model)))
            yield

    def reasons(self) -> list[str]:
        """Why calls were not split, each reason once."""
        told = [*self.refused.values(), *(verdict.reason for verdict in self._met.values())]
        if self._branches and not self._met and self.whole:
            told.append(ONE_STEP if any(each.in_turn for each in self._branches) else ONE_BRANCH)
        return list(dict.fromkeys(filter(None, told)))

    def worst(self) -> Verdict | None:
        """Of the kinds of calls that were split, the one whose trial was furthest off."""
        good = [verdict for verdict in self._met.values() if not verdict.reason]
        return max(good, key=lambda verdict: verdict.difference, default=None)

    @property
    def hopeless(self) -> bool:
        """Whether calls were tried, and none of them can be split."""
        return bool(self.refused or self._met) and self.worst() is None

    def _way_for(self, model: nn.Module) -> tuple[str, str]:
        return way_for(self._parallel, type(model), getattr(model, "config", {}), self._group.size)

    def _way(self, way: str, name: str, model: nn.Module) -> Way:
        if way == CFG:
            branches = Branches(model, self._group, self._count)
            self._branches.append(branches)
            return partial(self._by_branches, name, model, branches)
        return partial(self._by_tokens, name, Split(model, self._group.mesh, self._group.device))

    def _by_tokens(
        self, name: str, split: Split, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[..., Any]
    ) -> Any:
        """A call of which each process computes some of the tokens."""
        good = self.wanted and self._passes(
            (name, *kind_of_call(args, kwargs)), lambda: tried(split.model, args, kwargs, split.on, self._group)
        )
        self._counted(ULYSSES, good)
        with split.on() if good else nullcontext():
            return call(*args, **kwargs)

    def _by_branches(
        self,
        name: str,
        model: nn.Module,
        branches: Branches,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Callable[..., Any],
    ) -> Any:
        """A call of which each process computes one branch of guidance, or one call of two that follow each other."""
        if (made := branches.known(args, kwargs)) is not None:
            self._counted(CFG, True)
            return made[0]
        plan = branches.plan(args, kwargs) if self.wanted else None
        if plan is None or not self._passes((name, *plan.kind), lambda: self._tried(model, branches, plan)):
            self._counted(CFG, False)
            result = call(*args, **kwargs)
            branches.watch(args, kwargs, result)
            return result
        self._counted(CFG, True)
        first, *second = branches.made(plan, call)
        if second:
            branches.expect(plan, second[0])
        return first

    def _tried(self, model: nn.Module, branches: Branches, plan: Plan) -> Verdict:
        """The calls that a plan replaces, compared with what the processes make of it."""
        forward = model.forward
        calls = plan.parts if plan.in_turn else (plan.whole,)
        return compared(
            lambda: tuple(forward(*args, **kwargs) for args, kwargs in calls),
            lambda: branches.made(plan, forward),
            layers_of(model),
            self._group,
        )

    def _passes(self, kind: tuple[object, ...], trial: Callable[[], Verdict]) -> bool:
        """Whether a kind of call may be split, which is tried first where none of it has been."""
        if kind not in self._verdicts:
            self._verdicts[kind] = trial()
            self.tried += 1
        self._met[kind] = self._verdicts[kind]
        return not self._met[kind].reason

    def _counted(self, way: str, split: bool) -> None:
        self.split, self.whole = self.split + split, self.whole + (not split)
        if split:
            self.ways[way] = None


@contextmanager
def _gate(model: nn.Module, way: Way) -> Iterator[None]:
    """While the block runs, calls of a model go through `way`."""
    # Before any of its hooks is asked, a module has looked up its `forward`: what splits a call comes before that.
    kind = type(model)

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return way(args, kwargs, partial(kind.__call__, module))

    model.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    try:
        yield
    finally:
        model.__class__ = kind
