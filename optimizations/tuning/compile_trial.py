"""A trial of compiled code: eager steps first, then compiled ones, and whatever is not faster is undone in place.

A trial belongs to one key and one choice of settings and lives as long as the process: few-step models have too few
steps in one run to compare, so the comparison goes on in the next. It never sees a pipeline: it is told how long each
step took, and calls two functions, one that compiles and one that undoes it. It drops both at the end of the run,
because they hold the pipeline, which would otherwise live as long as the process too.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from ...callbacks import Callbacks, Progress
from ..compile_cost import Expectation, PayBack
from .candidates import STEP_STAGE
from .statistics import separated

logger = logging.getLogger(__name__)

ENOUGH = 3
"""Steps of each kind that a comparison needs; the first of a run, or of an expert, never counts."""
AT_MOST = 6
"""Compiled steps after which "no difference" is final."""
CLEARLY = 1.1
"""Two compiled steps above every eager one by this factor end the trial at once."""
_NEARLY_ALL = 0.99
"""Of the weights: buffers that are made lazily, or a LoRA, are no offloading."""


class State(enum.Enum):
    """Where a trial stands."""

    WATCHING = "watching plain steps"
    TRIAL = "trying compiled steps"
    KEPT = "kept"
    REVERTED = "reverted"
    DECLINED = "declined"


def left_the_device(before: int | None, now: int | None) -> str:
    """Says how much of the model compiled code has pushed off the device, or "". Bytes; None where not known."""
    if before is None or now is None or now >= before * _NEARLY_ALL:
        return ""
    return f"with compiled code {(before - now) / 2**30:.2f} GiB of the model left the device"


def _no_phase(step: int) -> str:
    return ""


@dataclass(frozen=True)
class Controls:
    """What a trial can do to the run that it watches, and ask of it.

    Attributes:
        start: compiles in place, for the next step; returns why it did not, or "".
        revert: undoes it in place.
        resident: bytes of the model's weights on the device now, or None where that says nothing (offloading).
        broken: why the compiled code has given up meanwhile, or "".
    """

    start: Callable[[], str] = str
    revert: Callable[[], None] = lambda: None
    resident: Callable[[], int | None] = lambda: None
    broken: Callable[[], str] = str


class CompileTrial:
    """Compares compiled steps with eager ones and says which stay.

    Args:
        expected: what compiling is expected to cost and bring, for the decision to begin.

    Attributes:
        state: where it stands. `KEPT`, `REVERTED` are final; `DECLINED` holds for the current run only.
        verdict: "faster", "slower", "noise", "failed" once it is final, or "".
        reason: how it came to the state, for a person.
        eager, compiled: seconds of the counted steps; to a person, eager ones are called plain.
        compile_seconds: time that first compiled steps took beyond eager ones.
        remembered: set by whoever has kept the verdict.
    """

    def __init__(self, expected: Expectation) -> None:
        self.state = State.WATCHING
        self.verdict = ""
        self.reason = ""
        self.eager: list[float] = []
        self.compiled: list[float] = []
        self.compile_seconds = 0.0
        self.remembered = False
        self._expected = expected
        self._session_steps = 0
        self._steps = 0
        self._done = 0
        self._explained = False
        self._phases: set[str] = set()
        self._resident_before: int | None = None
        self._controls = Controls()

    @classmethod
    def proven(cls, expected: Expectation, reason: str) -> CompileTrial:
        """For settings that the store knows to be faster: only their memory is still watched."""
        trial = cls(expected)
        trial.state, trial.reason = State.KEPT, reason
        return trial

    def begin(self, steps: int, controls: Controls, whole: int | None = None) -> None:
        """A run begins. Compiles at once when an earlier run left the trial open, or has shown that it is worth it.

        Args:
            steps: of this run.
            controls: of this run; they are let go by `end`.
            whole: what `controls.resident` should be, as far as known before the first step.
        """
        self._steps, self._done, self._phases, self._explained = steps, 0, set(), False
        self._controls = controls
        if whole is not None:
            self._resident_before = whole
        if self.state is State.DECLINED:
            self.state = State.WATCHING
        if self.state is State.WATCHING:
            self._consider()
        elif self.state in (State.TRIAL, State.KEPT):
            refused = controls.start()
            if refused:
                self._decline(refused)

    def end(self) -> None:
        """The run is over, however it ended: nothing of it is kept but what was measured."""
        self._controls = Controls()

    @property
    def compiling(self) -> bool:
        """Whether steps run compiled now."""
        return self.state in (State.TRIAL, State.KEPT)

    def on_step(self, seconds: float, phase: str = "", compiled: bool | None = None) -> None:
        """A step is done.

        Args:
            seconds: it took.
            phase: which of several experts did it; the first step of each is not counted, because it may load or
                compile.
            compiled: whether it ran compiled; None = as steps run now. One from before the last change tells nothing.
        """
        self._done += 1
        if compiled is not None and compiled != self.compiling:
            return
        first = phase not in self._phases
        self._phases.add(phase)
        if self.compiling:
            self._compiled_step(seconds, first)
            return
        self._session_steps += 1
        resident = self._controls.resident()
        if resident is not None:
            self._resident_before = max(resident, self._resident_before or 0)
        if not first:
            self.eager.append(seconds)
            del self.eager[: -2 * AT_MOST]  # the newest: the machine of an hour ago is another one
        if self.state is State.WATCHING:
            self._consider()

    def failed(self, reason: str) -> None:
        """The compiled code failed, and eager code took over."""
        self._finish(State.REVERTED, "failed", reason)

    def watch(self, callbacks: Callbacks, phase: Callable[[int], str] = _no_phase) -> Callbacks:
        """`callbacks` that also read how long the denoising steps took.

        Args:
            callbacks: the caller's.
            phase: tells from the number of steps done which expert did the last one.
        """
        ran: list[tuple[str, bool]] = []  # how each step ran: its time may be known one step later
        read = 0

        def on_progress(progress: Progress) -> None:
            nonlocal read
            if progress.stage == STEP_STAGE:
                ran.extend((phase(step), self.compiling) for step in range(len(ran) + 1, progress.done + 1))
                for seconds in progress.step_seconds[read:]:
                    read += 1
                    self.on_step(seconds, *ran[read - 1])
            callbacks.on_progress(progress)

        return replace(callbacks, on_progress=on_progress)

    @property
    def gain(self) -> float:
        """Fraction of an eager step that is saved; 0 while unknown."""
        if not self.eager or not self.compiled:
            return 0.0
        return 1 - median(self.compiled) / median(self.eager)

    @property
    def settled(self) -> bool:
        """Whether there is a verdict to remember."""
        return bool(self.verdict)

    def _consider(self) -> None:
        """Begin the trial, or say why not yet."""
        if len(self.eager) < ENOUGH:
            self.reason = f"watching plain steps first ({len(self.eager)} of {ENOUGH})"
            return
        left = self._steps - self._done
        sum_ = PayBack(self._expected, median(self.eager), left, self._session_steps)
        if left < 1 or not sum_.pays:
            if not self._explained:  # the first sum of a run is the one with all its steps ahead
                self.reason, self._explained = str(sum_), True
            return
        refused = self._controls.start()
        if refused:
            self._decline(refused)
            return
        self.state = State.TRIAL
        self.reason = f"on trial after {self._done} plain steps"
        self._phases = set()

    def _decline(self, reason: str) -> None:
        self.state, self.reason = State.DECLINED, reason

    def _compiled_step(self, seconds: float, first: bool) -> None:
        broken = self._controls.broken()
        if broken:
            self.failed(broken)
        if broken or self._left_the_device():
            return
        if first:
            if self.state is State.TRIAL and self.eager:
                self.compile_seconds += max(0.0, seconds - median(self.eager))
            return
        self.compiled.append(seconds)
        del self.compiled[: -2 * AT_MOST]
        if self.state is State.TRIAL:
            self._judge()

    def _judge(self) -> None:
        eager, compiled = self.eager, self.compiled
        figures = f"{median(eager):.3g} -> {median(compiled):.3g} s per step ({-self.gain:+.0%})"
        if len(compiled) >= 2 and min(compiled) > CLEARLY * max(eager):
            self._finish(State.REVERTED, "slower", f"compiled steps were slower: {figures}")
            return
        if len(compiled) < ENOUGH:
            return
        verdict = separated(eager, compiled)
        if verdict == "faster":
            self._finish(State.KEPT, verdict, f"compiled steps were faster: {figures}")
        elif verdict == "slower":
            self._finish(State.REVERTED, verdict, f"compiled steps were slower: {figures}")
        elif len(compiled) >= AT_MOST:
            self._finish(State.REVERTED, verdict, f"compiling made no difference beyond the noise: {figures}")

    def _left_the_device(self) -> bool:
        """Whether weights have left the device since the eager steps: the cause is then turned off."""
        gone = left_the_device(self._resident_before, self._controls.resident())
        if gone:
            self._finish(State.REVERTED, "slower", gone)
        return bool(gone)

    def _finish(self, state: State, verdict: str, reason: str) -> None:
        self.state, self.verdict, self.reason = state, verdict, reason
        self.remembered = False
        logger.info("torch.compile on trial is %s: %s", state.value, reason)
        if state is State.REVERTED:
            self._controls.revert()
