"""Listens to one run through its callbacks: times the steps, samples memory, enforces a deadline, knows a cancel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ...callbacks import Callbacks, Progress
from .candidates import STEP_STAGE
from .meters import MemoryMeter, Stopwatch


class OutOfTime(Exception):  # noqa: N818 - no error: it ends a measurement in good order
    """The time limit was reached."""


class RunWatcher:
    """The callbacks for one run.

    Args:
        stopwatch, memory: what to read.
        check_cancel: the caller's own; whatever it raises travels unchanged.
        on_step: called with the number of steps done; also the caller's own.
        out_of_time: asked between units of work; True ends the run with `OutOfTime`.

    Attributes:
        interrupted: True when the run was ended from here: a cancel, not a failure of what ran.
    """

    def __init__(
        self,
        stopwatch: Stopwatch,
        memory: MemoryMeter,
        check_cancel: Callable[[], None],
        on_step: Callable[[int], None],
        out_of_time: Callable[[], bool],
    ) -> None:
        self._stopwatch, self._memory = stopwatch, memory
        self._check_cancel, self._on_step, self._out_of_time = check_cancel, on_step, out_of_time
        self._before_steps: Any = stopwatch.mark()
        self._after_step: list[Any] = []
        self.interrupted = False

    def callbacks(self) -> Callbacks:
        return Callbacks(on_progress=self._progress, check_cancel=self._check, previews=False)

    def step_seconds(self) -> tuple[float, ...]:
        """The time of each step. The first counts from the last sign of life before it."""
        marks = [self._before_steps, *self._after_step]
        return tuple(self._stopwatch.between(one, other) for one, other in pairwise(marks))

    def _progress(self, progress: Progress) -> None:
        if progress.stage == STEP_STAGE and progress.done > len(self._after_step):
            self._after_step.append(self._stopwatch.mark())
            self._guarded(self._on_step)(progress.done)
        elif not self._after_step:
            self._before_steps = self._stopwatch.mark()
        self._memory.sample()

    def _check(self) -> None:
        self._guarded(self._check_cancel)()
        if self._out_of_time():
            self.interrupted = True
            raise OutOfTime

    def _guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                call(*arguments)
            except BaseException:
                self.interrupted = True
                raise

        return guarded
