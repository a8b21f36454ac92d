"""A batch that all processes of a group make together, as its host sends it and takes it back."""

from __future__ import annotations

import time
from typing import Any

from ...callbacks import Progress
from ...pipelines.types import SampleResult
from ..child.lines import Line, preview_of
from ..child.run import Run


class WholeRun(Run):
    """A batch of which no part is made by itself: one item, whose progress is the run's."""

    def make(self, batch: tuple[Any, ...], count: int = 1) -> SampleResult:
        return super().make(batch, 1)

    def _tick(self, line: Line) -> None:
        self._begun = self._begun or time.perf_counter()
        stage, done, total = line["stage"], line["done"], line["total"]
        self._show(Progress(stage, done, total, line["message"], preview_of(line), line.get("format", "")))

    def _show_all(self, doing: str, line: Line) -> None:
        """Its ticks have shown all there is."""

    def _result(self) -> SampleResult:
        result = self._made[0]
        for note in self._notes:
            result.report.note(note)
        seconds = result.report.facts.get("seconds", {})
        result.report.timed({"start": round(self._begun - self._started, 4)} | seconds if not self._warm else seconds)
        return result
