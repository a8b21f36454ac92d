"""The denoisers of a pipeline during a run: each call split, if it is wanted and calls of its kind have been tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from ...optimizations.components import denoisers
from .choice import why_not
from .group import Group
from .split import Split
from .trial import Verdict, kind_of_call, tried

Verdicts = dict[tuple[object, ...], Verdict]
"""By denoiser and kind of call."""


class Gates:
    """All denoisers of one pipeline.

    Args:
        pipeline: as loaded.
        group: whose every member runs the same.
        verdicts: of earlier runs of the same pipeline with the same settings; this one's are added.

    Attributes:
        wanted: whether calls are to be split from now on; all members change it at the same step.
        split, whole: how many calls were.
        tried: how many trials there were.
        refused: why a denoiser can never be split, by its name.
    """

    def __init__(self, pipeline: Any, group: Group, verdicts: Verdicts | None = None) -> None:
        self.wanted = True
        self.split = self.whole = self.tried = 0
        self._verdicts: Verdicts = {} if verdicts is None else verdicts
        self._met: Verdicts = {}
        self.refused: dict[str, str] = {}
        self._group = group
        self._models: dict[str, nn.Module] = denoisers(pipeline)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold this around a run. A denoiser is as it was after each of its calls, and of its own class at the end."""
        with ExitStack() as stack:
            for name, model in self._models.items():
                if why := why_not(type(model), getattr(model, "config", {}), self._group.size):
                    self.refused[name] = why
                else:
                    stack.enter_context(self._gate(name, model))
            yield

    def reasons(self) -> list[str]:
        """Why calls were not split, each reason once."""
        told = [*self.refused.values(), *(verdict.reason for verdict in self._met.values())]
        return list(dict.fromkeys(filter(None, told)))

    def worst(self) -> Verdict | None:
        """Of the kinds of calls that were split, the one whose trial was furthest off."""
        good = [verdict for verdict in self._met.values() if not verdict.reason]
        return max(good, key=lambda verdict: verdict.difference, default=None)

    @property
    def hopeless(self) -> bool:
        """Whether calls were tried, and none of them can be split."""
        return bool(self.refused or self._met) and self.worst() is None

    @contextmanager
    def _gate(self, name: str, model: nn.Module) -> Iterator[None]:
        # Before any of its hooks is asked, a module has looked up its `forward`: what splits a call comes before that.
        split, kind = Split(model, self._group.mesh, self._group.device), type(model)

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with split.on() if self._splits(name, split, args, kwargs) else nullcontext():
                return kind.__call__(module, *args, **kwargs)

        gated = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
        model.__class__ = gated
        try:
            yield
        finally:
            model.__class__ = kind

    def _splits(self, name: str, split: Split, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is to be split, which is tried first where none of its kind has been."""
        splits = False
        if self.wanted:
            kind = (name, *kind_of_call(args, kwargs))
            if kind not in self._verdicts:
                self._verdicts[kind] = tried(split.model, args, kwargs, split.on, self._group)
                self.tried += 1
            self._met[kind] = self._verdicts[kind]
            splits = not self._met[kind].reason
        self.split, self.whole = self.split + splits, self.whole + (not splits)
        return splits
