"""What "auto" rests on: steps of one card first, then split ones, and whichever is faster goes on.

As a trial of compiled code does it: a few steps of each kind, the first of a run or of a kind not counted.
"""

from __future__ import annotations

from statistics import median

from ...optimizations.tuning.compile_trial import AT_MOST, ENOUGH
from ...optimizations.tuning.statistics import separated

SAID = {"faster": "faster", "slower": "slower", "noise": "no difference beyond the noise"}
"""Final verdict -> what it is for a person."""


class Probation:
    """Steps of one kind of run, on one card and split.

    Attributes:
        verdict: "faster", "slower", "noise" or "failed" once it is final, "" before.
        known: what was found before this process began, for a person; "" where it has to be found out.
        kept: set by whoever has put the verdict into the store.
        whole, split: seconds of the counted steps.
    """

    def __init__(self) -> None:
        self.verdict = self.known = ""
        self.kept = False
        self.whole: list[float] = []
        self.split: list[float] = []
        self._ran_before: bool | None = None

    def begin(self) -> None:
        """A run begins: its first step does not count."""
        self._ran_before = None

    @property
    def wants_split(self) -> bool:
        """How the next step is to run."""
        if self.verdict:
            return self.verdict == "faster"
        return len(self.whole) >= ENOUGH

    def on_step(self, seconds: float, split: bool, counts: bool = True) -> None:
        """A step is done.

        Args:
            seconds: that it took.
            split: whether it ran so.
            counts: False where something else was done in it, too.
        """
        counts, self._ran_before = counts and self._ran_before is split, split
        if not counts or self.verdict:
            return
        (self.split if split else self.whole).append(seconds)
        if len(self.split) >= ENOUGH:
            verdict = separated(self.whole, self.split)
            if verdict != "noise" or len(self.split) >= AT_MOST:
                self.verdict = verdict

    def recall(self, verdict: str, why: str) -> None:
        """It was found out before."""
        self.verdict, self.known, self.kept = verdict, why, True

    def failed(self) -> None:
        """Calls cannot be split."""
        self.verdict, self.known = "failed", ""

    @property
    def reason(self) -> str:
        """How it stands, for a person."""
        if self.verdict == "failed":
            return "it cannot be had"
        if self.known:
            return self.known
        if not self.whole or not self.split:
            return f"watching steps of one card first ({len(self.whole)} of {ENOUGH})"
        return f"{SAID.get(self.verdict, 'on trial')}: {self.figures}"

    @property
    def figures(self) -> str:
        """What steps of either kind took. Both were made."""
        return f"{median(self.whole):.3g} s a step on one card, {median(self.split):.3g} s on all"
