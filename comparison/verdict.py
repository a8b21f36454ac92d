"""The answer of a comparison in words. Every word of it follows from a figure that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..memory import is_shortage
from .row import DENOISING, ENOUGH_PAIRS, VAE, ComparisonRow
from .words import gib, seconds, times

FEW_STEPS = 8
"""Up to so many steps a run is called one of few steps: what LoRAs and turbo models for few steps take."""
SMALL_SHARE = 0.5
"""Where the steps are less of a run than this, that is said: making them faster wins little."""
Rows = Sequence[ComparisonRow]


def recommended(rows: Rows) -> ComparisonRow:
    """The fastest lossless row that is faster beyond the noise; plain where there is none."""
    better = [row for row in rows if row.verdict == "faster" and row.lossless and row.run is not None]
    return min(better, key=lambda row: row.run.median if row.run else math.inf, default=rows[0])


def headline(rows: Rows) -> str:
    """The answer in one sentence."""
    plain, best = rows[0], recommended(rows)
    tried = [row for row in rows[1:] if row.run is not None]
    if plain.run is None:
        return "Nothing was measured."
    if best.run is not None and best.versus is not None:
        saved = f"{best.versus.gain:.0%} less time ({plain.run.median:.3g} -> {best.run.median:.3g} s)"
        runs = best.break_even_runs
        return f"Use {best.name}{'' if runs is None or runs <= 1 else f' for {runs:.0f} runs or more'}: {saved}."
    if not tried:
        return "Only plain was measured."
    if all(row.verdict == "slower" for row in tried):
        return "The plain run is the fastest here."
    names = ", ".join(row.name for row in tried)
    return f"Keep it plain: nothing of {names} was faster beyond the noise with the same picture."


def verdict(rows: Rows) -> str:
    """The answer, and what speaks for it: when compiling pays back, or why the plain run is the one to keep."""
    plain, best = rows[0], recommended(rows)
    answer = headline(rows)
    if plain.run is None:
        return answer
    if best is not plain:
        runs = best.break_even_runs
        if runs is None or runs <= 1:
            return answer
        first = f"Its first run takes {seconds(best.first_run_extra)} more, which is paid back after {runs:.0f} runs"
        return f"{answer} {first}; for fewer, the plain run is the fastest."
    reasons = [*_about_the_work(plain), *(reason for row in rows[1:] for reason in _against(row, plain))]
    if not reasons:
        return answer
    text = "; ".join(reasons)
    if ":" in answer:
        return f"{answer} {text[0].upper()}{text[1:]}."
    return f"{answer[:-1]}: {text}."


def _about_the_work(plain: ComparisonRow) -> Iterator[str]:
    """What of the run leaves little to win: few steps, a small part of it."""
    share, vae = plain.share_of(DENOISING), plain.share_of(VAE)
    parts = f"{share:.0%} of the run, the VAE {vae:.0%}" if vae else f"{share:.0%} of the run"
    if 0 < plain.steps <= FEW_STEPS:
        yield f"few steps ({times(plain.steps, 'step')}, {parts})"
    elif 0 < share < SMALL_SHARE:
        yield f"the steps are only {parts}"


def _against(row: ComparisonRow, plain: ComparisonRow) -> Iterator[str]:
    """Why one setting is not the one to use."""
    if row.problem:
        if is_shortage(row.problem):
            yield f"memory would not hold {row.name} ({row.problem})"
        else:
            yield f"{row.name} was given up ({row.problem})"
        return
    if row.versus is None:
        return
    found = _in_words(row)
    if row.undecided:
        between = f"{row.versus.low - 1:+.0%} to {row.versus.high - 1:+.0%}"
        if row.versus.pairs < ENOUGH_PAIRS:
            between = f"{times(row.versus.pairs, 'run')}, so that the spread is unknown"
        else:
            between += " time"
        yield f"of {row.name} too little is known ({between}): measure more runs on a quiet machine"
    elif row.settings.torch_compile == "on" and row.verdict in ("slower", "noise"):
        extra = f", and its first run {seconds(row.first_run_extra)} more" if row.first_run_extra > 0 else ""
        yield f"{row.name} would not pay back ({found}{extra})"
    else:
        yield f"{row.name}: {found}"
    pushed = (row.offloaded_bytes or 0) - (plain.offloaded_bytes or 0)
    if pushed > 0:
        yield f"memory would not hold it: with {row.name}, {gib(pushed)} of the weights left the device"


def _in_words(row: ComparisonRow) -> str:
    assert row.versus is not None  # noqa: S101 - asked of what was measured against plain
    if row.verdict == "slower":
        return f"every run takes {-row.versus.gain:.0%} more time"
    if row.verdict == "noise":
        return "no difference beyond the noise"
    return f"{row.versus.gain:.0%} less time, but not the same picture"
