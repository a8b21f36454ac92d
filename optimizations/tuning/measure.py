"""Paired, interleaved timing of several settings on one loaded pipeline.

Every candidate is warmed up once, apart. Then come rounds: each candidate runs once per round, in an order that turns
from round to round, and the pairs within a round are compared (`statistics.py`). It stops after the wanted number
of rounds, earlier when all intervals are narrow, or when the time is up; a cancel leaves what was measured.

What a candidate *is* stays open: a name and a function that makes one run. Nothing here knows pipelines.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ...callbacks import SILENT, Callbacks, Progress
from ...errors import FastDiffusersError, InputError
from ...fallback import all_finite
from .candidates import STEP_STAGE, Candidate, Measured, Outcome, Plan, TimedRun, split
from .meters import MemoryMeter, Stopwatch
from .quality import Quality, quality

logger = logging.getLogger(__name__)


class OutOfTime(Exception):  # noqa: N818 - no error: it ends a measurement in good order
    """The time limit was reached."""


class RunProgress:
    """Callbacks for one run: sample memory, keep to a deadline, tell a cancel from a failure.

    Args:
        memory: sampled at every tick.
        check_cancel: the caller's own; whatever it raises travels unchanged.
        on_step: called with the number of steps done; also the caller's own.
        out_of_time: asked between units of work; True ends the run with `OutOfTime`.

    Attributes:
        interrupted: True when the run was ended from here: a cancel, not a failure of what ran.
    """

    def __init__(
        self,
        memory: MemoryMeter,
        check_cancel: Callable[[], None],
        on_step: Callable[[int], None],
        out_of_time: Callable[[], bool],
    ) -> None:
        self._memory = memory
        self._check_cancel, self._on_step, self._out_of_time = check_cancel, on_step, out_of_time
        self.interrupted = False

    def callbacks(self) -> Callbacks:
        return Callbacks(on_progress=self._progress, check_cancel=self._check, previews=False)

    def _progress(self, progress: Progress) -> None:
        if progress.stage == STEP_STAGE:
            self._guarded(self._on_step, progress.done)
        self._memory.sample()

    def _check(self) -> None:
        self._guarded(self._check_cancel)
        if self._out_of_time():
            self.interrupted = True
            raise OutOfTime

    def _guarded(self, call: Callable[..., None], *arguments: int) -> None:
        try:
            call(*arguments)
        except BaseException:
            self.interrupted = True
            raise


class PairedMeasurement:
    """Measures candidates against the first of them, which is plain.

    >>> measurement = PairedMeasurement([plain, compiled], Plan(runs=5), stopwatch(device), DeviceMemoryMeter(device))
    >>> measurement.run(callbacks)          # may be cancelled: what was measured stays
    >>> measurement.measured[1].against(measurement.measured[0]).verdict
    'faster'

    Args:
        candidates: plain first.
        plan: how much to measure.
        stopwatch: what times the runs and their steps.
        memory: what watches the peaks.
        clock: seconds for the time limit, which must not wait for the device.

    Attributes:
        measured: one entry per candidate, in their order, filled while it runs.
        stopped: why it ended before all rounds were done, or "".
        elapsed: seconds it took.

    Raises:
        InputError: fewer than two candidates, two of one name, or (from `run`) a time limit below one run.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        plan: Plan,
        stopwatch: Stopwatch,
        memory: MemoryMeter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = [candidate.name for candidate in candidates]
        if len(names) < 2:
            raise InputError("compare", ",".join(names), "there is nothing to compare", "name at least two settings")
        if len(set(names)) < len(names):
            raise InputError("compare", ",".join(names), "a name occurs twice", "name each setting once")
        self.measured = [Measured(name) for name in names]
        self.stopped = ""
        self.elapsed = 0.0
        self._candidates = list(candidates)
        self._plan, self._stopwatch, self._memory, self._clock = plan, stopwatch, memory, clock
        self._begin = 0.0
        self._plain_result: torch.Tensor | None = None
        self._done_runs = 0

    @property
    def plain(self) -> Measured:
        return self.measured[0]

    def run(self, callbacks: Callbacks = SILENT) -> None:
        """Measure. Raises whatever `callbacks.check_cancel` raises, unchanged; `measured` holds what was done."""
        self._begin = self._clock()
        try:
            self._warm_up(callbacks)
            self._rounds(callbacks)
        except OutOfTime:
            self.stopped = self._limit_reached()
            if self.plain.first is None:
                raise InputError(
                    "time_limit", self._plan.time_limit, "one plain run takes longer", "allow more, or fewer steps"
                ) from None
        except BaseException:
            self.stopped = self.stopped or "cancelled"
            raise
        finally:
            self.elapsed = self._clock() - self._begin
            self._plain_result = None
        logger.info("measured %d candidates in %.1f s", len(self.measured), self.elapsed)

    def _warm_up(self, callbacks: Callbacks) -> None:
        for index, measured in enumerate(self.measured):
            kept = self._one_round()
            # Nothing is known yet of the next one, but that it takes at least as long as plain.
            if self.plain.expected_seconds is not None and self.seconds_left() < kept + self.plain.expected_seconds:
                self.stopped = self._limit_reached()
                return
            self._memory.empty()
            try:
                timed, outcome = self._attempt(index, "warm-up", callbacks, kept)
            except OutOfTime:
                if index == 0:
                    raise
                self.stopped = self._limit_reached()
                return
            if timed is None or outcome is None:
                continue
            measured.first = timed
            if index == 0:
                self._plain_result = outcome.result
            else:
                self._judge(measured, outcome)

    def _one_round(self) -> float:
        """Seconds for a run of each that has run, and half as much again: a long first run must leave them over."""
        return 1.5 * sum(measured.expected_seconds or 0.0 for measured in self.measured)

    def _limit_reached(self) -> str:
        return f"the time limit of {self._plan.time_limit:g} s was reached"

    def _rounds(self, callbacks: Callbacks) -> None:
        if self.stopped and sum(measured.first is not None for measured in self.measured) < 2:
            return  # plain alone: nothing to compare with
        for number in range(self._plan.runs):
            for index in self._order(number):
                self._check_time(self.measured[index])
                timed, outcome = self._attempt(index, f"round {number + 1} of {self._plan.runs}", callbacks)
                if timed is None or outcome is None:
                    continue
                measured = self.measured[index]
                measured.runs.append(timed)
                measured.rounds.append(number)
                self._judge(measured, outcome)
            if number + 1 >= 3 and self._narrow():
                if number + 1 < self._plan.runs:
                    self.stopped = f"after {number + 1} rounds every interval was within {self._plan.precision:.1%}"
                return

    def _judge(self, measured: Measured, outcome: Outcome) -> None:
        """Compare with plain's first result, once; plain's own second result tells whether plain repeats itself."""
        measured.report = outcome.report
        if measured.quality is None and self._plain_result is not None:
            measured.quality = quality(outcome.result, self._plain_result)
        elif not all_finite(outcome.result):
            measured.quality = Quality(finite=False, problem="a result holds NaN or infinity")

    def _order(self, number: int) -> Iterator[int]:
        """Who runs when in a round: each round begins with the next candidate, and every other one runs backwards."""
        ready = [measured.first is not None and not measured.problem for measured in self.measured]
        working = [index for index, is_ready in enumerate(ready) if is_ready]
        start = number % len(working)
        order = working[start:] + working[:start]
        return iter(order if number % 2 == 0 else order[::-1])

    def _narrow(self) -> bool:
        if self._plan.precision <= 0:
            return False
        others = [measured for measured in self.measured[1:] if measured.first is not None and not measured.problem]
        verdicts = [measured.against(self.plain) for measured in others]
        return all(verdict.half_width <= self._plan.precision for verdict in verdicts)

    def _attempt(
        self, index: int, what: str, callbacks: Callbacks, kept: float = 0.0
    ) -> tuple[TimedRun | None, Outcome | None]:
        """One run; a candidate other than plain that fails is given up, with the reason, and costs nobody else.

        Args:
            kept: seconds of the time limit that it must leave over.
        """
        candidate, measured = self._candidates[index], self.measured[index]
        label = f"{candidate.name}, {what}"
        self._announce(callbacks, label, 0)
        callbacks.check_cancel()
        self._memory.reset()
        start = self._stopwatch.mark()
        progress = RunProgress(
            self._memory,
            check_cancel=callbacks.check_cancel,
            on_step=lambda step: self._announce(callbacks, label, step),
            out_of_time=lambda: self.seconds_left() < kept,
        )
        try:
            outcome = candidate.run(progress.callbacks())
        except BaseException as error:
            if index == 0 or progress.interrupted or not isinstance(error, Exception):
                raise
            said = " ".join(str(error).split())[:300]
            # The pack's own errors are sentences; of another the kind tells more than its text.
            measured.problem = said if isinstance(error, FastDiffusersError) else f"{type(error).__name__}: {said}"
            logger.info("%s is given up: %s", candidate.name, measured.problem)
        else:
            seconds = self._stopwatch.between(start, self._stopwatch.mark())
            steps, stages = outcome.step_seconds, split(seconds, outcome.step_seconds, outcome.stage_seconds)
            seen = (outcome.offloaded_bytes, outcome.step_experts, outcome.moved)
            return TimedRun(seconds, steps, stages, self._memory.peak(), *seen), outcome
        finally:
            self._done_runs += 1
        gc.collect()  # after an out-of-memory, the failed run's tensors must not stand in the way of the next one
        return None, None

    def _announce(self, callbacks: Callbacks, label: str, step: int) -> None:
        each = self._plan.steps + 1
        total = len(self.measured) * (self._plan.runs + 1) * each
        done = min(self._done_runs * each + min(step, self._plan.steps), total)
        left = self.remaining_seconds()
        time_left = "" if left is None else f", {duration(left)} left"
        callbacks.on_progress(Progress("benchmark", done, total, label + time_left))

    def _check_time(self, like: Measured) -> None:
        """Stop when a run of `like` would not fit into the time limit."""
        if self.seconds_left() < (like.expected_seconds or 0.0):
            raise OutOfTime

    def seconds_left(self) -> float:
        """Until the time limit; infinite without one."""
        if self._plan.time_limit is None:
            return float("inf")
        return self._plan.time_limit - (self._clock() - self._begin)

    def remaining_seconds(self) -> float | None:
        """How long the rest of the plan takes, judged by the runs so far; None before the first is done."""
        plain = self.plain.expected_seconds
        if plain is None:
            return None
        total = 0.0
        for measured in self.measured:
            if measured.problem:
                continue
            each = measured.run.median if measured.run else measured.expected_seconds or plain
            left = self._plan.runs - len(measured.runs) + (measured.first is None)
            total += each * left
        return min(total, self.seconds_left())


def duration(seconds: float) -> str:
    """A time for a person: "8 s", "2 min 05 s", "1 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
