"""Whether compiling pays: what it costs and brings, and the steps after which the one has earned back the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectation:
    """What compiling is expected to cost and to bring.

    Attributes:
        compile_seconds: one-time cost.
        gain: fraction of a plain step's time that is saved.
        source: where the two come from, for a person: "assumed", "measured here", ...
    """

    compile_seconds: float
    gain: float
    source: str

    def break_even_steps(self, step_seconds: float) -> float:
        """Steps after which the compile time is earned back; infinite when nothing is gained."""
        saved = self.gain * step_seconds
        return self.compile_seconds / saved if saved > 0 else float("inf")


ASSUMED = Expectation(compile_seconds=60.0, gain=0.15, source="assumed")
"""Where nothing at all was measured. On the careful side: too much time, too little gain."""


@dataclass(frozen=True)
class PayBack:
    """The sum that decides whether to compile.

    Attributes:
        expectation: cost and gain.
        step_seconds: of a plain step.
        steps_left: in this run.
        session_steps: plain steps that this session has made under the same key.
    """

    expectation: Expectation
    step_seconds: float
    steps_left: int
    session_steps: int = 0

    @property
    def pays(self) -> bool:
        """Within this run, or because the session has already lost as much by not compiling.

        The second is the rule for renting or buying skis: who buys as soon as the rents paid equal the price never
        pays more than twice what somebody who knew the future would have paid.
        """
        need = self.expectation.break_even_steps(self.step_seconds)
        return self.steps_left >= need or self.session_steps >= need

    def __str__(self) -> str:
        expected = self.expectation
        need = expected.break_even_steps(self.step_seconds)
        steps = "never" if need == float("inf") else f"after {_count(need)} steps"
        saved = expected.gain * self.step_seconds
        return (
            f"compiling takes {expected.compile_seconds:.3g} s and saves {saved:.3g} s of each "
            f"{self.step_seconds:.3g} s step ({expected.source}), so it pays back {steps}; "
            f"{self.steps_left} are left in this run and the session has made {self.session_steps}"
        )


def _count(steps: float) -> str:
    return f"{steps:.0f}" if steps < 1e6 else f"{steps:.1g}"
