"""What the trial of compiled slices is fed with, by a clock that only stand-ins move: warm runs of both sides.

And that the seconds of compiling and of checking are together what the clock shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from fastdiffusers.vae import compile_trial, compiled
from fastdiffusers.vae.compile_trial import SpeedTrial
from fastdiffusers.vae.compiled import CompiledCodeError, CompileWatch
from fastdiffusers.vae.kernels import Kernels
from fastdiffusers.vae.network.execution import Execution

COMPILING = 3.0
X = torch.linspace(-1, 1, 64).reshape(1, 1, 1, 8, 8)


@dataclass
class StandIn:
    """A network that doubles its input and adds to a carried frame; what it takes is added to the clock.

    Attributes:
        cold, warm: seconds of its first run and of the others.
        compiling: seconds of the first run that are counted as a compilation.
        off_by: of its result.
    """

    clock: SimpleNamespace
    cold: float
    warm: float
    compiling: float = 0.0
    off_by: float = 0.0
    carried: list[float] = field(default_factory=list)

    def plain(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        self.clock.now += self.warm if self.carried else self.cold
        frame = run.state.frames.setdefault("frame", torch.zeros(1))
        self.carried.append(float(frame.add_(1)))
        return 2 * x + self.off_by

    def compiled(self, x: torch.Tensor, run: Execution, watch: CompileWatch) -> torch.Tensor:
        if self.compiling and not self.carried:
            watch.made.count += 1
            watch.made.seconds += self.compiling
            self.clock.now += self.compiling
        return self.plain(x, run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    moved = SimpleNamespace(now=100.0)
    stopped = SimpleNamespace(perf_counter=lambda: moved.now)
    monkeypatch.setattr(compiled, "time", stopped)
    monkeypatch.setattr(compile_trial, "time", stopped)
    return moved


def test_a_trial_is_fed_with_warm_runs_of_both(clock: SimpleNamespace) -> None:
    """Plain code's first run, which chooses kernels, would make slow compiled code look fast."""
    plain = StandIn(clock, cold=9.0, warm=0.25)
    code = StandIn(clock, cold=0.5, warm=0.5, compiling=COMPILING)
    checked, watch, run = compiled._Checked(code.compiled, plain.plain), CompileWatch(), Execution()
    made = [checked(X, run, watch)]
    (trial,) = watch.trials
    assert (trial.plain, trial.compiled) == ([0.25], [0.5])
    made.append(checked(X, run, watch))  # of another kind: it has a carried frame
    assert (trial.plain, trial.compiled, trial.verdict) == ([0.25] * 2, [0.5] * 2, "slower")
    assert str(trial) == (
        "compiled slices are slower, so plain ones run: 2 slices took 0.5 s plain, 1 s compiled (+100%)"
    )
    ran = len(code.carried)
    made.append(checked(X, run, watch))
    assert len(code.carried) == ran
    assert all(torch.equal(one, 2 * X) for one in made)
    assert float(run.state.frames["frame"]) == 3.0  # runs for comparison leave the clip's state alone
    assert code.carried == [1.0, 1.0, 2.0, 2.0]


def test_faster_code_is_kept_and_run_once_from_then_on(clock: SimpleNamespace) -> None:
    plain = StandIn(clock, cold=0.5, warm=0.5)
    code = StandIn(clock, cold=9.0, warm=0.25, compiling=COMPILING)
    checked, watch, run = compiled._Checked(code.compiled, plain.plain), CompileWatch(), Execution()
    made = [checked(X, run, watch) for _ in range(2)]
    (trial,) = watch.trials
    assert str(trial) == "compiled slices are faster and kept: 2 slices took 1 s plain, 0.5 s compiled (-50%)"
    ran = len(code.carried), len(plain.carried)
    made.append(checked(X, run, watch))
    assert (len(code.carried), len(plain.carried)) == (ran[0] + 1, ran[1])
    assert all(torch.equal(one, 2 * X) for one in made)
    assert float(run.state.frames["frame"]) == 3.0


@pytest.mark.parametrize("trial", [True, False])
def test_compiling_and_checking_are_what_the_clock_shows(clock: SimpleNamespace, trial: bool) -> None:
    plain = StandIn(clock, cold=2.0, warm=0.5)
    code = StandIn(clock, cold=0.75, warm=0.25, compiling=COMPILING)
    checked, watch, began = compiled._Checked(code.compiled, plain.plain), CompileWatch(trial=trial), clock.now
    checked(X, Execution(), watch)
    a_run = 0.25 if trial else 0.75  # the one that a decode needs in any case
    assert watch.made.seconds == COMPILING
    assert watch.made.seconds + watch.made.checking == clock.now - began - a_run


def test_the_seconds_of_a_check_that_fails_are_not_lost(clock: SimpleNamespace) -> None:
    """The decode goes on with another watch, and the count of compilations is all that it takes along."""
    plain = StandIn(clock, cold=2.0, warm=0.5)
    code = StandIn(clock, cold=0.25, warm=0.25, compiling=COMPILING, off_by=1.0)
    checked, watch = compiled._Checked(code.compiled, plain.plain), CompileWatch()
    with pytest.raises(CompiledCodeError, match="off by"):
        checked(X, Execution(), watch)
    assert (watch.made.seconds, watch.made.checking) == (COMPILING, 2.0)


def test_a_verdict_holds_for_a_vae_that_is_loaded_again_but_not_for_other_kernels(clock: SimpleNamespace) -> None:
    plain = StandIn(clock, cold=0.25, warm=0.25)
    code = StandIn(clock, cold=0.5, warm=0.5, compiling=COMPILING)
    trials: dict[object, SpeedTrial] = {}
    for _ in range(2):
        compiled._Checked(code.compiled, plain.plain, trials)(X, Execution(), CompileWatch())
    ran, watch = len(code.carried), CompileWatch()
    again = compiled._Checked(code.compiled, plain.plain, trials)
    again(X, Execution(), watch)
    assert len(code.carried) == ran
    assert [trial.verdict for trial in watch.trials] == ["slower"]
    again(X, Execution(kernels=Kernels("plain")), watch)
    assert len(code.carried) > ran
