"""The measuring loop, against a fake clock and fake memory: every figure it gives can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.tuning.candidates import Candidate, Outcome, Plan
from fastdiffusers.optimizations.tuning.measure import PairedMeasurement, duration
from fastdiffusers.optimizations.tuning.meters import PeakMemory

PICTURE = torch.linspace(0, 1, 16 * 16 * 3).reshape(1, 1, 16, 16, 3)


class Machine:
    """A clock, a memory and a log of who ran, all moved by the candidates themselves."""

    ahead = False

    def __init__(self) -> None:
        self.now = 0.0
        self.bytes = 0
        self.ran: list[str] = []
        self._peak = 0

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def empty(self) -> None:
        self.bytes = 0

    def reset(self) -> None:
        self._peak = self.bytes

    def sample(self) -> None:
        self._peak = max(self._peak, self.bytes)

    def peak(self) -> PeakMemory:
        self.sample()
        return PeakMemory(allocated=self._peak, reserved=2 * self._peak, host=None)

    def candidate(
        self,
        name: str,
        step: float | Sequence[float] = 1.0,
        steps: int = 4,
        first: float = 0.0,
        size: int = 100,
        decode: float = 2.0,
        result: torch.Tensor = PICTURE,
        fail_at: int | None = None,
    ) -> Candidate:
        """A candidate whose run number n takes `step[n]` per step, plus `first` in its first run."""
        count = iter(range(10**6))

        def run(callbacks: Callbacks) -> Outcome:
            number = next(count)
            self.ran.append(name)
            if number == fail_at:
                raise RuntimeError("the kernel said no")
            self.now += 0.5
            callbacks.tick("text encode", 1, 1)
            taken: list[float] = []
            each = step if isinstance(step, float) else step[min(number, len(step) - 1)]
            for index in range(steps):
                self.bytes = size
                taken.append(each + (first if number == 0 and index == 0 else 0.0))
                self.now += taken[-1]
                callbacks.tick("denoise", index + 1, steps)
            self.bytes = 0
            self.now += decode
            return Outcome(result, {"text encode": 0.5, "decode": decode}, tuple(taken), offloaded_bytes=7)

        return Candidate(name, run)

    def measure(self, candidates: Sequence[Candidate], **plan: object) -> PairedMeasurement:
        plan.setdefault("precision", 0.0)
        return PairedMeasurement(candidates, Plan(steps=4, **plan), self, self, clock=self.mark)


def test_seconds_steps_stages_and_memory() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("fast", 0.5, first=30.0, size=300)])
    measurement.run()
    plain, fast = measurement.measured
    assert plain.run is not None
    assert fast.step is not None
    assert plain.run.median == pytest.approx(0.5 + 4 + 2)
    assert plain.run.runs == 5
    assert fast.step.median == pytest.approx(0.5)
    assert fast.stages == pytest.approx({"text encode": 0.5, "first step": 0.5, "steps": 1.5, "decode": 2, "other": 0})
    assert fast.first_run_cost == pytest.approx(30.0)
    assert (plain.memory.allocated, fast.memory.allocated) == (100, 300)
    assert (plain.memory.reserved, fast.memory.reserved) == (200, 600)
    assert fast.offloaded_bytes == 7
    assert fast.against(plain).verdict == "faster"
    assert fast.against(plain).ratio == pytest.approx(4.5 / 6.5)
    assert fast.quality is not None
    assert fast.quality.identical


def test_every_candidate_runs_once_a_round_and_the_order_turns() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate(name) for name in "abc"])
    measurement.run()
    assert machine.ran[:3] == ["a", "b", "c"]
    rounds = [machine.ran[i : i + 3] for i in range(3, 18, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({one[0] for one in rounds}) == 3


def test_noise_is_no_difference() -> None:
    machine = Machine()
    noise = [1.0, 1.1, 0.9, 1.05, 0.97, 1.02]
    measurement = machine.measure([machine.candidate("plain", noise), machine.candidate("other", noise[::-1])])
    measurement.run()
    assert measurement.measured[1].against(measurement.plain).verdict == "noise"


def test_it_stops_early_when_the_intervals_are_narrow() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b", 0.9)], runs=20, precision=0.01)
    measurement.run()
    assert len(measurement.plain.runs) == 3
    assert "after 3 rounds" in measurement.stopped


def test_wide_intervals_go_on() -> None:
    machine = Machine()
    noisy = [1.0, 2.0, 1.0, 3.0, 1.5, 2.5]
    measurement = machine.measure([machine.candidate("plain", noisy), machine.candidate("b")], precision=0.01)
    measurement.run()
    assert len(measurement.plain.runs) == 5
    assert measurement.stopped == ""


def test_a_candidate_that_fails_is_given_up_and_the_others_go_on() -> None:
    machine = Machine()
    bad, later = machine.candidate("bad", fail_at=0), machine.candidate("later", fail_at=2)
    measurement = machine.measure([machine.candidate("plain"), bad, later, machine.candidate("good")])
    measurement.run()
    plain, failed, partly, good = measurement.measured
    assert failed.problem == "RuntimeError: the kernel said no"
    assert failed.first is None
    assert failed.run is None
    assert len(partly.runs) == 1
    assert partly.problem
    assert len(plain.runs) == len(good.runs) == 5


def test_a_plain_run_that_fails_is_an_error() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain", fail_at=0), machine.candidate("b")])
    with pytest.raises(RuntimeError, match="the kernel said no"):
        measurement.run()


class Cancelled(Exception):
    """An ordinary exception, as ComfyUI's own is."""


def cancel_after(ticks: int) -> Callbacks:
    left = iter(range(ticks))

    def check() -> None:
        if next(left, None) is None:
            raise Cancelled

    return Callbacks(check_cancel=check)


def test_a_cancel_keeps_what_was_measured_and_travels_unchanged() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b", 0.5)])
    with pytest.raises(Cancelled):
        measurement.run(cancel_after(30))
    assert measurement.stopped == "cancelled"
    assert measurement.measured[1].problem == ""
    assert measurement.plain.first is not None
    assert 1 <= len(measurement.plain.runs) < 5


def test_the_time_limit_ends_it_in_time_with_what_was_measured() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b", 0.5)], time_limit=40.0)
    measurement.run()
    assert machine.now <= 40
    assert measurement.elapsed == machine.now
    assert "time limit of 40 s" in measurement.stopped
    assert 1 <= len(measurement.plain.runs) < 5


def test_a_run_that_outlasts_the_limit_is_stopped_at_its_next_step() -> None:
    machine = Machine()
    slow = machine.candidate("slow", 100.0, steps=50)
    measurement = machine.measure([machine.candidate("plain"), slow], time_limit=150.0)
    measurement.run()
    assert machine.now < 150 + 100 + 1
    assert measurement.measured[1].problem == ""
    assert measurement.measured[1].first is None


def test_a_first_run_that_lasts_for_long_leaves_a_round_for_those_that_are_ready() -> None:
    machine = Machine()
    fast, slow, late = machine.candidate("fast", 0.5), machine.candidate("slow", 0.5, steps=500), machine.candidate("b")
    measurement = machine.measure([machine.candidate("plain"), fast, slow, late], time_limit=150.0)
    measurement.run()
    assert machine.now <= 150
    assert "time limit of 150 s" in measurement.stopped
    plain, first, second, third = measurement.measured
    assert plain.runs
    assert first.runs
    assert second.first is None
    assert third.first is None
    assert not any(measured.problem for measured in measurement.measured), "nothing failed: there was no time"
    assert machine.ran.count("b") == 0


def test_what_the_first_run_compiles_is_not_expected_of_the_next() -> None:
    """Compiling takes 40 s of a first run of 44.5 s: it is no reason to leave others out."""
    machine = Machine()
    candidates = [
        machine.candidate("plain"),
        machine.candidate("compile", 0.5, first=40.0),
        machine.candidate("flash", 0.8),
    ]
    measurement = machine.measure(candidates, time_limit=120.0, runs=3)
    measurement.run()
    assert measurement.stopped == ""
    assert [len(measured.runs) for measured in measurement.measured] == [3, 3, 3]
    compiled = measurement.measured[1]
    assert compiled.first is not None
    assert compiled.first.seconds == pytest.approx(44.5)
    compiled.runs.clear()
    assert compiled.expected_seconds == pytest.approx(4.5)


def test_a_time_limit_below_one_run_is_bad_input() -> None:
    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b")], time_limit=3.0)
    with pytest.raises(InputError, match=r"time_limit = 3\.0: one plain run takes longer"):
        measurement.run()


@pytest.mark.parametrize(("names", "reason"), [("a", "nothing to compare"), ("", "nothing"), ("aa", "twice")])
def test_what_cannot_be_compared(names: str, reason: str) -> None:
    machine = Machine()
    with pytest.raises(InputError, match=reason):
        machine.measure([machine.candidate(name) for name in names])


@pytest.mark.parametrize("bad", [{"runs": 0}, {"runs": -1}, {"time_limit": 0.0}, {"time_limit": float("nan")}])
def test_a_plan_that_cannot_be_carried_out(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Plan(**bad)  # type: ignore[arg-type]


def test_progress_covers_the_whole_plan_with_the_time_left() -> None:
    machine, seen = Machine(), list[Progress]()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b")], runs=2)
    measurement.run(Callbacks(on_progress=seen.append))
    assert {progress.stage for progress in seen} == {"benchmark"}
    assert {progress.total for progress in seen} == {2 * 3 * 5}
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 2 * 3 * 5 - 1
    assert seen[0].message == "plain, warm-up"
    first_left = next(progress.message for progress in seen if "left" in progress.message)
    assert first_left == f"b, warm-up, {round(6.5 * 5)} s left"


def test_results_that_are_not_finite_are_said() -> None:
    machine = Machine()
    broken = PICTURE.clone()
    broken[..., 0, 0, 0] = float("nan")
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b", result=broken)], runs=1)
    measurement.run()
    found = measurement.measured[1].quality
    assert found is not None
    assert not found.finite


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (125, "2 min 05 s"), (4200, "1 h 10 min"), (59.7, "1 min 00 s")]
)
def test_a_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_watchers_own_failure_is_a_cancel_not_a_failed_candidate() -> None:
    def broken_display(progress: Progress) -> None:
        if progress.message.startswith("b") and progress.done % 5 == 2:
            raise OSError("the terminal is gone")

    machine = Machine()
    measurement = machine.measure([machine.candidate("plain"), machine.candidate("b")])
    with pytest.raises(OSError, match="the terminal is gone"):
        measurement.run(Callbacks(on_progress=broken_display))
