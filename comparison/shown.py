"""A comparison where there is little room: on a node, and in Show Report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .result import Comparison
from .row import ComparisonRow
from .table import against_plain, as_table, memory, same_picture
from .words import seconds, times

BEST = 2
"""Settings that are named beside plain."""


def summary(comparison: Comparison) -> list[str]:
    """The answer, plain and the two fastest other settings, a line each; then what is to be noted."""
    measured = [row for row in comparison.rows[1:] if row.run is not None]
    best = sorted(measured, key=lambda row: row.run.median if row.run else math.inf)[:BEST]
    rows = [row for row in (comparison.plain, *best) if row.run is not None]
    return [comparison.headline, *map(one_line, rows), *(f"note: {note}" for note in comparison.notes)]


def one_line(row: ComparisonRow) -> str:
    """ "compile: 2.53 s ±0.8%, -20% [-22%, -19%], 17.2 GiB, yes (61 dB)", or why there is nothing."""
    if row.run is None:
        return f"{row.name}: {row.problem or row.verdict}"
    figures = [f"{seconds(row.run.median)} ±{row.run.relative:.1%}", against_plain(row), memory(row)]
    picture = same_picture(row) if row.versus is not None else ""
    return f"{row.name}: {', '.join(filter(None, [*figures, picture and f'same picture: {picture}']))}"


@dataclass(frozen=True)
class ComparisonReport:
    """A comparison as Show Report takes it, in the form of `report.OptimizationReport`."""

    comparison: Comparison

    def as_table(self) -> str:
        return as_table(self.comparison)

    def as_json(self) -> str:
        return self.comparison.as_json()

    def lines(self) -> Iterator[str]:
        """The answer and its reasons; every setting, with where its time goes; the notes and the facts."""
        yield self.comparison.verdict
        yield ""
        for row in self.comparison.rows:
            yield one_line(row)
            stages = " · ".join(f"{stage} {seconds(value)}" for stage, value in row.stages.items())
            runs = row.break_even_runs
            pays = "" if runs is None else f"pays after {times(runs, 'run')}"
            first = f"first run +{seconds(row.first_run_extra)}" if row.first_run_extra > 0 else ""
            yield from (f"    {text}" for text in (stages, ", ".join(filter(None, [first, pays]))) if text)
        yield ""
        yield from (f"note: {note}" for note in self.comparison.notes)
        yield from (f"{name}: {value}" for name, value in self.comparison.facts.items())
