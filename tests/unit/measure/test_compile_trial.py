"""A trial of compiled code: seconds in, a verdict out, and the two functions called at the right moment."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.optimizations.compile_cost import Expectation
from fastdiffusers.optimizations.tuning.auto import RunHistory
from fastdiffusers.optimizations.tuning.compile_trial import CompileTrial, Controls, State, left_the_device
from fastdiffusers.pipelines.steps import Watch

CHEAP = Expectation(compile_seconds=1.0, gain=0.2, source="assumed")


class Model:
    """A pipeline in one sentence: how long a step takes, compiled or not, and what lies on the device."""

    def __init__(self, plain: float | Sequence[float], compiled: float | Sequence[float], compiling: float = 5.0):
        self.is_compiled = False
        self.compilations = 0
        self.refusal = ""
        self.gone = 0
        self._plain, self._compiled, self._compiling = plain, compiled, compiling
        self._cold = True
        self._chance = random.Random(0)

    def start(self) -> str:
        if not self.refusal:
            self.is_compiled, self._cold = True, True
            self.compilations += 1
        return self.refusal

    def revert(self) -> None:
        self.is_compiled = False

    def resident(self) -> int:
        return 10 * 2**30 - (self.gone if self.is_compiled else 0)

    @property
    def controls(self) -> Controls:
        return Controls(self.start, self.revert, self.resident)

    def step(self) -> float:
        seconds = self._compiled if self.is_compiled else self._plain
        found = self._chance.choice(list(seconds)) if isinstance(seconds, Sequence) else seconds
        if self.is_compiled and self._cold:
            self._cold = False
            return found + self._compiling
        return found

    def run(self, trial: CompileTrial, steps: int, phases: Callable[[int], str] = lambda step: "") -> list[float]:
        trial.begin(steps, self.controls)
        taken = []
        for number in range(steps):
            taken.append(self.step())
            trial.on_step(taken[-1], phases(number))
        return taken


def test_faster_is_kept() -> None:
    model, trial = Model(plain=1.0, compiled=0.7), CompileTrial(CHEAP)
    model.run(trial, 20)
    assert trial.state is State.KEPT
    assert trial.verdict == "faster"
    assert model.is_compiled
    assert trial.gain == pytest.approx(0.3)
    assert trial.compile_seconds == pytest.approx(4.7)  # 5 s of compiling in a step of 0.7 instead of 1 s
    assert "1 -> 0.7 s per step (-30%)" in trial.reason


def test_slower_is_undone_in_place_and_costs_few_steps() -> None:
    model, trial = Model(plain=17.4, compiled=32.8, compiling=0.0), CompileTrial(CHEAP)
    taken = model.run(trial, 20)
    assert (trial.state, trial.verdict) == (State.REVERTED, "slower")
    assert not model.is_compiled
    assert taken.count(32.8) == 3
    assert "slower" in trial.reason


def test_a_little_slower_is_undone_too() -> None:
    model, trial = Model(plain=1.0, compiled=1.04), CompileTrial(CHEAP)
    model.run(trial, 20)
    assert trial.verdict == "slower"
    assert not model.is_compiled


def test_with_noise_only_plain_stays() -> None:
    noise = [0.9, 1.0, 1.1, 0.95, 1.05]
    model, trial = Model(plain=noise, compiled=noise), CompileTrial(CHEAP)
    model.run(trial, 40)
    assert (trial.state, trial.verdict) == (State.REVERTED, "noise")
    assert not model.is_compiled


def test_it_is_tried_once() -> None:
    model, trial = Model(plain=1.0, compiled=2.0), CompileTrial(CHEAP)
    for _ in range(5):
        model.run(trial, 20)
    assert model.compilations == 1


def test_a_run_too_short_to_pay_back_is_not_compiled_and_the_sum_is_shown() -> None:
    model, trial = Model(plain=1.0, compiled=0.5), CompileTrial(Expectation(60.0, 0.2, "assumed"))
    model.run(trial, 8)
    assert model.compilations == 0
    assert "compiling takes 60 s" in trial.reason
    assert "pays back after 300 steps" in trial.reason


def test_a_session_of_short_runs_compiles_when_it_has_lost_as_much() -> None:
    model, trial = Model(plain=1.0, compiled=0.5), CompileTrial(Expectation(5.0, 0.5, "assumed"))  # after 10 steps
    runs = 0
    while model.compilations == 0:
        model.run(trial, 4)
        runs += 1
    assert runs == 3
    model.run(trial, 4)
    assert trial.state is State.KEPT


def test_two_step_experts_are_compared_over_several_runs() -> None:
    def expert(step: int) -> str:
        return "high noise" if step < 2 else "low noise"

    model, trial = Model(plain=1.0, compiled=0.6), CompileTrial(CHEAP)
    for _ in range(8):
        model.run(trial, 4, expert)
    assert trial.state is State.KEPT
    assert trial.gain == pytest.approx(0.4)


def test_the_first_step_of_each_expert_never_counts() -> None:
    trial = CompileTrial(CHEAP)
    trial.begin(6, Controls(start=lambda: "not now"))
    for seconds, phase in ((9.0, "high"), (1.0, "high"), (1.0, "high"), (9.0, "low"), (1.0, "low")):
        trial.on_step(seconds, phase)
    assert trial.eager == [1.0, 1.0, 1.0]


def test_when_memory_forbids_it_nothing_is_compiled_and_the_next_run_asks_again() -> None:
    model, trial = Model(plain=1.0, compiled=0.5), CompileTrial(CHEAP)
    model.refusal = "1.8 GiB needed, 0.4 GiB free"
    model.run(trial, 20)
    assert (trial.state, trial.verdict) == (State.DECLINED, "")
    assert trial.reason == model.refusal
    model.refusal = ""
    model.run(trial, 20)
    assert trial.state is State.KEPT


def test_weights_pushed_off_the_device_end_it_at_the_next_step() -> None:
    model, trial = Model(plain=1.0, compiled=0.9), CompileTrial(CHEAP)
    model.gone = int(2.3 * 2**30)
    taken = model.run(trial, 20)
    assert trial.verdict == "slower"
    assert trial.reason == "with compiled code 2.30 GiB of the model left the device"
    assert not model.is_compiled
    assert len([seconds for seconds in taken if seconds != 1.0]) == 1


def test_a_proven_gain_is_still_watched_for_offloading() -> None:
    model = Model(plain=1.0, compiled=0.5)
    trial = CompileTrial.proven(CHEAP, "measured here")
    trial.begin(10, model.controls, whole=10 * 2**30)
    trial.on_step(0.5)
    assert model.is_compiled
    model.gone = 2**30
    trial.on_step(3.0)
    assert not model.is_compiled
    assert trial.verdict == "slower"


def test_offloading_is_told_only_when_it_is_known() -> None:
    assert left_the_device(None, 5) == ""
    assert left_the_device(5, None) == ""
    assert left_the_device(1000, 995) == ""
    assert "left the device" in left_the_device(1000, 900)


def test_a_failure_of_the_compiled_code_is_final() -> None:
    model, trial = Model(plain=1.0, compiled=0.5), CompileTrial(CHEAP)
    trial.begin(20, Controls(model.start, model.revert))
    for _ in range(4):
        trial.on_step(1.0)
    assert model.is_compiled
    trial.failed("RuntimeError: no kernel")
    assert (trial.verdict, trial.settled, model.is_compiled) == ("failed", True, False)


class Clock:
    """A stopwatch that stands still unless it is told."""

    now = 0.0
    ahead = False

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start


def test_time_spent_in_the_callers_own_functions_is_not_the_models() -> None:
    clock, trial = Clock(), CompileTrial(CHEAP)

    def slow_preview(progress: object) -> None:
        clock.now += 100

    trial.begin(4, Controls(start=lambda: "not now"))
    run = Run(trial.watch(Callbacks(on_progress=slow_preview)), clock, steps=4)
    clock.now += 3
    run.callbacks.tick("text encode", 1, 1)
    for _ in range(4):
        clock.now += 2
        run.step()
    assert trial.eager == [2, 2, 2]


class Run:
    """The steps of a pipeline as `pipelines.steps` watches them."""

    def __init__(self, callbacks: Callbacks, clock: Clock, steps: int) -> None:
        self.callbacks, self._steps, self._watch = callbacks, steps, Watch(clock)
        self._watch.loop_begins()

    def step(self) -> None:
        done = self._watch.step_ends(torch.zeros(1), self._steps)
        self.callbacks.tick("denoise", done, self._steps, step_seconds=self._watch.known_seconds)
        self._watch.caller_is_done()


class Card(Clock):
    """One whose marks are reached late, when the step after has been queued; asking before that would wait."""

    ahead = True

    def __init__(self) -> None:
        self.queued = 0
        self.waits = 0

    def mark(self) -> float:
        self.queued += 1
        return self.queued

    def between(self, start: float, end: float) -> float:
        # The mark of this very moment, or that of the last callback's end; the first one is no step's.
        self.waits += end >= self.queued - 1 and end > 1
        return end - start


def test_no_step_waits_for_the_card_to_be_judged() -> None:
    model, card, trial = Model(1.0, 1.0), Card(), CompileTrial(CHEAP)
    trial.begin(12, Controls(model.start, model.revert))
    run = Run(trial.watch(Callbacks()), card, steps=12)
    compiled = []
    for _ in range(11):
        run.step()
        compiled.append(model.is_compiled)
    assert card.waits == 0
    # Three plain steps are counted after the first, and judged when the fifth is there, which is plain as well.
    assert compiled == [False] * 4 + [True] * 7
    assert len(trial.eager) == 3
    run.step()
    assert not trial.verdict or len(trial.compiled) >= 3
    assert card.waits == 1, "the last one is judged at once: the decode is next"


def test_steps_from_before_a_change_are_not_counted_for_what_came_after() -> None:
    model, trial = Model(1.0, 1.0), CompileTrial(CHEAP)
    trial.begin(20, Controls(model.start, model.revert))
    for _ in range(4):
        trial.on_step(1.0, compiled=False)
    assert model.is_compiled
    trial.on_step(1.0, compiled=False)
    assert len(trial.eager) == 3
    trial.on_step(9.0, compiled=True)  # the first compiled one: it compiles
    assert trial.compiled == []
    assert trial.compile_seconds == 8.0


def test_a_cancel_in_the_callbacks_travels() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    trial = CompileTrial(CHEAP)
    trial.begin(4, Controls())
    with pytest.raises(Stop):
        Run(trial.watch(Callbacks(check_cancel=stop)), Clock(), steps=4).step()


def test_the_history_keeps_one_trial_per_key() -> None:
    history = RunHistory()
    first = history.trial("a", lambda: CompileTrial(CHEAP))
    assert history.trial("a", lambda: CompileTrial(CHEAP)) is first
    assert history.trial("b", lambda: CompileTrial(CHEAP)) is not first
    history.forget()
    assert history.trial("a", lambda: CompileTrial(CHEAP)) is not first


def test_a_run_that_is_over_is_let_go() -> None:
    model, trial = Model(plain=1.0, compiled=0.7), CompileTrial(CHEAP)
    model.run(trial, 2)
    living = weakref.ref(model)
    trial.end()
    del model
    gc.collect()
    assert living() is None
    other = Model(plain=1.0, compiled=0.7)
    other.run(trial, 20)
    assert trial.state is State.KEPT, "and the next run goes on where it stood"
